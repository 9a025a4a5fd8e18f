"""Searches of these tests keep their journals apart from a person's."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def searches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where journals are."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("farthing.optimizer.journal.cache_folder", lambda: folder)
    return folder / "searches"
