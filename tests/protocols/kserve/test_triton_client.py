"""Triton's own Python client as the peer, in process: it writes what we read and reads what we write."""

import numpy as np
import pytest

from farthing.protocols.kserve import WireLimits, decode_infer, encode_infer
from farthing.types.requests import InferResponse, RequestedOutput, Timing
from farthing.types.tensors import NUMPY_DTYPES, datatype_of

http = pytest.importorskip("tritonclient.http")
_utils = pytest.importorskip("tritonclient.http._utils")

TENSORS = {
    **{name: np.array([[0, 1, 2]]).astype(dtype) for name, dtype in NUMPY_DTYPES.items() if name != "BYTES"},
    "BYTES": np.array([[b"a", b"", b"\xff\0z"]], object),
}


def sent(tensors, *, is_binary, outputs=(), **options):
    """What the client puts on the wire, decoded by us."""
    inputs = []
    for name, tensor in tensors.items():
        item = http.InferInput(name, list(tensor.shape), datatype_of(tensor))
        item.set_data_from_numpy(tensor, binary_data=is_binary)
        inputs.append(item)
    arguments = {
        "request_id": "",
        "sequence_id": 0,
        "sequence_start": False,
        "sequence_end": False,
        "priority": 0,
        "timeout": None,
        "custom_parameters": None,
        **options,
    }
    body, json_size = _utils._get_inference_request(inputs=inputs, outputs=list(outputs) or None, **arguments)
    return decode_infer(
        bytes(body), model_name="m", model_version="", header_length=json_size, spec=LookupError, limits=WireLimits()
    )


def received(wire, tensors, request):
    """What we answer, read by the client."""
    response = InferResponse(
        model_name="m", model_version="1", id=request.id, outputs=tensors, timing=Timing(0, 0, 0, 0, 1, 1)
    )
    body, header_length = encode_infer(response, request, wire.spec_of(tensors))
    whole = body if isinstance(body, bytes) else b"".join(body)
    return http.InferenceServerClient.parse_response_body(whole, header_length=header_length)


@pytest.mark.parametrize("datatype", TENSORS)
def test_binary_inputs_of_every_datatype_arrive(wire, datatype) -> None:
    request = sent({"x": TENSORS[datatype], "z": TENSORS["INT8"]}, is_binary=True)
    assert wire.same(request.inputs["x"], TENSORS[datatype])
    assert wire.same(request.inputs["z"], TENSORS["INT8"])
    assert request.binary_output  # it asks for binary unless told otherwise


@pytest.mark.parametrize("datatype", [name for name in TENSORS if name not in ("FP16", "BF16", "BYTES")])
def test_json_inputs_arrive(wire, datatype) -> None:
    assert wire.same(sent({"x": TENSORS[datatype]}, is_binary=False).inputs["x"], TENSORS[datatype])


@pytest.mark.parametrize("datatype", TENSORS)
@pytest.mark.parametrize("rows", [0, 1, 3000])
def test_binary_outputs_of_every_datatype_are_read(wire, datatype, rows) -> None:
    tensor = np.repeat(TENSORS[datatype], rows, axis=0)
    request = sent({"x": TENSORS["INT8"]}, is_binary=True)
    result = received(wire, {"y": tensor, "z": TENSORS["INT8"]}, request)
    found = result.as_numpy("y")
    assert found.shape == tensor.shape
    if datatype == "BF16":
        assert np.array_equal(found.astype(np.float32), tensor.astype(np.float32))
    else:
        assert wire.same(found.astype(tensor.dtype), tensor)
    assert wire.same(result.as_numpy("z"), TENSORS["INT8"])
    assert result.get_response()["model_version"] == "1"


def test_json_outputs_are_read(wire) -> None:
    asked = [http.InferRequestedOutput(name, binary_data=False) for name in ("y", "s")]
    request = sent({"x": TENSORS["INT8"]}, is_binary=False, outputs=asked)
    strings = np.array(["ä".encode()], object)
    result = received(wire, {"y": TENSORS["FP32"], "s": strings}, request)
    assert wire.same(result.as_numpy("y"), TENSORS["FP32"])
    assert result.as_numpy("s").tolist() == ["ä"]


def test_ids_options_and_requested_outputs_arrive(wire) -> None:
    asked = [
        http.InferRequestedOutput("y", binary_data=True),
        http.InferRequestedOutput("z", binary_data=False, class_count=3),
    ]
    request = sent(
        {"x": TENSORS["FP32"]},
        is_binary=True,
        outputs=asked,
        request_id="a b",
        sequence_id=7,
        sequence_start=True,
        priority=2,
        timeout=500,
        custom_parameters={"mine": 1.5},
    )
    assert (request.id, request.priority, request.timeout_us) == ("a b", 2, 500)
    assert request.parameters == {"sequence_id": 7, "sequence_start": True, "sequence_end": False, "mine": 1.5}
    assert request.outputs == (RequestedOutput("y", 0, True), RequestedOutput("z", 3, False))


def test_classes_are_read(wire) -> None:
    request = sent({"x": TENSORS["FP32"]}, is_binary=True, outputs=[http.InferRequestedOutput("y", class_count=2)])
    assert received(wire, {"y": TENSORS["FP32"]}, request).as_numpy("y").tolist() == [[b"2.000000:2", b"1.000000:1"]]
