"""Tools that a model may ask a client to call, and its calls.

How they look on the wire belongs to `protocols`, how they look in a model's text to `llm.tool_styles`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function of the client's."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    """The JSON schema of its arguments; None: it takes none, or any."""
    is_strict: bool = False
    """Its arguments must fit the schema even where nobody makes the model call it."""
    field: str = "tools"
    """Where it came in, for errors: `tools.1.function`."""


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says about tools."""

    tools: tuple[Tool, ...]
    """All that the model hears of."""
    callable_names: frozenset[str]
    """Those it may call."""
    is_required: bool = False
    """The answer is a call."""
    is_named: bool = False
    """The client said which."""
    takes_several: bool = True

    @property
    def is_constrained(self) -> bool:
        """Whether a grammar watches over the calls."""
        allowed = [tool for tool in self.tools if tool.name in self.callable_names]
        is_restricted = len(allowed) < len(self.tools) or not self.takes_several
        return self.is_required or is_restricted or any(tool.is_strict for tool in allowed)


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model made."""

    id: str
    name: str
    arguments: str
    """A JSON object, as text."""


class Said(NamedTuple):
    """What came of some text: words for the reader, and calls."""

    text: str
    calls: Sequence[ToolCall]


class CallReader(Protocol):
    """Tells calls from text as an answer grows; however it is cut, the same comes out."""

    def add(self, text: str, /) -> Said:
        """What is known now."""
        ...

    def end(self) -> Said:
        """What was held back, when no more comes."""
        ...
