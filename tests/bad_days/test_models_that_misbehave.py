"""Models that are killed, that hang, that lie; and models whose files change under way. Through the whole server."""

import json
import os
import signal
import threading
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.models import identity, save, two_inputs_add_sub
from tests.serving import Gate, Live, eventually, infer_json, serve_process, serving, small_repository

from farthing.config.server import ModelControl

PID = """
    import os, time
    from pathlib import Path
    from farthing import Tensor

    class Pid:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("pid", "INT64", [-1, 1])]
        max_batch_size = 4

        def infer(self, inputs):
            if inputs["x"][0, 0] < 0:
                Path(__file__).with_name("running").touch()
                time.sleep(600)
            return {"pid": inputs["x"].astype("int64") * 0 + os.getpid()}
"""

LIAR = """
    import numpy as np
    from farthing import Tensor

    class Liar:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 2])]
        max_batch_size = 4

        def infer(self, inputs):
            lie = int(inputs["x"][0, 0])
            rows = len(inputs["x"])
            if lie == 0:
                return {"y": np.zeros((rows, 2), np.float32)}
            if lie == 1:
                return {"y": np.zeros((rows, 3), np.float32)}
            if lie == 2:
                return {"y": np.zeros((rows + 1, 2), np.float32)}
            if lie == 3:
                return {"y": np.zeros((rows, 2), np.int32)}
            if lie == 4:
                return {"z": np.zeros((rows, 2), np.float32)}
            return None
"""


def test_kill_9_of_a_python_model_in_mid_request_is_answered_and_mended(tmp_path: Path) -> None:
    model = tmp_path / "pid.py"
    model.write_text(dedent(PID))
    with serve_process(tmp_path, model, small_repository(tmp_path / "models")) as live:
        pid = live.infer("pid", [[1]]).json["outputs"][0]["data"][0]
        assert live.process is not None
        assert pid != live.process.pid
        wire = live.connect().send(_request("pid", -1))
        eventually((tmp_path / "running").exists)
        os.kill(pid, signal.SIGKILL)
        reply = wire.read_reply()
        assert reply.status == 500
        assert "was killed by signal 9" in reply.error
        assert live.infer("echo", [[1, 2]]).status == 200
        eventually(lambda: live.infer("pid", [[1]]).status == 200)
        assert live.infer("pid", [[1]]).json["outputs"][0]["data"][0] != pid
        assert live.get("/v2/health/ready").status == 200
        assert live.metric("nv_inference_request_failure", model="pid", reason="BACKEND") >= 1


def test_a_hung_model_is_red_and_the_others_answer(tmp_path: Path) -> None:
    model = tmp_path / "pid.py"
    model.write_text(dedent(PID))
    echo = small_repository(tmp_path / "models")
    with serve_process(tmp_path, model, echo, "--hang-timeout-secs", "0.5", "--exit-timeout-secs", "0.2") as live:
        live.connect().send(_request("pid", -1))
        eventually(lambda: live.get("/v2/health/live").status == 503, within_s=5)
        assert "model `pid` version 1 has been running one batch" in live.get("/v2/health/live").error
        assert live.infer("echo", [[1, 2]]).status == 200


def test_outputs_that_lie_are_the_models_fault_and_named(tmp_path: Path) -> None:
    model = tmp_path / "liar.py"
    model.write_text(dedent(LIAR))
    with serving(model) as live:
        assert live.infer("liar", [[0]]).status == 200
        for lie in (1, 2, 3, 4, 5):
            reply = live.infer("liar", [[lie]])
            assert reply.status == 500, lie
            assert "liar" in reply.error
            assert live.infer("liar", [[0]]).status == 200


def test_a_configuration_that_lies_about_a_shape_never_serves(tmp_path: Path) -> None:
    save(tmp_path / "liar", identity())
    (tmp_path / "liar" / "config.pbtxt").write_text(
        'max_batch_size: 4\ninput [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]\n'
    )
    with serving(tmp_path) as live:
        (line,) = live.post("/v2/repository/index").json
        assert line["state"] == "UNAVAILABLE"
        assert "configured as FP32 [-1, 3], the model file says FP32 [-1, 2]" in line["reason"]


