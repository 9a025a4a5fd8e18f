"""Rows B6 to B9 and the JSON of answers."""

import json

import ml_dtypes
import numpy as np
import pytest

from farthing.protocols.kserve import check_outputs, encode_error, encode_infer
from farthing.protocols.kserve.encode import JOIN_BYTES_MAX
from farthing.types.errors import EngineFailed, InvalidInput, NotFound
from farthing.types.requests import InferRequest, InferResponse, RequestedOutput, Timing

Y = np.array([[1.5, 2]], np.float32)
Z = np.array([[7]], np.int64)


def test_a_json_answer_has_the_members_of_the_protocol_and_no_others(wire) -> None:
    answer, rest, header_length = wire.encode({"y": Y})
    assert (rest, header_length) == (b"", None)
    assert answer == {
        "model_name": "m",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.0]}],
    }


def test_id_and_parameters_are_there_when_they_say_something(wire) -> None:
    answer, *_ = wire.encode({"y": Y}, response={"id": 'a"\n', "parameters": {"n": 1, "t": "x"}})
    assert (answer["id"], answer["parameters"]) == ('a"\n', {"n": 1, "t": "x"})
    answer, *_ = wire.encode({"y": Y}, response={"parameters": {"n": 1}})
    assert "id" not in answer


def test_no_outputs_is_an_empty_list(wire) -> None:
    assert wire.encode({})[0]["outputs"] == []


def test_b6_binary_output_is_the_default_of_outputs_that_are_not_listed(wire) -> None:
    answer, rest, _ = wire.encode({"y": Y, "z": Z}, binary_output=True)
    assert ["data" in output for output in answer["outputs"]] == [False, False]
    assert rest == Y.tobytes() + Z.tobytes()


def test_b7_it_is_the_default_of_listed_outputs_too(wire) -> None:
    asked = (RequestedOutput("y"), RequestedOutput("z", 0, False))
    answer, rest, _ = wire.encode({"y": Y, "z": Z}, *asked, binary_output=True)
    assert ["data" in output for output in answer["outputs"]] == [False, True]
    assert rest == Y.tobytes()


def test_b6_a_listed_output_says_for_itself(wire) -> None:
    asked = (RequestedOutput("y", 0, True), RequestedOutput("z"))
    for outputs in ({"y": Y, "z": Z}, {"z": Z, "y": Y}):
        answer, rest, header_length = wire.encode(outputs, *asked)
        assert {output["name"]: "data" in output for output in answer["outputs"]} == {"y": False, "z": True}
        assert rest == Y.tobytes()
        assert header_length is not None


def test_b8_without_a_single_binary_byte_the_answer_is_json(wire) -> None:
    empty = np.empty((0, 2), np.float32)
    for output in (empty, empty.astype(object)):
        answer, rest, header_length = wire.encode({"y": output}, binary_output=True)
        assert (rest, header_length) == (b"", None)
        assert answer["outputs"][0]["parameters"] == {"binary_data_size": 0}
        assert "data" not in answer["outputs"][0]


def test_b9_a_binary_output_has_its_size_and_no_data(wire) -> None:
    strings = np.array([b"a", b"bcd"], object)
    answer, rest, _ = wire.encode({"y": Y, "s": strings, "z": Z}, binary_output=True)
    assert [output["parameters"] for output in answer["outputs"]] == [{"binary_data_size": size} for size in (8, 12, 8)]
    assert rest == Y.tobytes() + b"\1\0\0\0a\3\0\0\0bcd" + Z.tobytes()


def test_large_tensors_are_handed_over_without_a_copy(wire) -> None:
    for dtype in (np.float32, ml_dtypes.bfloat16):
        tensor = np.zeros(JOIN_BYTES_MAX, dtype)
        response = InferResponse(
            model_name="m", model_version="1", outputs={"y": tensor, "z": Z}, timing=Timing(0, 0, 0, 0, 1, 1)
        )
        body, _ = encode_infer(response, InferRequest(model_name="m", inputs={}, binary_output=True), wire.spec_of({}))
        assert isinstance(body, list)
        assert np.shares_memory(np.frombuffer(body[1], np.uint8), tensor.view(np.uint8))
        assert sum(map(len, body)) == len(b"".join(body))


def test_transposed_outputs_are_written_in_row_order(wire) -> None:
    for side in (3, 300):
        table = np.arange(side * side, dtype=np.int32).reshape(side, side).T
        assert wire.encode({"y": table}, binary_output=True)[1] == table.tobytes()


def test_v24_sixteen_bit_floats_go_out_as_binary_only(wire) -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        outputs = {"y": Y.astype(dtype)}
        with pytest.raises(InvalidInput, match=r"`y`.*cannot be written in JSON"):
            wire.encode(outputs)
        assert wire.encode(outputs, binary_output=True)[1] == outputs["y"].tobytes()


def test_what_cannot_be_answered_is_known_before_the_model_runs(wire) -> None:
    spec = wire.spec_of({"h": Y.astype(np.float16), "s": np.array([b""], object), "y": Y})

    def check(*asked: RequestedOutput, binary_output: bool = False) -> None:
        check_outputs(InferRequest(model_name="m", inputs={}, outputs=asked, binary_output=binary_output), spec)

    for asked in ((), (RequestedOutput("h"),), (RequestedOutput("h", 0, False),), (RequestedOutput("s", 2),)):
        with pytest.raises(InvalidInput):
            check(*asked)
    check(RequestedOutput("y"), RequestedOutput("s"))
    check(RequestedOutput("h", 0, True), RequestedOutput("h", 2))
    check(binary_output=True)
    check(RequestedOutput("h"), binary_output=True)


def test_a_dtype_outside_the_protocol_is_the_models_fault(wire) -> None:
    spec = wire.spec_of({})
    for output in (Y.astype(np.complex64), Y.astype(">f4"), np.array(["a"])):
        for binary_output in (False, True):
            with pytest.raises(EngineFailed, match="`y` is an array of"):
                wire.encode({"y": output}, spec=spec, binary_output=binary_output)


def test_an_error_is_one_key_with_the_hint_in_its_text() -> None:
    body = json.loads(encode_error(NotFound('no "x"', hint="try y")))
    assert body == {"error": 'no "x"\nhint: try y'}
    assert json.loads(encode_error(NotFound("no"))) == {"error": "no"}


def test_an_error_with_half_a_surrogate_pair_can_still_be_said() -> None:
    assert "error" in json.loads(encode_error(NotFound("no \ud800")))
