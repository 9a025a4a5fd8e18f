"""Headers that a model may see."""

import json
from pathlib import Path
from textwrap import dedent

import grpc
import numpy as np
import pytest
from tests.server.test_grpc import grpc_serving, infer_message
from tests.server.test_grpc_streams import Talk
from tests.serving import serving

from farthing.protocols.kserve_grpc import message_class
from farthing.server.forwarding import HeaderForwarding
from farthing.types.errors import InvalidInput, InvalidSetting
from farthing.types.requests import InferRequest

ECHO = """
    from farthing import Tensor

    class Echo:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 1])]

        def infer(self, inputs, requests):
            for request in requests:
                request.response_parameters.update(request.parameters)
            return {"y": inputs["x"]}
"""


def request(**parameters: str) -> InferRequest:
    return InferRequest(model_name="m", inputs={"x": np.zeros((1, 1), np.float32)}, parameters=dict(parameters))


def test_matching_names_become_string_parameters_beside_the_requests_own() -> None:
    asked = request(own="1")
    before = asked.parameters
    HeaderForwarding("X-(tenant|user)").forward({b"x-tenant": b"shop", b"x-tenant-2": b"no", b"host": b"h"}, asked)
    assert asked.parameters == {"own": "1", "x-tenant": "shop"}
    assert before == {"own": "1"}, "parameters may be shared between requests"


@pytest.mark.parametrize("name", [b"timeout", b"priority", b"sequence_id", b"triton_anything", b"headers"])
def test_reserved_names_are_refused(name: bytes) -> None:
    with pytest.raises(InvalidInput, match="has the name of a reserved parameter"):
        HeaderForwarding(".*").forward({name: b"1"}, request())


def test_a_broken_pattern_is_named() -> None:
    with pytest.raises(InvalidSetting, match="is not a regular expression"):
        HeaderForwarding("x-(")


def test_a_model_sees_them(tmp_path: Path) -> None:
    model = tmp_path / "echo.py"
    model.write_text(dedent(ECHO))
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}], "parameters": {"own": 1}}
    with serving(model, header_forward_pattern="x-tenant") as live:
        reply = live.post("/v2/models/echo/infer", json.dumps(body).encode(), headers={"X-Tenant": "shop"})
        assert reply.status == 200, reply.error
        assert reply.json["parameters"] == {"own": 1, "x-tenant": "shop"}


def test_a_model_sees_metadata_over_grpc_in_calls_and_streams(tmp_path: Path) -> None:
    model = tmp_path / "echo.py"
    model.write_text(dedent(ECHO))
    with grpc_serving(model, grpc_header_forward_pattern="x-tenant|timeout") as (live, client):
        message = infer_message([[1.0]])
        message.parameters["own"].int64_param = 1
        metadata = [("x-tenant", "shop"), ("x-other", "no")]
        told = client.raw("ModelInfer")(message.SerializeToString(), metadata=metadata, timeout=20)
        answers = [message_class("ModelInferResponse").FromString(told)]
        answers += [answer.infer_response for answer in Talk(client, metadata=metadata).put(message).end().rest()]
        for answer in answers:
            assert answer.parameters["own"].int64_param == 1
            assert answer.parameters["x-tenant"].string_param == "shop"
            assert "x-other" not in answer.parameters
        code, words, _ = client.fails("ModelInfer", message.SerializeToString(), metadata=[("timeout", "1")])
        assert (code, "reserved" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        assert "x-tenant" not in live.infer("echo", [[1.0]]).json.get("parameters", {}), "HTTP has its own pattern"
