"""Triton's business-logic scripting over HTTP: models written for it, with real models to ask, many clients at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from tests.models import save, tiny_mlp, two_inputs_add_sub
from tests.serving import Live, serving

SYNC = """
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                name = pb_utils.get_input_tensor_by_name(request, "MODEL_NAME").as_numpy()[0].decode()
                ask = pb_utils.InferenceRequest(
                    model_name=name,
                    requested_output_names=["OUTPUT0", "OUTPUT1"],
                    inputs=[pb_utils.get_input_tensor_by_name(request, "INPUT0"),
                            pb_utils.get_input_tensor_by_name(request, "INPUT1")],
                    request_id=request.request_id(),
                    trace=request.trace(),
                    preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
                )
                answer = ask.exec()
                if answer.has_error():
                    error = answer.error()
                    responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(
                        f"told: {error.message()}", error.code())))
                    continue
                tensors = [pb_utils.get_output_tensor_by_name(answer, name) for name in ("OUTPUT0", "OUTPUT1")]
                responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            return responses
"""

GATHER = """
    import asyncio
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        async def execute(self, requests):
            responses = []
            for request in requests:
                inputs = [pb_utils.get_input_tensor_by_name(request, f"INPUT{i}") for i in (0, 1)]
                names = [pb_utils.Tensor("MODEL_NAME", np.array([b"simple"], object)), *inputs]
                direct = pb_utils.InferenceRequest(
                    model_name="simple", requested_output_names=["OUTPUT0"], inputs=inputs, model_version=1)
                nested = pb_utils.InferenceRequest(
                    model_name="sync", requested_output_names=["OUTPUT1"], inputs=names)
                one, other = await asyncio.gather(direct.async_exec(), nested.async_exec())
                for answer in (one, other):
                    if answer.has_error():
                        raise pb_utils.TritonModelException(answer.error().message())
                responses.append(pb_utils.InferenceResponse(
                    output_tensors=[one.output_tensors()[0], other.output_tensors()[0]]))
            return responses
"""

CONFIG = """
    backend: "python"
    {batching}
    instance_group {{ count: {instances} kind: KIND_CPU }}
    {name}
    input {{ name: "INPUT0" data_type: TYPE_INT32 dims: [ {dims} ] }}
    input {{ name: "INPUT1" data_type: TYPE_INT32 dims: [ {dims} ] }}
    output {{ name: "OUTPUT0" data_type: TYPE_INT32 dims: [ {dims} ] }}
    output {{ name: "OUTPUT1" data_type: TYPE_INT32 dims: [ {dims} ] }}
"""
NAME = 'input { name: "MODEL_NAME" data_type: TYPE_STRING dims: [ 1 ] }'


def put(folder: Path, name: str, code: str, config: str) -> None:
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "1" / "model.py").write_text(dedent(code))
    (folder / name / "config.pbtxt").write_text(config)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("scripts")
    save(folder / "simple", two_inputs_add_sub())
    save(folder / "mlp", tiny_mlp())
    put(folder, "sync", SYNC, CONFIG.format(batching="", instances=2, name=NAME, dims="-1, 16"))
    put(folder, "gather", GATHER, CONFIG.format(batching="", instances=1, name="", dims="-1, 16"))
    with serving(folder) as server:
        yield server


def tensor(name: str, values: Any) -> dict[str, Any]:
    array = np.asarray(values)
    datatype = "BYTES" if array.dtype.kind in "US" else "INT32"
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}


def ask(live: Live, model: str, value: int, asked: str = "") -> Any:
    import json

    inputs = [tensor("INPUT0", np.full((1, 16), value)), tensor("INPUT1", np.full((1, 16), 1))]
    inputs += [tensor("MODEL_NAME", [asked])] if asked else []
    return live.post(f"/v2/models/{model}/infer", json.dumps({"inputs": inputs}).encode())


def outputs(reply: Any) -> tuple[int, int]:
    assert reply.status == 200, reply.body
    by_name = {output["name"]: output["data"][0] for output in reply.json["outputs"]}
    return by_name["OUTPUT0"], by_name["OUTPUT1"]


def test_a_model_asks_another_by_name_and_hands_its_answer_on(live: Live) -> None:
    assert outputs(ask(live, "sync", 5, asked="simple")) == (6, 4)


def test_an_error_is_a_response_of_its_own_with_triton_s_code(live: Live) -> None:
    missing = ask(live, "sync", 5, asked="ghost")
    assert missing.status == 404
    assert "told: Request for unknown model: 'ghost'" in missing.error
    wrong = ask(live, "sync", 5, asked="mlp")
    assert wrong.status == 400
    assert "told: unexpected inference" in wrong.error
    itself = ask(live, "sync", 5, asked="sync")
    assert itself.status == 400
    assert "MODEL_NAME" in itself.error


def test_several_at_once_one_of_them_nested_from_many_clients(live: Live) -> None:
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda n: outputs(ask(live, "gather", n)), range(80)))
    assert answers == [(n + 1, n - 1) for n in range(80)]
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda n: outputs(ask(live, "sync", n, asked="simple")), range(80)))
    assert answers == [(n + 1, n - 1) for n in range(80)]
