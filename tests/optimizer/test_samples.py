"""Data that fit are read, data that do not are told what they lack, and no sample both calibrates and judges."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.optimizer.samples import divide, fit_samples, read_samples
from farthing.types.errors import InvalidInput
from farthing.types.tensors import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
IDS = TensorSpec(name="ids", datatype="INT64", shape=(-1, -1))


def rows(count: int) -> np.ndarray:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


def test_an_npz_with_labels_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=rows(8), labels=np.arange(8))
    samples = read_samples(tmp_path / "data.npz", [X], has_batch_axis=True)
    assert len(samples) == 8
    assert samples.labels is not None
    assert np.array_equal(samples.inputs["x"], rows(8))


def test_an_npy_is_enough_for_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(4).astype(np.float64))
    assert read_samples(tmp_path / "x.npy", [X], has_batch_axis=True).inputs["x"].dtype == np.float32
    with pytest.raises(InvalidInput, match="has 2 inputs"):
        read_samples(tmp_path / "x.npy", [X, IDS], has_batch_axis=True)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"y": rows(4)}, "no array for input `x`; found: `y`"),
        ({"x": rows(4)[:, :2]}, "wants .samples, 3."),
        ({"x": rows(4).astype(np.complex64)}, "is complex64; the model wants FP32"),
        ({"x": rows(1)}, "1 sample; at least 2"),
        ({"x": rows(4), "labels": np.arange(3)}, "different numbers of samples: `x` 4, `labels` 3"),
        ({"x": rows(4), "label": np.arange(4)}, "array `label` is no input of this model"),
    ],
)
def test_data_that_do_not_fit_are_told_why(arrays: dict[str, np.ndarray], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        fit_samples(arrays, [X], has_batch_axis=True)


def test_a_model_without_a_batch_dimension_takes_samples_with_and_without_its_leading_one() -> None:
    fixed = TensorSpec(name="x", datatype="FP32", shape=(1, 3))
    for array in (rows(5), rows(5)[:, None]):
        assert fit_samples({"x": array}, [fixed], has_batch_axis=False).inputs["x"].shape == (5, 1, 3)


@pytest.mark.parametrize("broken", [b"", b"PK\x03\x04 torn", b"not a zip at all" * 100])
def test_a_broken_file_is_an_error_and_not_a_crash(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(broken)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_samples(tmp_path / "data.npz", [X], has_batch_axis=True)


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name in ("data.npz", "data.npy"):
            path = Path(folder) / name
            path.write_bytes(data)
            with pytest.raises(InvalidInput):
                read_samples(path, [X], has_batch_axis=True)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([{"a": 1}, {"b": 2}], object))
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_samples(tmp_path / "data.npz", [X], has_batch_axis=True)


@given(st.integers(2, 500))
def test_no_sample_both_calibrates_and_judges_and_none_is_lost(count: int) -> None:
    calibrating, judging = divide(fit_samples({"x": rows(count)}, [X], has_batch_axis=True))
    mine, theirs = ({float(v) for v in part.inputs["x"][:, 0]} for part in (calibrating, judging))
    assert not mine & theirs
    assert len(mine) + len(theirs) == count
    assert mine
    assert theirs
