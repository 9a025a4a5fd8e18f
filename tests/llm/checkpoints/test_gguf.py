"""Sound GGUF files are read whole; all others get an error that names the file, and cost nothing."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.llm.checkpoints.gguf_bytes import ARRAY, EVERY_TYPE, SOUND, STRING, U8, U32, gguf, text

from farthing.llm.checkpoints.gguf import STRINGS_MAX, GgufFile
from farthing.llm.checkpoints.opening import open_checkpoint
from farthing.repository.samples import sample_path
from farthing.types.errors import LoadFailed

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def opened(folder: Path, raw: bytes) -> GgufFile:
    path = folder / "model.gguf"
    path.write_bytes(raw)
    return GgufFile(path)


def refused(folder: Path, raw: bytes) -> str:
    with pytest.raises(LoadFailed) as caught:
        opened(folder, raw)
    assert str(folder / "model.gguf") in caught.value.message
    return caught.value.message


def test_every_type_of_metadata_is_read(tmp_path: Path) -> None:
    metadata = opened(tmp_path, SOUND).metadata
    assert list(metadata) == [key for key, _, _ in EVERY_TYPE]
    for key, kind, value in EVERY_TYPE:
        if kind != ARRAY:
            assert metadata[key] == value
    assert metadata["numbers"].tolist() == [1, -2, 3]
    assert metadata["flags"].tolist() == [True, False]
    assert metadata["strings"] == ["a", "", "ß"]
    assert metadata["nested"][0].tolist() == [1, 2]
    assert metadata["nested"][1] == ["x"]


def test_tensors_are_views_of_the_map_with_the_outermost_dimension_first(tmp_path: Path) -> None:
    tensors = opened(tmp_path, SOUND).tensors
    assert {name: (one.kind, one.shape, bytes(one.data)) for name, one in tensors.items()} == {
        "w": ("F32", (2, 4), bytes(range(32))),
        "v": ("Q8_0", (32,), bytes(range(32, 66))),
    }
    assert tensors["w"].data.readonly


def test_version_2_and_another_alignment_are_read(tmp_path: Path) -> None:
    raw = gguf([("general.alignment", U32, 64)], [("w", [1], 0, 64)], bytes(68), version=2, alignment=64)
    assert opened(tmp_path, raw).tensors["w"].shape == (1,)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    for length in range(len(SOUND)):
        refused(tmp_path, SOUND[:length])


def head(tensors: int, entries: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + rest


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"PK\x03\x04" + bytes(60), "does not begin with GGUF"),
        (gguf(version=1), "version 1 of the format; versions 2 and 3"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian, version 3"),
        (head(0, 1 << 63), "9223372036854775808 metadata entries"),
        (head(1 << 40, 0), "1099511627776 tensors"),
        (head(0, 60_000, bytes(100)), "60000 metadata entries with 100 bytes left"),
        (head(0, 1, struct.pack("<Q", 1 << 62) + bytes(40)), "a name of 4611686018427387904 bytes"),
        (head(0, 1, text(b"\xff\xfe") + bytes(40)), "a name that is not UTF-8"),
        (head(0, 1, text("k") + struct.pack("<I", 13) + bytes(40)), "no metadata value is of type 13"),
        (head(0, 1, text("k") + struct.pack("<IQ", STRING, 1 << 60)), "1152921504606846976 bytes expected"),
        (head(0, 1, text("k") + struct.pack("<IIQ", ARRAY, U32, 1 << 62)), "bytes expected"),
        (head(0, 1, text("k") + struct.pack("<IIQ", ARRAY, STRING, STRINGS_MAX + 1)), "strings in an array"),
        (head(0, 1, text("k") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 9 + bytes(99)), "nested"),
        (gguf([("k", U8, 1), ("k", U8, 2)]), "metadata `k` is given twice"),
        (gguf([], [("w", [1], 0, 0)] * 2, bytes(64)), "tensor `w` is given twice"),
        (gguf([], [("w", [1], 99, 0)], bytes(64)), "ggml type 99; types that are read: F32"),
        (gguf([], [("w", [1] * 5, 0, 0)], bytes(64)), "5 dimensions"),
        (gguf([], [("w", [], 0, 0)], bytes(64)), "0 dimensions"),
        (gguf([], [("w", [4, 0], 0, 0)], bytes(64)), "without elements"),
        (gguf([], [("w", [33], 8, 0)], bytes(64)), "rows of 33 do not divide into Q8_0 blocks"),
        (gguf([], [("w", [1], 0, 7)], bytes(64)), "no multiple of 32"),
        (gguf([], [("w", [17], 0, 0)], bytes(64)), "may be incomplete"),
        (gguf([], [("w", [1 << 62, 1 << 62], 0, 0)], bytes(64)), "may be incomplete"),
        (gguf([], [("w", [1], 0, (1 << 64) - 32)], bytes(64)), "may be incomplete"),
        (gguf([("general.alignment", U32, 48)]), "general.alignment is 48"),
        (gguf([("general.alignment", STRING, "x")]), "general.alignment is 'x'"),
    ],
)
def test_a_file_that_lies_is_told_where(tmp_path: Path, raw: bytes, reason: str) -> None:
    assert reason in refused(tmp_path, raw)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="cannot be read"):
        GgufFile(tmp_path)
    with pytest.raises(LoadFailed, match="does not begin with GGUF"):
        opened(tmp_path, b"")
    with pytest.raises(LoadFailed, match="no such file"):
        open_checkpoint(tmp_path / "none.gguf")


@FUZZ
@given(at=st.integers(0, len(SOUND) - 1), byte=st.integers(0, 255), more=st.binary(max_size=8))
def test_bytes_changed_anywhere_are_read_or_refused(tmp_path: Path, at: int, byte: int, more: bytes) -> None:
    raw = bytearray(SOUND)
    raw[at : at + 1 + len(more)] = bytes([byte]) + more
    try:
        file = opened(tmp_path, bytes(raw))
    except LoadFailed:
        return
    for tensor in file.tensors.values():
        assert len(tensor.data) <= len(raw)


@FUZZ
@given(raw=st.binary(max_size=200))
def test_any_bytes_after_a_sound_beginning_are_read_or_refused(tmp_path: Path, raw: bytes) -> None:
    try:
        opened(tmp_path, head(1, 1, raw))
    except LoadFailed:
        return


@pytest.fixture(scope="module")
def real_head() -> bytes:
    """SmolLM2's metadata and table of tensors, with the tensors' bytes left off."""
    path = sample_path("smollm2-135m") / "1" / "model.gguf"
    return path.read_bytes()[: GgufFile(path).header_bytes]


@pytest.mark.samples
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_a_real_files_head_with_bytes_changed_is_read_or_refused(real_head: bytes, tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    raw = np.frombuffer(real_head, np.uint8).copy()
    places = random.integers(0, random.choice([200, 2000, len(raw)]), random.integers(1, 20))
    raw[places] = random.integers(0, 256, len(places))
    (tmp_path / "model.gguf").write_bytes(raw.tobytes())
    with pytest.raises(LoadFailed, match=r"model\.gguf"):  # the tensors are missing: a checkpoint it can never be
        open_checkpoint(tmp_path / "model.gguf")
