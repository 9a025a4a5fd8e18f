"""What no test may leave behind for the next one, whatever the order."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def log_levels_stay() -> Iterator[None]:
    """Servers set the levels of loggers, at their start and when clients ask: this process has them only once."""
    loggers = [logging.getLogger(name) for name in ("", "farthing", "farthing.access")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
