"""Tensors in shared memory, over HTTP and gRPC, and whoever means ill with it."""

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.models import identity, save
from tests.server.test_grpc import Client, grpc_serving
from tests.serving import Live

from farthing.config.server import HttpLimits, ModelControl
from farthing.protocols.kserve_grpc import message_class
from farthing.runtime import shared_memory as room
from farthing.runtime.shared_memory import FOLDER, SharedMemory
from farthing.types.errors import InvalidInput, NotFound, TooLarge, Unsupported
from farthing.types.requests import RegionPart

Code = grpc.StatusCode

pytestmark = pytest.mark.skipif(not Path(FOLDER).is_dir(), reason="no /dev/shm on this system")


@pytest.fixture
def key() -> Iterator[str]:
    """A shared-memory object of 4096 zeros."""
    name = f"test-{uuid.uuid4().hex}"
    path = Path(FOLDER) / name
    path.write_bytes(bytes(4096))
    yield f"/{name}"
    path.unlink(missing_ok=True)


def of(key: str) -> Path:
    return Path(FOLDER) / key[1:]


def opened(key: str) -> int:
    """How many open files of this process are that object; others come and go with what else was tested here."""
    wanted = of(key).stat()
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            file = os.fstat(int(link.name))
        except OSError:  # the folder's own, closed by now
            continue
        found += (file.st_dev, file.st_ino) == (wanted.st_dev, wanted.st_ino)
    return found


# -- regions -------------------------------------------------------------------------------------------------------------


def test_a_region_is_a_part_of_an_object_and_nothing_beside_it_is_touched(key: str) -> None:
    memory = SharedMemory(is_open=True)
    memory.register("r", key, 100, 50)
    memory.write(RegionPart("r", 10, 20), b"x" * 20, "y")
    assert of(key).read_bytes() == bytes(110) + b"x" * 20 + bytes(4096 - 130)
    assert memory.read(RegionPart("r", 9, 3), "x") == b"\0xx"
    assert memory.read(RegionPart("r", 0, 50), "x")[10:30] == b"x" * 20
    (found,) = memory.status()
    assert (found.name, found.key, found.offset, found.byte_size) == ("r", key, 100, 50)


@pytest.mark.parametrize("part", [(0, 51), (50, 1), (51, 0), (2**62, 2**62), (0, 2**63 - 1)])
def test_nothing_outside_of_a_region_is_read_or_written(key: str, part: tuple[int, int]) -> None:
    memory = SharedMemory(is_open=True)
    memory.register("r", key, 100, 50)
    with pytest.raises(InvalidInput, match="outside of region"):
        memory.read(RegionPart("r", *part), "x")
    with pytest.raises(InvalidInput, match="outside of region"):
        memory.write(RegionPart("r", *part), b"z" * 51, "y")
    assert of(key).read_bytes() == bytes(4096)


def test_more_than_its_part_is_not_written(key: str) -> None:
    memory = SharedMemory(is_open=True)
    memory.register("r", key, 0, 50)
    with pytest.raises(InvalidInput, match="do not fit the 4"):
        memory.write(RegionPart("r", 0, 4), b"12345", "y")
    assert of(key).read_bytes() == bytes(4096)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "/",
        "..",
        "/..",
        "/../etc/passwd",
        "a/b",
        "/.hidden",
        "x\0y",
        "/farthing_x",
        "n" * 300,
        "/no-such-object",
        "a\n",
    ],
)
def test_keys_name_objects_and_nothing_else(bad: str) -> None:
    with pytest.raises(InvalidInput):
        SharedMemory(is_open=True).register("r", bad, 0, 1)


def test_links_and_pipes_are_no_shared_memory(tmp_path: Path) -> None:
    target = tmp_path / "secret"
    target.write_bytes(b"secret")
    link, pipe = (Path(FOLDER) / f"test-{uuid.uuid4().hex}" for _ in range(2))
    link.symlink_to(target)
    os.mkfifo(pipe)
    try:
        for path in (link, pipe):
            with pytest.raises(InvalidInput):
                SharedMemory(is_open=True).register("r", f"/{path.name}", 0, 1)
    finally:
        link.unlink()
        pipe.unlink()


