"""Which requests are traced, changed while serving: Triton's trace settings on spans sent by OpenTelemetry.

A trace that a client began is continued whatever is set here; these say how many inference requests begin one at the
server, for all models and for each. Values are strings both ways, as Triton has them.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Final

from farthing.telemetry.traces import samples
from farthing.types.errors import InvalidInput, Unsupported

FIXED: Final = {"trace_file": "", "trace_mode": "opentelemetry"}
"""Settings that are told and not changed: spans go to --otlp-endpoint."""
LEVELS: Final = ("OFF", "TIMESTAMPS")
RATE_DEFAULT: Final = 1000
"""One request in so many, as in Triton."""
NUMBER_MAX: Final = (1 << 31) - 1
UNLIMITED: Final = -1

Values = Mapping[str, int]
"""`trace_level` (0 for OFF), `trace_rate`, `trace_count`, `log_frequency`; all of them, or those set for a model."""


class _Left:
    """How many traces may still begin; models without a `trace_count` of their own share the server's."""

    __slots__ = ("traces",)

    def __init__(self, traces: int) -> None:
        self.traces = traces


class _Sampler:
    """One set of settings at work."""

    __slots__ = ("chooses", "left", "values")

    def __init__(self, values: Values, left: _Left, chooses: Callable[[], bool] | None = None) -> None:
        self.values = values
        self.left = left
        self.chooses = _one_in(values["trace_rate"]) if chooses is None else chooses

    def begins(self) -> bool:
        left = self.left
        if not self.values["trace_level"] or not left.traces:
            return False
        begins = self.chooses()
        if begins and left.traces > 0:
            left.traces -= 1
        return begins


class TraceSettings:
    """The settings of one server and its models."""

    def __init__(self, *, has_sink: bool, ratio: float = 1.0) -> None:
        """`ratio` of the requests begin a trace until something else is set."""
        self._has_sink = has_sink
        is_on = has_sink and ratio > 0
        self._at_start: Values = {
            "trace_level": int(is_on),
            "trace_rate": max(1, min(NUMBER_MAX, round(1 / ratio))) if is_on else RATE_DEFAULT,
            "trace_count": UNLIMITED,
            "log_frequency": 0,
        }
        self._server = _Sampler(self._at_start, _Left(UNLIMITED), samples(ratio))
        self._of_model: dict[str, Values] = {}
        """What models have of their own."""
        self._models: dict[str, _Sampler] = {}

    def begins(self, model: str = "") -> bool:
        """Whether a trace begins with this request to a model; an empty name for one that is not known."""
        return (self._models.get(model) or self._server).begins()

    def export_after(self, model: str = "") -> int:
        """How many finished requests make an export; 0: as many as come within a second."""
        return (self._models.get(model) or self._server).values["log_frequency"]

    def current(self, model: str = "") -> dict[str, list[str]]:
        """Every setting by its name, of a model or of the server."""
        sampler = self._models.get(model) or self._server
        values = sampler.values
        return {
            **{name: [value] for name, value in FIXED.items()},
            "trace_level": ["TIMESTAMPS" if values["trace_level"] else "OFF"],
            "trace_rate": [str(values["trace_rate"])],
            "trace_count": [str(sampler.left.traces)],
            "log_frequency": [str(values["log_frequency"])],
        }

    def update(self, wanted: Mapping[str, Sequence[str]], model: str = "") -> None:
        """Changes those that are named, of the server or of a model. All are checked before any is changed.

        One without a value is as at start, or, of a model, the server's again. Raises `InvalidInput` for what is no
        setting or no value of it, `Unsupported` for what cannot be had.
        """
        found = {name: self._read(name, values) for name, values in wanted.items()}
        base = dict(self._of_model.get(model, {}) if model else self._server.values)
        for name, value in found.items():
            if name in FIXED:
                continue
            if value is not None:
                base[name] = value
            elif model:
                base.pop(name, None)
            else:
                base[name] = self._at_start[name]
        if not model:
            left = self._server.left if "trace_count" not in found else _Left(base["trace_count"])
            self._server = _Sampler(base, left)
        elif base:
            self._of_model[model] = base
        else:
            self._of_model.pop(model, None)
        self._rebuild(model, is_counted_anew="trace_count" in found)

    def _rebuild(self, changed: str, *, is_counted_anew: bool) -> None:
        """Makes the samplers of models again; one that has a `trace_count` goes on counting unless that was set."""
        server, before = self._server, self._models
        self._models = {}
        for model, own in self._of_model.items():
            left = server.left
            if "trace_count" in own:
                is_new = model not in before or (model == changed and is_counted_anew)
                left = _Left(own["trace_count"]) if is_new else before[model].left
            self._models[model] = _Sampler({**server.values, **own}, left)

    def _read(self, name: str, values: Sequence[str]) -> int | None:
        """The value of a setting; None for none."""
        if name in FIXED:
            if list(values) not in ([], [FIXED[name]]):
                raise Unsupported(f"{name} is chosen when the server starts", hint="see --otlp-endpoint")
            return None
        if name not in self._at_start:
            raise InvalidInput(f"`{name[:40]}` is no trace setting", hint=f"settings: {', '.join(self.current())}")
        if not values:
            return None
        if name == "trace_level":
            return int(self._level(values))
        return _number(name, values, {"trace_rate": 1, "trace_count": UNLIMITED, "log_frequency": 0}[name])

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


def _one_in(rate: int) -> Callable[[], bool]:
    requests = count()
    return lambda: next(requests) % rate == 0


def _number(name: str, values: Sequence[str], low: int) -> int:
    text = values[0]
    digits = text.removeprefix("-")
    is_number = len(values) == 1 and digits.isascii() and digits.isdigit() and len(text) <= 11
    if not is_number or not low <= int(text) <= NUMBER_MAX:
        raise InvalidInput(f"{name}: expected a number from {low}, as a string, got `{text[:40]}`")
    return int(text)
