"""Messages that would take far more memory than bytes."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.protocols.kserve_grpc.conftest import GrpcWire

from farthing.protocols.kserve_grpc import message_class, parse_message
from farthing.protocols.kserve_grpc.fields import FIELDS_MAX, check_fields
from farthing.types.errors import TooLarge

EMPTY_INPUT = b"\x2a\x00"
EMPTY_PARAMETER = b"\x22\x00"


def inside_an_input(fields: bytes) -> bytes:
    size = len(fields)
    length = bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return b"\x2a" + bytes([*length, size]) + fields


@pytest.mark.parametrize(
    "data",
    [
        EMPTY_INPUT * 10_000_000,
        EMPTY_PARAMETER * 10_000_000,
        inside_an_input(EMPTY_PARAMETER * 10_000_000),
        b"\xfb\x3f" + EMPTY_INPUT * 10_000_000 + b"\xfc\x3f",
    ],
    ids=["inputs", "parameters", "parameters of an input", "inputs in an unknown group"],
)
def test_too_many_fields_are_refused_before_they_are_parsed(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(TooLarge, match=f"more than {FIELDS_MAX} fields"):
        parse_message(message_class("ModelInferRequest"), data)
    assert time.process_time() - started < 2


def test_the_largest_request_that_other_limits_allow_has_room(grpc_wire: GrpcWire) -> None:
    dims = [1] * 32
    names = [str(index) for index in range(1024)]
    message = grpc_wire.message(
        inputs=[{"name": name, "datatype": "INT8", "shape": dims} for name in names],
        outputs=[{"name": name} for name in names],
        raw_input_contents=[b"\1"] * 1024,
    )
    assert len(grpc_wire.decode(parse_message(type(message), message.SerializeToString())).inputs) == 1024


def test_elements_of_typed_contents_are_no_fields(grpc_wire: GrpcWire) -> None:
    message = grpc_wire.one("BYTES", [100_000], bytes_contents=[b""] * 100_000)
    assert grpc_wire.decode(parse_message(type(message), message.SerializeToString())).inputs["x"].shape == (100_000,)


@given(st.binary(max_size=300))
def test_random_bytes_are_counted_to_their_end(data: bytes) -> None:
    check_fields(data)
