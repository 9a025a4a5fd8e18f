"""A conversation as clients send it, and as chat templates expect it.

    {"role": "user", "content": "..."}        {"role": "tool", "tool_call_id": "call_1", "content": "..."}

Roles and parts are checked here; what a model makes of them is its template's.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from farthing.protocols.openai.errors import unsupported
from farthing.types.errors import InvalidField

MESSAGES_MAX: Final = 8192
"""Messages of one conversation; a context holds fewer."""
PARTS_MAX: Final = 1024
CALLS_MAX: Final = 256
"""Calls of one message."""


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class RefusalPart(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    refusal: str


class ImagePart(msgspec.Struct, frozen=True, tag_field="type", tag="image_url"):
    image_url: Any = None


class AudioPart(msgspec.Struct, frozen=True, tag_field="type", tag="input_audio"):
    input_audio: Any = None


class FilePart(msgspec.Struct, frozen=True, tag_field="type", tag="file"):
    file: Any = None


Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: str | None = None
    """JSON in a string."""


class CalledTool(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn, any role; which fields a role needs is checked in `check_message`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Meta(max_length=PARTS_MAX)] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[CalledTool], Meta(max_length=CALLS_MAX)] | None = None
    function_call: CalledFunction | None = None
    """A call in the words that `functions` had."""
    refusal: str | None = None


_ROLES: Final = {"developer": "system", "function": "tool"}


def template_messages(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """Messages as chat templates expect them: plain text, `developer` called system, arguments as objects."""
    return [_template_message(message) for message in messages]


def _template_message(message: Message) -> Mapping[str, Any]:
    plain: dict[str, Any] = {"role": _ROLES.get(message.role, message.role), "content": _text(message)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.role == "function":
        plain["tool_call_id"] = _old_id(message.name or "")
    calls = [(call.id, call.function) for call in message.tool_calls or ()]
    if message.function_call is not None:
        calls.append((_old_id(message.function_call.name), message.function_call))
    if calls:
        plain["tool_calls"] = [
            {
                "id": number,
                "type": "function",
                "function": {"name": function.name, "arguments": _arguments(function.arguments)},
            }
            for number, function in calls
        ]
    return plain


def _old_id(name: str) -> str:
    """Calls of `functions` have no ids; a result belongs to the call of its name."""
    return f"call_{name}"


def _text(message: Message) -> str:
    content = message.content
    if content is None:
        return message.refusal or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, TextPart) else getattr(part, "refusal", "") for part in content)


def _arguments(text: str | None) -> Any:
    """What templates print with `tojson`; text that is no JSON object stays text."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def check_message(message: Message, at: str) -> None:
    """Raises `InvalidField` naming what is missing, or does not belong to this role."""
    for name in ("tool_calls", "function_call"):
        if getattr(message, name) is not None and message.role != "assistant":
            raise InvalidField(f"{at}.{name}: only the assistant calls tools", field=f"{at}.{name}")
    if message.role == "function" and not message.name:
        raise InvalidField(f"{at}.name: missing; it says which function this is of", field=f"{at}.name")
    if message.role == "tool" and not message.tool_call_id:
        raise InvalidField(
            f"{at}.tool_call_id: missing; a tool's message says which call it answers", field=f"{at}.tool_call_id"
        )
    if message.content is None:
        is_said_otherwise = message.role == "assistant" and (
            message.tool_calls or message.function_call is not None or message.refusal is not None
        )
        if not is_said_otherwise:
            raise InvalidField(f"{at}.content: missing", field=f"{at}.content")
        return
    if isinstance(message.content, str):
        return
    for index, part in enumerate(message.content):
        where = f"{at}.content.{index}"
        if isinstance(part, ImagePart | AudioPart | FilePart):
            kind = {ImagePart: "image_url", AudioPart: "input_audio", FilePart: "file"}[type(part)]
            raise unsupported(where, f"content of type {kind}", hint="these models read text")
        if isinstance(part, RefusalPart) and message.role != "assistant":
            raise InvalidField(f"{where}: only the assistant refuses", field=where)
