"""What goes into an arena or a socket comes out the same, and what cannot be true is refused."""

import os
import socket
import struct
import threading
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from farthing.engines.python import channel, messages
from farthing.engines.python.channel import (
    Arena,
    Connection,
    Place,
    decode_bytes,
    encode_bytes,
    read_tensor,
    write_tensors,
)
from farthing.types.tensors import NUMPY_DTYPES, Tensor

FIXED = [name for name in NUMPY_DTYPES if name != "BYTES"]


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create()
    yield arena
    arena.close()


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    name = draw(st.sampled_from(list(NUMPY_DTYPES)))
    if name == "BYTES":
        tensor: Tensor = np.empty(shape, object)
        tensor[...] = b""
        flat = tensor.reshape(-1)
        flat[:] = draw(st.lists(st.binary(max_size=20), min_size=flat.size, max_size=flat.size))
        return tensor
    dtype = NUMPY_DTYPES[name]
    size = int(np.prod(shape)) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if name == "BOOL":
        data = bytes(b & 1 for b in data)
    return np.frombuffer(data, dtype).reshape(shape) if size else np.empty(shape, dtype)


@given(st.lists(tensors(), max_size=4))
def test_tensors_come_out_of_an_arena_as_they_went_in(given_tensors: list[Tensor]) -> None:
    arena = Arena.create()
    places = write_tensors(arena, [(str(i), tensor) for i, tensor in enumerate(given_tensors)])
    view = arena.memory()
    for i, (place, tensor) in enumerate(zip(places, given_tensors, strict=True)):
        found = read_tensor(view, place)
        assert place.name == str(i)
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        if tensor.dtype == object:
            assert found.tolist() == tensor.tolist()
        else:
            assert found.tobytes() == tensor.tobytes()
    found = view = None  # type: ignore[assignment]
    arena.close()


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bytes_survive_their_encoding(elements: list[bytes]) -> None:
    tensor: Tensor = np.empty(len(elements), object)
    tensor[:] = elements
    assert decode_bytes("t", encode_bytes("t", tensor), (len(elements),)).tolist() == elements


@given(st.binary(max_size=60), st.lists(st.integers(0, 9), max_size=3))
def test_no_bytes_crash_the_decoder(data: bytes, shape: list[int]) -> None:
    try:
        tensor = decode_bytes("t", data, shape)
    except ValueError:
        return
    assert encode_bytes("t", tensor) == data
    assert list(tensor.shape) == shape


def test_text_becomes_utf8_and_a_number_in_bytes_is_refused() -> None:
    assert encode_bytes("t", np.array(["é"], object)) == b"\x02\x00\x00\x00\xc3\xa9"
    with pytest.raises(ValueError, match=r"`t` is BYTES and holds a int; allowed: bytes, str"):
        encode_bytes("t", np.array([1], object))


@given(
    st.sampled_from(["FP32", "BYTES", "BF16", "NONSENSE"]),
    st.lists(st.integers(-2, 1 << 40), max_size=3),
    st.integers(-5, 1 << 17),
    st.integers(-5, 1 << 17),
)
def test_a_place_that_cannot_be_is_refused(datatype: str, shape: list[int], offset: int, size: int) -> None:
    view = np.zeros(channel.ARENA_BYTES_FIRST, np.uint8)
    try:
        tensor = read_tensor(view, Place("t", datatype, tuple(shape), offset, size))
    except ValueError:
        return
    assert tensor.shape == tuple(shape)
    assert offset + size <= len(view)


def test_a_strided_tensor_is_gathered(arena: Arena) -> None:
    tensor = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::3].T
    (place,) = write_tensors(arena, [("t", tensor)])
    assert read_tensor(arena.memory(), place).tolist() == tensor.tolist()


def test_a_dtype_without_a_name_is_refused(arena: Arena) -> None:
    with pytest.raises(ValueError, match="`t` has dtype complex128"):
        write_tensors(arena, [("t", np.zeros(1, complex))])


def test_both_sides_see_an_arena_grow_and_old_views_stay_true(arena: Arena) -> None:
    other = Arena(os.dup(arena.fd))
    (place,) = write_tensors(arena, [("t", np.arange(8))])
    early = read_tensor(other.memory(), place)
    (large,) = write_tensors(arena, [("u", np.full(1 << 20, 7, np.uint8))])
    assert other.size < large.size
    other.refresh()
    assert (read_tensor(other.memory(), large) == 7).all()
    assert early.tobytes() == b"\x07" * 64
    other.close()


def test_an_arena_has_a_limit(arena: Arena) -> None:
    with pytest.raises(ValueError, match=f"allowed: {channel.ARENA_BYTES_MAX}"):
        arena.grow(channel.ARENA_BYTES_MAX + 1)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="seals are Linux's")
def test_the_other_side_cannot_shrink_an_arena_under_us(arena: Arena) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 0)


@given(st.lists(st.binary(max_size=200_000), min_size=1, max_size=4))
def test_messages_arrive_whole_and_in_order(payloads: list[bytes]) -> None:
    ours, theirs = map(Connection, socket.socketpair())

    def send_all() -> None:
        for payload in payloads:
            ours.send(payload)
        ours.close()

    sender = threading.Thread(target=send_all)
    sender.start()
    assert [theirs.receive() for _ in payloads] == payloads
    assert theirs.receive() is None
    sender.join()
    theirs.close()


def test_a_descriptor_travels_with_its_message(arena: Arena) -> None:
    ours, theirs = map(Connection, socket.socketpair())
    write_tensors(arena, [("t", np.arange(3))])
    ours.send(b"here", arena.fd)
    message, fd = theirs.receive_with_fd()
    received = Arena(fd)
    assert message == b"here"
    assert received.map[:24] == arena.map[:24]
    for end in (received, ours, theirs):
        end.close()


def test_a_message_that_claims_too_much_is_refused_unread() -> None:
    ours, theirs = map(Connection, socket.socketpair())
    ours.socket.sendall(struct.pack("<I", channel.MESSAGE_BYTES_MAX + 1))
    with pytest.raises(ValueError, match=f"allowed: {channel.MESSAGE_BYTES_MAX}"):
        theirs.receive()
    with pytest.raises(ValueError, match=f"allowed: {channel.MESSAGE_BYTES_MAX}"):
        ours.send(bytes(channel.MESSAGE_BYTES_MAX + 1))
    ours.close()
    theirs.close()


def test_a_message_cut_off_by_the_end_is_no_message() -> None:
    ours, theirs = map(Connection, socket.socketpair())
    ours.socket.sendall(struct.pack("<I", 10) + b"half")
    ours.close()
    assert theirs.receive() is None
    theirs.close()


@given(st.binary(max_size=100))
def test_bytes_that_are_no_message_say_so(data: bytes) -> None:
    for decode in (messages.decode_answer, messages.decode_order):
        try:
            decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="seals are Linux's")
def test_memory_that_a_rare_large_batch_took_is_given_back(arena: Arena) -> None:
    large, small = np.ones(8 * channel.ARENA_BYTES_KEPT, np.uint8), np.ones(8, np.uint8)

    def blocks() -> int:
        return os.fstat(arena.fd).st_blocks * 512

    write_tensors(arena, [("t", large)])
    assert blocks() >= large.nbytes
    for _ in range(channel.RARE_BATCHES):
        write_tensors(arena, [("t", small)])
    assert blocks() <= channel.ARENA_BYTES_KEPT
    (place,) = write_tensors(arena, [("t", large)])
    assert read_tensor(arena.memory(), place).all()
