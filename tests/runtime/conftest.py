"""Fixtures of the runtime's tests."""

from pathlib import Path

import pytest
from tests.runtime.shop import Shop

from farthing.engines.onnxruntime import OnnxExecutable


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop")


@pytest.fixture
def threads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run happens on the event loop, so that one can be held up."""
    monkeypatch.setattr(OnnxExecutable, "can_run_on_event_loop", False)
