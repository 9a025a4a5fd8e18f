"""Loads that bring a configuration and files, by the clients people have, where the operator opened that or did not."""

import base64
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.runtime.shop import Shop, times
from tests.serving import Live, eventually, serving

from farthing.config.server import Address, LoadOverrides, ModelControl
from farthing.repository.uploads import PREFIX
from farthing.server.auth import Role, new_key

ANY = Address("127.0.0.1", 0)
CODE = b"""
import numpy as np
from farthing import Tensor

class Model:
    inputs = [Tensor("x", "FP32", [-1, 1])]
    outputs = [Tensor("y", "FP32", [-1, 1])]
    def infer(self, inputs):
        return {"y": inputs["x"] * 5}
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def opened(tmp_path: Path, temporary: Path) -> Iterator[Live]:
    """A server that takes files; its repository has `net`, which doubles."""
    shop = Shop(tmp_path / "shop")
    shop.put("net", 2)
    with serving(
        shop.folder,
        model_control=ModelControl.EXPLICIT,
        load_models=("*",),
        load_overrides=LoadOverrides.FILES,
        grpc=ANY,
    ) as live:
        assert live.server is not None
        live.run(live.server.listen_grpc())
        yield live
    assert list(temporary.iterdir()) == [], "nothing is left behind"


def brought(temporary: Path) -> int:
    """Models brought that are on disk now."""
    # Folders come and go while one looks: whatever is gone is none.
    folders = [Path(where).relative_to(temporary).parts for where, _, _ in os.walk(temporary)]
    return sum(len(parts) == 3 and parts[0].startswith(PREFIX) for parts in folders)


def load(live: Live, name: str, files: dict[str, bytes], config: str = "{}", **headers: str) -> Any:
    parameters = {f"file:{path}": base64.b64encode(content).decode() for path, content in files.items()}
    body = json.dumps({"parameters": {"config": config, **parameters}}).encode()
    return live.post(f"/v2/repository/models/{name}/load", body, headers)


def value(live: Live, name: str) -> float:
    answer = live.infer(name, [[1.0]]).json
    return float(answer["outputs"][0]["data"][0])


def test_files_take_the_place_of_the_repository_s_until_the_model_is_loaded_from_there_again(
    opened: Live, temporary: Path
) -> None:
    with tritonclient.http.InferenceServerClient(opened.netloc) as client:
        client.load_model("net", config="{}", files={"file:1/model.onnx": times(7)})
        assert value(opened, "net") == 7
        client.load_model("net", config="{}", files={"file:1/model.onnx": times(8)})
        assert value(opened, "net") == 8
        eventually(lambda: brought(temporary) == 1)
        client.load_model("net")
        assert value(opened, "net") == 2
        eventually(lambda: brought(temporary) == 0)
        client.load_model("new", config="{}", files={"file:1/model.onnx": times(9), "file:3/model.onnx": times(3)})
        assert value(opened, "new") == 3
        client.unload_model("new")
        eventually(lambda: brought(temporary) == 0)
        assert not client.is_model_ready("new")


def test_the_same_over_grpc_with_files_as_bytes(opened: Live, temporary: Path) -> None:
    assert opened.server is not None
    with tritonclient.grpc.InferenceServerClient(str(opened.server.grpc)) as client:
        config = json.dumps({"max_batch_size": 2})
        client.load_model("net", config=config, files={"file:1/model.onnx": times(7)})
        assert client.get_model_config("net").config.max_batch_size == 2
        wanted = tritonclient.grpc.InferInput("x", [1, 1], "FP32")
        wanted.set_data_from_numpy(np.ones((1, 1), np.float32))
        assert client.infer("net", [wanted]).as_numpy("y")[0, 0] == 7
        with pytest.raises(tritonclient.grpc.InferenceServerException, match="not a path inside"):
            client.load_model("net", config="{}", files={"file:../x": b""})
        with pytest.raises(tritonclient.grpc.InferenceServerException, match="might hold code"):
            client.load_model("net", config="{}", files={"file:1/model.py": CODE})
        client.unload_model("net")
    eventually(lambda: brought(temporary) == 0)


def test_a_load_that_fails_leaves_what_serves_and_no_files(opened: Live, temporary: Path) -> None:
    reply = load(opened, "net", {"1/model.onnx": b"not onnx"})
    assert reply.status == 400
    assert str(temporary) not in reply.error or "model.onnx" in reply.error
    assert load(opened, "net", {"1/notes.txt": b"hello"}).status == 400
    assert load(opened, "..", {"1/model.onnx": b""}).status == 400
    assert value(opened, "net") == 2
    eventually(lambda: brought(temporary) == 0)


@pytest.mark.parametrize(
    ("files", "config"),
    [
        ({"1/model.py": CODE}, "{}"),
        ({"1/model.onnx": times(1), "1/helper.so": b""}, "{}"),
        ({"1/model.onnx": times(1), "1/weights.pkl": b""}, "{}"),
        ({"1/model.onnx": times(1), "1/plain": b""}, "{}"),
        ({"1/model.txt": CODE}, '{"backend": "python", "default_model_filename": "model.txt"}'),
        ({"1/model.txt": CODE}, '{"platform": "python", "default_model_filename": "model.txt"}'),
        ({"1/config.json": b"{}", "1/x.bin": b""}, '{"backend": "llm", "default_model_filename": "x.bin"}'),
    ],
)
def test_nothing_that_could_be_code_is_taken_from_callers_without_a_key(
    opened: Live, temporary: Path, files: dict[str, bytes], config: str
) -> None:
    reply = load(opened, "snake", files, config)
    assert reply.status == 403, reply.error
    assert brought(temporary) == 0


def test_a_caller_with_a_key_for_control_may_bring_code(tmp_path: Path, temporary: Path) -> None:
    shop = Shop(tmp_path / "shop")
    shop.put("net", 2)
    admin, entry = new_key("admin", (Role.INFERENCE, Role.CONTROL))
    user, other = new_key("user", (Role.INFERENCE,))
    (tmp_path / "keys.toml").write_text(entry + other)
    with serving(
        shop.folder,
        model_control=ModelControl.EXPLICIT,
        load_overrides=LoadOverrides.FILES,
        keys=tmp_path / "keys.toml",
    ) as live:
        assert load(live, "snake", {"1/model.py": CODE}, Authorization=f"Bearer {user}").status == 403
        assert load(live, "snake", {"1/model.py": CODE}, Authorization=f"Bearer {admin}").status == 200
        body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}'
        answer = live.post("/v2/models/snake/infer", body, {"Authorization": f"Bearer {user}"})
        assert answer.json["outputs"][0]["data"] == [5]


@pytest.mark.parametrize("allowed", [LoadOverrides.NONE, LoadOverrides.CONFIG])
def test_what_the_operator_did_not_open_is_closed(tmp_path: Path, allowed: LoadOverrides) -> None:
    shop = Shop(tmp_path / "shop")
    shop.put("net", 2)
    with serving(shop.folder, model_control=ModelControl.EXPLICIT, load_overrides=allowed) as live:
        assert load(live, "net", {"1/model.onnx": times(7)}).status == 403
        status = load(live, "net", {}, '{"max_batch_size": 3}').status
        assert status == (403 if allowed is LoadOverrides.NONE else 200)
        assert live.post("/v2/repository/models/net/load").status == 200
        assert value(live, "net") == 2
