"""A checkpoint's configuration, read with care: config.json or GGUF metadata, wrong values named with their file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.types.errors import LoadFailed

SIZE_MAX: Final = 1 << 24
"""Most a size or a count may be; the largest vocabulary is a sixtieth of it."""
_REQUIRED: Final = object()


class Settings:
    """Values by name. `prefix` is put before every name (`llama.` in GGUF metadata)."""

    def __init__(self, where: Path, values: Mapping[str, Any], *, prefix: str = "") -> None:
        self.where = where
        self._values = values
        self._prefix = prefix

    def has(self, name: str) -> bool:
        """Whether it is given, and not null."""
        return self._values.get(self._prefix + name) is not None

    def get(self, name: str) -> Any:
        """The value as it is; None if it is not given."""
        return self._values.get(self._prefix + name)

    def integer(self, name: str, default: Any = _REQUIRED, *, least: int = 1, most: int = SIZE_MAX) -> int:
        value = self._or_default(name, default)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(name, f"an integer of {least} to {most} is needed")
        return value

    def number(self, name: str, default: Any = _REQUIRED, *, least: float = 0.0, most: float = 1e12) -> float:
        value = self._or_default(name, default)
        if type(value) not in {int, float} or not least <= value <= most:
            raise self.wrong(name, f"a number of {least:g} to {most:g} is needed")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._or_default(name, default)
        if type(value) is not bool:
            raise self.wrong(name, "true or false is needed")
        return value

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        value = self._or_default(name, default)
        if type(value) is not str:
            raise self.wrong(name, "a text is needed")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        value = self.get(name)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list) or not all(type(one) in {int, float} for one in value):
            raise self.wrong(name, "an array of numbers is needed")
        return tuple(map(float, value))

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.get(name)
        if not isinstance(value, list) or not all(type(one) is str for one in value):
            raise self.wrong(name, "an array of texts is needed")
        return tuple(value)

    def section(self, name: str) -> "Settings":
        """The object of that name; empty if it is not given."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self.wrong(name, "an object is needed")
        return Settings(self.where, value or {})

    def refuse(self, *names: str) -> None:
        """Raises where a flag is set that changes the forward pass in a way nobody here knows."""
        for name in names:
            if self.get(name) is not None and self.get(name) is not False:
                raise self.wrong(name, "this variant is not supported")

    def one_of(self, name: str, allowed: Sequence[str], default: Any = _REQUIRED) -> str:
        value = self.text(name, default)
        if value not in allowed:
            raise self.wrong(name, f"supported: {', '.join(allowed)}")
        return value

    def wrong(self, name: str, reason: str) -> LoadFailed:
        found = f"is {str(self.get(name))[:100]!r}" if self.has(name) else "is missing"
        return LoadFailed(f"{self.where}: `{self._prefix}{name}` {found}; {reason}")

    def _or_default(self, name: str, default: Any) -> Any:
        value = self.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise LoadFailed(f"{self.where}: `{self._prefix}{name}` is missing")
        return default
