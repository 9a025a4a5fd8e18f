"""Where the cache is, and what `is_cached` believes."""

from pathlib import Path

import pytest

from farthing.repository.samples import cache
from farthing.repository.samples.catalogue import INPUTS, SAMPLES


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FARTHING_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/farthing"),
        ({}, "/home/somebody/.cache/farthing"),
        ({"FARTHING_CACHE": "~/c"}, "/home/somebody/c"),
    ],
)
def test_the_nearest_setting_decides(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("FARTHING_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.cache_folder() == Path(expected)


def test_models_and_inputs_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARTHING_CACHE", "/a")
    assert {path.parent for sample in SAMPLES for path in cache.folders_of(sample)} == {Path("/a/models")}
    assert {path.parent for sample in INPUTS for path in cache.folders_of(sample)} == {Path("/a/inputs")}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sample": "basic-pitch"}', "\0"])
def test_a_folder_with_a_strange_stamp_is_not_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("FARTHING_CACHE", str(tmp_path))
    sample = next(sample for sample in SAMPLES if sample.name == "basic-pitch")
    folder = cache.folders_of(sample)[0]
    folder.mkdir(parents=True)
    (folder / cache.STAMP).write_text(content)
    assert not cache.is_cached(sample)
