"""Tool calls on the wire: in a message, in the chunks of a stream, and what they make of the finish reason.

    {"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]}

`functions`, the older words, allow for one call, `function_call`, without an id.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from farthing.types.generation import FinishReason
from farthing.types.tools import CallReader, ToolCall

Json = dict[str, Any]


class Calling(msgspec.Struct, frozen=True, kw_only=True):
    """How calls of one request are read and told."""

    new_reader: Callable[[], CallReader]
    """One for each choice."""
    is_named: bool = False
    """The client named the function. OpenAI's own answers then end with `stop`, as if nothing had been chosen."""
    is_old: bool = False
    """Asked for as `functions`."""

    def finish(self, finish: FinishReason | None, calls: int) -> str | None:
        """The finish reason of a choice that made so many calls."""
        if finish is not FinishReason.STOP or not calls or self.is_named:
            return finish
        return "function_call" if self.is_old else "tool_calls"

    def message(self, text: str, calls: Sequence[ToolCall]) -> Json:
        """What the assistant said, whole."""
        said: Json = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls and self.is_old:
            said["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
        elif calls:
            said["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in calls
            ]
        return said

    def deltas(self, call: ToolCall, index: int) -> Iterator[Json]:
        """The same, in parts: who is called, then with what."""
        if self.is_old:
            yield {"function_call": {"name": call.name, "arguments": ""}}
            yield {"function_call": {"arguments": call.arguments}}
            return
        first = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield {"tool_calls": [first]}
        yield {"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]}