@pytest.mark.parametrize(("offset", "size"), [(0, 4097), (4096, 1), (0, 0), (2**62, 2**62)])
def test_a_region_lies_within_its_object(key: str, offset: int, size: int) -> None:
    with pytest.raises(InvalidInput, match="has 4096"):
        SharedMemory(is_open=True).register("r", key, offset, size)


def test_an_object_that_becomes_shorter_is_an_error_and_no_crash(key: str) -> None:
    memory = SharedMemory(is_open=True)
    memory.register("r", key, 0, 4096)
    os.truncate(of(key), 10)
    with pytest.raises(InvalidInput, match="has become shorter"):
        memory.read(RegionPart("r", 0, 4096), "x")


def test_open_files_end_with_their_regions(key: str) -> None:
    memory = SharedMemory(is_open=True)
    for number in range(50):
        memory.register(f"r{number}", key, 0, 8)
    assert opened(key) > 0
    memory.unregister("r0")
    memory.unregister()
    memory.unregister("never was")
    assert opened(key) == 0
    with pytest.raises(NotFound):
        memory.status("r1")


def test_there_is_an_end_to_regions_and_a_door_to_them(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "REGIONS_MAX", 2)
    memory = SharedMemory(is_open=True)
    for name in "ab":
        memory.register(name, key, 0, 8)
    with pytest.raises(TooLarge):
        memory.register("c", key, 0, 8)
    with pytest.raises(Unsupported, match="disabled"):
        SharedMemory(is_open=False).register("a", key, 0, 8)


# -- served --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Client]]:
    folder = tmp_path_factory.mktemp("models")
    save(folder / "echo", identity())
    save(folder / "text", identity("BYTES", ("batch", 1)))
    limits = HttpLimits(body_bytes_max=2000)
    with grpc_serving(folder, limits=limits, model_control=ModelControl.EXPLICIT, load_models=("*",)) as pair:
        yield pair


def shared(size: int, offset: int = 0) -> dict[str, Any]:
    return {"shared_memory_region": "r", "shared_memory_byte_size": size, "shared_memory_offset": offset}


def post(live: Live, path: str, **body: Any) -> Any:
    return live.post(f"/v2/{path}", json.dumps(body).encode())


def grpc_request(size: int, out_size: int, offset: int = 0) -> Any:
    message = message_class("ModelInferRequest")(
        model_name="echo",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [2, 2]}],
        outputs=[{"name": "y"}],
    )
    for tensor, part in ((message.inputs[0], (size, 0)), (message.outputs[0], (out_size, offset))):
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = part[0]
        tensor.parameters["shared_memory_offset"].int64_param = part[1]
    return message


