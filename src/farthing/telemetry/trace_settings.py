"""Which requests are traced, changed while serving: Triton's trace settings on spans sent by OpenTelemetry.

A trace that a client began is continued whatever is set here; these say how many begin at the server, over HTTP. Values
are strings both ways, as Triton has them.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Final

from farthing.telemetry.traces import samples
from farthing.types.errors import InvalidInput, Unsupported

FIXED: Final = {"trace_file": "", "log_frequency": "0", "trace_mode": "opentelemetry"}
"""Settings that are told and not changed: spans go to --otlp-endpoint."""
LEVELS: Final = ("OFF", "TIMESTAMPS")
RATE_DEFAULT: Final = 1000
"""One request in so many, as in Triton."""
RATE_MAX: Final = (1 << 31) - 1
UNLIMITED: Final = -1


class TraceSettings:
    """The settings of one server."""

    def __init__(self, *, has_sink: bool, ratio: float = 1.0) -> None:
        """`ratio` of the requests begin a trace until something else is set."""
        self._has_sink = has_sink
        self._is_on = has_sink and ratio > 0
        self._rate = round(1 / ratio) if self._is_on else RATE_DEFAULT
        self._left = UNLIMITED
        self._chooses = samples(ratio)

    def begins(self) -> bool:
        """Whether a trace begins with this request."""
        if not self._is_on or not self._left:
            return False
        begins = self._chooses()
        if begins and self._left > 0:
            self._left -= 1
        return begins

    def current(self) -> dict[str, list[str]]:
        """Every setting by its name."""
        return {
            **{name: [value] for name, value in FIXED.items()},
            "trace_level": ["TIMESTAMPS" if self._is_on else "OFF"],
            "trace_rate": [str(self._rate)],
            "trace_count": [str(self._left)],
        }

    def update(self, wanted: Mapping[str, Sequence[str]]) -> None:
        """Changes those that are named; one without a value is as at start. All are checked before any is changed.

        Raises `InvalidInput` for what is no setting or no value of it, `Unsupported` for what cannot be had.
        """
        is_on, rate, left = self._is_on, self._rate, self._left
        for name, values in wanted.items():
            if name == "trace_level":
                is_on = self._level(values)
            elif name == "trace_rate":
                rate = _number(name, values or [str(RATE_DEFAULT)], 1)
            elif name == "trace_count":
                left = _number(name, values or [str(UNLIMITED)], UNLIMITED)
            elif name in FIXED:
                if list(values) not in ([], [FIXED[name]]):
                    raise Unsupported(f"{name} is chosen when the server starts", hint="see --otlp-endpoint")
            else:
                known = ", ".join(self.current())
                raise InvalidInput(f"`{name[:40]}` is no trace setting", hint=f"settings: {known}")
        self._is_on, self._rate, self._left = is_on, rate, left
        requests = count()
        self._chooses = lambda: next(requests) % rate == 0

    def _level(self, values: Sequence[str]) -> bool:
        for value in values:
            if value not in LEVELS:
                raise InvalidInput(f"trace_level: `{value[:40]}` is not known", hint=f"levels: {', '.join(LEVELS)}")
        if "OFF" in values and len(values) > 1:
            raise InvalidInput("trace_level: OFF stands alone")
        is_on = "TIMESTAMPS" in values
        if is_on and not self._has_sink:
            raise Unsupported("there is nowhere to send traces to", hint="start with --otlp-endpoint")
        return is_on


def _number(name: str, values: Sequence[str], low: int) -> int:
    text = values[0]
    digits = text.removeprefix("-")
    is_number = len(values) == 1 and digits.isascii() and digits.isdigit() and len(text) <= 11
    if not is_number or not low <= int(text) <= RATE_MAX:
        raise InvalidInput(f"{name}: expected a number from {low}, as a string, got `{text[:40]}`")
    return int(text)
