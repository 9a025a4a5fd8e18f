"""What is logged, changed while serving: Triton's log settings on Python's `logging`.

Triton switches each severity by itself, `logging` knows a lowest one; both are honoured. Where lines go and how they
look is chosen at start (`logs.configure`) and only told here.
"""

import logging
from collections.abc import Mapping
from typing import Final

from farthing.telemetry.logs import QueueHandler
from farthing.types.errors import InvalidInput, Unsupported

Value = bool | int | str

SEVERITIES: Final = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
VERBOSE: Final = "log_verbose_level"
FIXED: Final = {"log_file": "", "log_format": "ISO8601"}
"""Settings that are told and not changed: lines go to stderr, with times in RFC 3339."""


class LogSettings:
    """The settings of one process."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("farthing")
        level = self._logger.getEffectiveLevel()
        self._values: dict[str, Value] = {name: level <= number for name, number in SEVERITIES.items()}
        self._values[VERBOSE] = int(level <= logging.DEBUG)
        self._switch = _Switch()

    def current(self) -> dict[str, Value]:
        """Every setting by its name."""
        return {**FIXED, **self._values}

    def update(self, wanted: Mapping[str, Value | None]) -> None:
        """Changes those that are named; None leaves one as it is. All are checked before any is changed.

        Raises `InvalidInput` for what is no setting or no value of it, `Unsupported` for those chosen at start.
        """
        changes: dict[str, Value] = {}
        for name, value in wanted.items():
            if value is None:
                continue
            if name in FIXED:
                if value != FIXED[name]:
                    raise Unsupported(f"{name} is chosen when the server starts", hint="see --log-format")
            elif name in SEVERITIES:
                if not isinstance(value, bool):
                    raise InvalidInput(f"{name}: expected true or false, got {value!r:.40}")
                changes[name] = value
            elif name == VERBOSE:
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise InvalidInput(f"{name}: expected a number from 0, got {value!r:.40}")
                changes[name] = value
            else:
                known = ", ".join((*FIXED, *SEVERITIES, VERBOSE))
                raise InvalidInput(f"`{name[:40]}` is no log setting", hint=f"settings: {known}")
        self._values |= changes
        if changes:
            self._apply()

    def _apply(self) -> None:
        spoken = [number for name, number in SEVERITIES.items() if self._values[name]]
        lowest = min(spoken, default=logging.CRITICAL)
        self._logger.setLevel(logging.DEBUG if self._values[VERBOSE] else lowest)
        self._switch.silent = frozenset(SEVERITIES.values()) - set(spoken)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, QueueHandler) and self._switch not in handler.filters:
                handler.addFilter(self._switch)


class _Switch(logging.Filter):
    """Keeps severities out that are switched off, whatever the lowest is."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: frozenset[int] = frozenset()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno not in self.silent or not record.name.startswith("farthing")