def test_over_http_tensors_come_from_and_go_to_shared_memory(both: tuple[Live, Client], key: str) -> None:
    live, _ = both
    assert "system_shared_memory" in live.get("/v2").json["extensions"]
    assert post(live, "systemsharedmemory/region/r/register", key=key, byte_size=4096).status == 200
    again = post(live, "systemsharedmemory/region/r/register", key=key, byte_size=4096)
    assert (again.status, "already in manager" in again.error) == (400, True)
    values = np.array([[1, 2], [3, 4]], "<f4")
    with of(key).open("r+b") as file:
        file.write(values.tobytes())
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "parameters": shared(16)}],
        "outputs": [{"name": "y", "parameters": shared(64, 1024)}],
    }
    data = json.dumps(body).encode()
    for headers in ({}, *[{"Inference-Header-Content-Length": str(len(data))}] * 2):  # the last by a kept reading
        answer = live.post("/v2/models/echo/infer", data, headers)
        assert answer.json["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2, 2]}]
        assert of(key).read_bytes()[1024:1040] == values.tobytes()
        with of(key).open("r+b") as file:
            file.seek(1024)
            file.write(bytes(16))
    status = [{"name": "r", "key": key, "offset": 0, "byte_size": 4096}]
    assert live.get("/v2/systemsharedmemory/region/r/status").json == status
    assert post(live, "systemsharedmemory/unregister").status == 200
    assert live.get("/v2/systemsharedmemory/status").json == []
    assert post(live, "models/echo/infer", **body).status == 404
    assert live.get("/v2/cudasharedmemory/status").status == 501
    assert live.server is not None
    assert live.server._admission.bytes == 0


def test_over_grpc_tensors_come_from_and_go_to_shared_memory(both: tuple[Live, Client], key: str) -> None:
    _, client = both
    client.ask("SystemSharedMemoryRegister", name="r", key=key, offset=0, byte_size=4096)
    assert client.ask("SystemSharedMemoryStatus").regions["r"].byte_size == 4096
    values = np.array([[1, 2], [3, 4]], "<f4")
    with of(key).open("r+b") as file:
        file.write(values.tobytes())
    answer = client.raw("ModelInfer")(grpc_request(16, 16, 2048).SerializeToString())
    found = message_class("ModelInferResponse").FromString(answer)
    assert list(found.raw_output_contents) == [b""]
    assert list(found.outputs[0].shape) == [2, 2]
    assert of(key).read_bytes()[2048:2064] == values.tobytes()
    assert client.fails("ModelInfer", grpc_request(16, 8).SerializeToString())[0] is Code.INVALID_ARGUMENT
    assert client.fails("ModelInfer", grpc_request(12, 16).SerializeToString())[0] is Code.INVALID_ARGUMENT
    message = grpc_request(16, 16)
    message.raw_input_contents.append(b"surplus")
    assert client.fails("ModelInfer", message.SerializeToString())[0] is Code.INVALID_ARGUMENT
    client.ask("SystemSharedMemoryUnregister", name="r")
    assert client.fails("ModelInfer", grpc_request(16, 16).SerializeToString())[0] is Code.NOT_FOUND
    assert client.fails("SystemSharedMemoryStatus", b"\x0a\x01r")[0] is Code.NOT_FOUND


def test_strings_lie_in_shared_memory_with_their_lengths(both: tuple[Live, Client], key: str) -> None:
    live, _ = both
    post(live, "systemsharedmemory/region/r/register", key=key, byte_size=4096)
    try:
        with of(key).open("r+b") as file:
            file.write(b"\2\0\0\0ab")
        body = {
            "inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 1], "parameters": shared(6)}],
            "outputs": [{"name": "y", "parameters": shared(100, 100)}],
        }
        assert post(live, "models/text/infer", **body).status == 200
        assert of(key).read_bytes()[100:106] == b"\2\0\0\0ab"
    finally:
        post(live, "systemsharedmemory/region/r/unregister")


def test_one_request_cannot_have_more_read_than_a_body_may_hold(both: tuple[Live, Client], key: str) -> None:
    live, _ = both
    post(live, "systemsharedmemory/region/r/register", key=key, byte_size=4096)
    try:
        tensor = {"datatype": "FP32", "shape": [1, 250], "parameters": shared(1000)}
        answer = post(live, "models/echo/infer", inputs=[{"name": f"x{i}", **tensor} for i in range(3)])
        assert answer.status == 400
        assert "3000 bytes, which exceeds the maximum" in answer.error
    finally:
        post(live, "systemsharedmemory/region/r/unregister")


def test_it_is_closed_unless_control_is_open(tmp_path: Path, key: str) -> None:
    save(tmp_path / "echo", identity())
    with grpc_serving(tmp_path) as (live, client):
        assert "system_shared_memory" not in live.get("/v2").json["extensions"]
        refused = post(live, "systemsharedmemory/region/r/register", key=key, byte_size=8)
        assert (refused.status, "disabled" in refused.error) == (501, True)
        register = message_class("SystemSharedMemoryRegisterRequest")(name="r", key=key, byte_size=8)
        assert client.fails("SystemSharedMemoryRegister", register.SerializeToString())[0] is Code.UNIMPLEMENTED
        assert live.get("/v2/systemsharedmemory/status").json == []
        assert client.fails("ModelInfer", grpc_request(16, 16).SerializeToString())[0] is Code.UNIMPLEMENTED
