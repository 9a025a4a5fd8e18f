"""What an inference gives back: the outputs by name, and what the server said about the request."""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from farthing.types.requests import Parameter
from farthing.types.tensors import Tensor


class TimingEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry of a `Server-Timing` header: how long it took, if it says so, and its description."""

    duration_ms: float | None = None
    description: str = ""


class InferResult(dict[str, Tensor]):
    """Outputs by name; a dictionary, with the rest of the answer as attributes."""

    def __init__(
        self,
        outputs: Mapping[str, Tensor],
        *,
        model_name: str = "",
        model_version: str = "",
        request_id: str = "",
        parameters: Mapping[str, Parameter] | None = None,
        timing: Mapping[str, TimingEntry] | None = None,
    ) -> None:
        super().__init__(outputs)
        self.model_name = model_name
        self.model_version = model_version
        self.request_id = request_id
        self.parameters = dict(parameters or {})
        self.timing = dict(timing or {})
        """By name, as the server's `Server-Timing` header has them; empty if it sends none."""


_ENTRY: Final = re.compile(
    r'\s*([\w!#$%&\'*+.^`|~-]+)((?:\s*;\s*[\w-]+\s*=\s*(?:"(?:\\.|[^"\\])*"|[^;,\s"]*))*)\s*(?:,|$)'
)
_PARAMETER: Final = re.compile(r';\s*([\w-]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^;,\s"]*))')


def parse_server_timing(header: str) -> dict[str, TimingEntry]:
    """The entries of a `Server-Timing` header (W3C). What cannot be read is left out: this is advice, not an answer."""
    entries = {}
    at = 0
    while match := _ENTRY.match(header, at):
        at = match.end()
        duration, description = None, ""
        for name, quoted, bare in _PARAMETER.findall(match[2]):
            value = re.sub(r"\\(.)", r"\1", quoted) or bare
            if name.lower() == "dur":
                duration = _number(value)
            elif name.lower() == "desc":
                description = value
        entries[match[1]] = TimingEntry(duration, description)
    return entries


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