# -- files that change -----------------------------------------------------------------------------------------------


def test_a_model_replaced_in_poll_mode_answers_all_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "simple"
    source = save(folder, two_inputs_add_sub(columns=2))
    body = json.dumps(
        {
            "inputs": [
                {"name": name, "datatype": "INT32", "shape": [1, 2], "data": [3, 4]} for name in ("INPUT0", "INPUT1")
            ]
        }
    ).encode()
    with serving(tmp_path, model_control=ModelControl.POLL, poll_s=0.05) as live:
        with _asking(live, "/v2/models/simple/infer", body) as statuses:
            (folder / "2").mkdir()
            part = folder / "2" / "model.part"
            part.write_bytes(two_inputs_add_sub(columns=2))
            part.rename(folder / "2" / "model.onnx")
            eventually(lambda: live.get("/v2/models/simple").json["versions"] == ["2"])
            source.path.unlink()
            (folder / "2" / "model.onnx").write_bytes(b"broken")  # a failed reload leaves the old one serving
            eventually(lambda: live.log is None and len(statuses) > 200)
        assert set(statuses) == {200}


def test_a_file_truncated_in_place_breaks_nothing_that_serves(tmp_path: Path) -> None:
    """Where weights are mapped, this kills a server by SIGBUS."""
    repository = small_repository(tmp_path)
    with serving(repository) as live:
        before = live.infer("mlp", [[0.5] * 32]).json["outputs"]
        for name in ("mlp", "echo", "simple"):
            with (repository / name / "1" / "model.onnx").open("r+b") as file:
                file.truncate(10)
        assert live.infer("mlp", [[0.5] * 32]).json["outputs"] == before
        assert live.infer("echo", [[1, 2]]).status == 200


def test_two_loads_at_once_and_an_unload_under_load(tmp_path: Path) -> None:
    repository = small_repository(tmp_path)
    with serving(repository, model_control=ModelControl.EXPLICIT, load_models=("*",)) as live:
        with _asking(live, "/v2/models/echo/infer", infer_json([[1, 2]])) as statuses:
            loads = [threading.Thread(target=live.post, args=("/v2/repository/models/echo/load",)) for _ in range(6)]
            for thread in loads:
                thread.start()
            for thread in loads:
                thread.join()
            eventually(lambda: len(statuses) > 50)
        assert set(statuses) == {200}  # a reload loses nobody
        with _asking(live, "/v2/models/echo/infer", infer_json([[1, 2]])) as statuses:
            eventually(lambda: len(statuses) > 20)
            assert live.post("/v2/repository/models/echo/unload").status == 200
            eventually(lambda: statuses[-1] == 404)
            assert live.post("/v2/repository/models/echo/load").status == 200
            eventually(lambda: statuses[-1] == 200)
        assert set(statuses) <= {200, 404, 503}


def test_requests_queued_at_an_unload_are_still_answered(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with serving(gate.path, model_control=ModelControl.EXPLICIT, load_models=("gate",)) as live:
        first = live.connect().send(gate.request(1))
        eventually(gate.seen)
        second = live.connect().send(gate.request(2))
        eventually(lambda: live.metric("nv_inference_pending_request_count", model="gate") == 1)
        assert live.post("/v2/repository/models/gate/unload").status == 200
        assert live.infer("gate", [[3.0]]).status in (404, 503)
        gate.open()
        assert [first.read_reply().status, second.read_reply().status] == [200, 200]


def _request(model: str, value: float) -> bytes:
    from tests.serving import request

    return request("POST", f"/v2/models/{model}/infer", infer_json([[value]]))


class _asking:  # noqa: N801
    """Asks the same again and again for as long as the block runs; gives the statuses so far."""

    def __init__(self, live: Live, path: str, body: bytes) -> None:
        self._live, self._path, self._body = live, path, body
        self._statuses: list[int] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with self._live.connect() as wire:
            while not self._is_over.is_set():
                self._statuses.append(wire.ask("POST", self._path, self._body).status)

    def __enter__(self) -> list[int]:
        self._thread.start()
        return self._statuses

    def __exit__(self, *_: Any) -> None:
        self._is_over.set()
        self._thread.join()
