"""BYTES tensors on the wire; that every one of them survives stands in test_fuzz."""

import numpy as np
import pytest

from farthing.protocols.kserve.bytes_tensor import object_tensor, pack_bytes, unpack_bytes
from farthing.types.errors import EngineFailed, InvalidInput


def test_elements_keep_their_bytes_and_their_order() -> None:
    tensor = object_tensor([b"a", b"", b"\0\xff", b"d"], (2, 2))
    packed = pack_bytes(tensor, "y")
    assert packed == b"\1\0\0\0a\0\0\0\0\2\0\0\0\0\xff\1\0\0\0d"
    assert unpack_bytes(packed, (2, 2), 4, "x").tolist() == tensor.tolist()


def test_a_count_that_cannot_be_is_refused_before_reading() -> None:
    with pytest.raises(InvalidInput, match="expected 1000 string elements, but 8 bytes hold at most 2"):
        unpack_bytes(bytes(8), (1000,), 1000, "x")


def test_a_model_that_puts_other_things_into_bytes_is_named() -> None:
    for wrong in ("text", 3, None, bytearray(b"a")):
        tensor = np.empty(1, object)
        tensor[0] = wrong
        with pytest.raises(EngineFailed, match="`y` is BYTES and the model put a"):
            pack_bytes(tensor, "y")


def test_objects_stay_what_they_are() -> None:
    assert object_tensor([b"ab", b"cd"], (2,)).shape == (2,)
    assert object_tensor([], (0, 3)).shape == (0, 3)
