"""Messages of streams of frames, from the bytes alone."""

import json
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.protocols.frames import COMMAND_BYTES_MAX, Opening, command_of, decode_frame, frame_options, parse_opening
from farthing.protocols.kserve import WireLimits
from farthing.types.errors import FarthingError, InvalidInput
from farthing.types.frames import FrameOptions, FramePolicy
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest
from farthing.types.tensors import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
SPEC = ModelSpec(name="m", version=1, platform="p", inputs=(X,), outputs=(X,), batch_rows_max=8)
PLAIN = Opening(options=FrameOptions())


def decoded(data: bytes, *, is_text: bool = False, opening: Opening = PLAIN) -> InferRequest:
    return decode_frame(
        data,
        opening,
        is_text=is_text,
        model_name="m",
        model_version="",
        spec=lambda: SPEC,
        limits=WireLimits(body_bytes_max=1 << 20),
    )


def test_a_query_says_how_frames_are_treated() -> None:
    opening = parse_opening(b"policy=all&deadline_ms=12.5&queue_max=7&outputs=a,b")
    assert opening.options == FrameOptions(policy=FramePolicy.ALL, deadline_ns=12_500_000, waiting_max=7)
    assert [output.name for output in opening.outputs] == ["a", "b"]
    assert parse_opening(b"") == PLAIN


@given(st.dictionaries(st.sampled_from(["policy", "deadline_ms", "queue_max", "x"]), st.text(max_size=20)))
def test_options_are_right_or_refused(said: dict[str, str]) -> None:
    try:
        options = frame_options(said)
    except InvalidInput:
        return
    assert 0 <= options.deadline_ns <= 3_600_000 * 10**6
    assert 1 <= options.waiting_max <= 256


@given(st.binary(max_size=60))
def test_a_query_is_read_or_refused(query: bytes) -> None:
    with suppress(InvalidInput):
        parse_opening(query)


@given(st.binary(max_size=100), st.booleans())
def test_a_message_is_a_request_or_refused(data: bytes, is_text: bool) -> None:
    with suppress(FarthingError):
        assert "x" in decoded(data, is_text=is_text).inputs or is_text


def test_no_json_means_one_tensor() -> None:
    rows = np.array([[1, 2]], np.float32)
    request = decoded(bytes(4) + rows.tobytes())
    np.testing.assert_array_equal(request.inputs["x"], rows)
    assert request.binary_output


def test_json_is_as_long_as_its_prefix_says() -> None:
    head = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}]}
    ).encode()
    tensor = np.array([[3, 4]], np.float32)
    request = decoded(struct.pack("<I", len(head)) + head + tensor.tobytes())
    np.testing.assert_array_equal(request.inputs["x"], tensor)
    for wrong in (len(head) - 1, len(head) + 8, 1 << 31):
        with pytest.raises(InvalidInput):
            decoded(struct.pack("<I", wrong) + head + tensor.tobytes())


def test_commands_are_short_and_known() -> None:
    assert command_of(b'{"command":"end"}') == "end"
    assert command_of(b'{"command":"end","inputs":[]}') == ""
    assert command_of(b'{"command":"end"}'.ljust(COMMAND_BYTES_MAX + 1)) == ""
    with pytest.raises(InvalidInput):
        command_of(b'{"command":"dance"}')
