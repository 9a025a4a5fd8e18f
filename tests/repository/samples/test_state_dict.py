"""The reader of PyTorch's old file format: right on good files, harmless on all others."""

import contextlib
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from farthing.repository.samples.recipes.state_dict import MAGIC, PROTOCOL, read_state_dict
from farthing.types.errors import LoadFailed

A_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def tensor(key: str, elements: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """The pickle of one tensor, as torch.save of old wrote it."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += b"J" + struct.pack("<i", elements) + b"NtQ"
    offset_bytes = b"J" + struct.pack("<i", offset)
    hooks = b"\x89" + b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + offset_bytes
        + integers(shape)
        + integers(strides)
        + hooks
        + b"tR"
    )


def file_of(tensors: dict[str, bytes], storages: dict[str, NDArray[np.float32]]) -> bytes:
    head = pickle.dumps(MAGIC, 2) + pickle.dumps(PROTOCOL, 2) + pickle.dumps({"little_endian": True}, 2)
    body = b"\x80\x02ccollections\nOrderedDict\n)R("
    body += b"".join(text(name) + value for name, value in tensors.items()) + b"u."
    tail = b"".join(struct.pack("<q", numbers.size) + numbers.tobytes() for numbers in storages.values())
    return head + body + pickle.dumps(list(storages), 2) + tail


def a_file(array: NDArray[np.float32]) -> bytes:
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return file_of({"weight": tensor("0", array.size, array.shape, strides)}, {"0": array})


def read(tmp_path: Path, content: bytes) -> dict[str, NDArray[np.float32]]:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    return read_state_dict(path)


@A_FILE
@given(arrays(np.float32, array_shapes(max_dims=4, max_side=5)))
def test_tensors_come_back_as_they_were_saved(tmp_path: Path, array: NDArray[np.float32]) -> None:
    assert read(tmp_path, a_file(array))["weight"].tobytes() == array.tobytes()


def test_permuted_axes_are_followed(tmp_path: Path) -> None:
    numbers = np.arange(24, dtype=np.float32)
    content = file_of({"weight": tensor("0", 24, (4, 2, 3), (1, 12, 4))}, {"0": numbers})
    expected = numbers.reshape(2, 3, 4).transpose(2, 0, 1)
    np.testing.assert_array_equal(read(tmp_path, content)["weight"], expected)


def test_a_pickle_that_runs_a_command_is_refused_and_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> object:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    head = pickle.dumps(MAGIC, 2) + pickle.dumps(PROTOCOL, 2) + pickle.dumps({"little_endian": True}, 2)
    for content in (
        pickle.dumps(Hostile(), 2),
        head + pickle.dumps({"weight": Hostile()}, 2),
        head + pickle.dumps(Hostile(), 4),
    ):
        with pytest.raises(LoadFailed, match="refused"):
            read(tmp_path, content)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "os system", "torch._utils _rebuild_parameter", "torch.storage _load_from_bytes"]
)
def test_every_other_name_is_refused(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    content = f"c{module}\n{attribute}\n)R.".encode()
    with pytest.raises(LoadFailed, match=f"`{name}`, which is refused"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((2, 3), (3, 1), 1),  # past the end
        ((7,), (1,), 0),
        ((2,), (-1,), 3),
        ((1000, 1000, 1000), (0, 0, 0), 0),  # a gigabyte from one number
        ((2, 3), (1,), 0),
        ((-2, -3), (3, 1), 0),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    content = file_of({"weight": tensor("0", 6, shape, strides, offset)}, {"0": np.zeros(6, np.float32)})
    with pytest.raises(LoadFailed, match="weight"):
        read(tmp_path, content)


@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_file_cut_short_is_named(tmp_path: Path, share: float) -> None:
    content = a_file(np.ones((3, 4), np.float32))
    with pytest.raises(LoadFailed, match=r"weights\.pth"):
        read(tmp_path, content[: int(len(content) * share)])


@A_FILE
@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(a_file(np.ones((3, 4), np.float32)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(LoadFailed):
        read(tmp_path, bytes(content))


@A_FILE
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    head = pickle.dumps(MAGIC, 2) + pickle.dumps(PROTOCOL, 2)
    for whole in (content, head + content):
        with pytest.raises(LoadFailed):
            read(tmp_path, whole)
