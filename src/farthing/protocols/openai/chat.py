"""`POST /v1/chat/completions`: what a client may send, as values.

    {"model": "...", "messages": [{"role": "user", "content": "..."}], "max_completion_tokens": 64, "stream": true}

A parsed request knows nothing of the model: its template, tokenizer and context come in `runtime`. What is not
honoured yet (tools, structured output, images) is refused by name.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from farthing.protocols.openai.errors import unsupported
from farthing.protocols.openai.fields import Fields, check_fields, refuse
from farthing.protocols.openai.parse import parse
from farthing.types.errors import InvalidField
from farthing.types.generation import TOP_LOGPROBS_MAX

MESSAGES_MAX: Final = 8192
"""Messages of one conversation; a context holds fewer."""
PARTS_MAX: Final = 1024

VARIABLES_MAX: Final = 32
"""Of `chat_template_kwargs`."""
_RESERVED: Final = frozenset(
    {
        "messages",
        "tools",
        "add_generation_prompt",
        "adds_generation_prompt",
        "continues_final",
        "continue_final_message",
    }
)
"""Names in a template that are not the client's to set; special tokens are refused by the template itself."""

_UNSUPPORTED: Final = (
    "functions",
    "function_call",
    "audio",
    "web_search_options",
    "chat_template",
    "documents",
)
"""A template from a request is code from a stranger."""


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


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn, any role; which fields a role needs is checked in `_check_message`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Meta(max_length=PARTS_MAX)] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChatBody(Fields, frozen=True, kw_only=True):
    """The body, field by field as OpenAI documents it."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: Annotated[int, Meta(ge=0, le=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    modalities: list[str] | None = None
    add_generation_prompt: bool | None = None  # X
    continue_final_message: bool | None = None  # X
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=VARIABLES_MAX)] | None = None  # X

    functions: Any = None
    function_call: Any = None
    audio: Any = None
    web_search_options: Any = None
    chat_template: Any = None
    documents: Any = None

    @property
    def tokens_max(self) -> int | None:
        """Tokens of an answer at most; None: the rest of the context. The newer name wins."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def logprobs_top(self) -> int | None:
        """As `SamplingParameters.logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None


_decoder = msgspec.json.Decoder(ChatBody)


def parse_chat(body: bytes | memoryview) -> ChatBody:
    """A request for a chat completion. Raises `InvalidField` naming the field."""
    asked = parse(body, _decoder)
    check_fields(asked)
    refuse(asked, _UNSUPPORTED)
    _check_tokens_max(asked)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise InvalidField("top_logprobs is only allowed when logprobs is true", field="top_logprobs")
    _check_format(asked.response_format)
    _check_tools(asked.tools, asked.tool_choice)
    if asked.modalities and asked.modalities != ["text"]:
        raise unsupported("modalities", "output other than text")
    for index, message in enumerate(asked.messages):
        _check_message(message, f"messages.{index}")
    for name in asked.chat_template_kwargs or ():
        if name in _RESERVED or not name.isidentifier() or name.startswith("_") or name.endswith("_token"):
            raise InvalidField(f"chat_template_kwargs: `{name[:32]}` cannot be set", field="chat_template_kwargs")
    if asked.continue_final_message and asked.add_generation_prompt:
        raise InvalidField(
            "continue_final_message and add_generation_prompt contradict", field="continue_final_message"
        )
    if asked.continue_final_message and asked.messages[-1].role != "assistant":
        raise InvalidField(
            "continue_final_message wants the last message to be the assistant's", field="continue_final_message"
        )
    return asked


def template_messages(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """Messages as chat templates expect them: plain text, `developer` called system, arguments as objects."""
    return [_template_message(message) for message in messages]


def _template_message(message: Message) -> Mapping[str, Any]:
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message),
    }
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return plain


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


def _check_tokens_max(asked: ChatBody) -> None:
    for name in ("max_completion_tokens", "max_tokens"):
        if getattr(asked, name) == 0:
            raise InvalidField(f"{name}: expected at least 1", field=name)
    if asked.tokens_max is not None and (asked.min_tokens or 0) > asked.tokens_max:
        raise InvalidField(
            f"min_tokens is {asked.min_tokens}, more than the {asked.tokens_max} allowed", field="min_tokens"
        )


def _check_format(wanted: ResponseFormat | None) -> None:
    if wanted is None or wanted.type == "text":
        return
    if wanted.type == "json_schema" and wanted.json_schema is None:
        raise InvalidField(
            "response_format.json_schema: missing, and the type is json_schema", field="response_format.json_schema"
        )
    raise unsupported("response_format", f"`response_format` of type {wanted.type}", hint="ask for JSON in the prompt")


def _check_tools(tools: list[Any] | None, choice: Any) -> None:
    if tools is None:
        if choice is not None:
            raise InvalidField("tool_choice is only allowed when tools are given", field="tool_choice")
        return
    if not tools:
        raise InvalidField("tools: an empty array; leave it out instead", field="tools")
    if choice != "none":
        raise unsupported("tools", "calling tools", hint="leave tools out, or send tool_choice `none`")


def _check_message(message: Message, at: str) -> None:
    if message.role == "function":
        raise unsupported(f"{at}.role", "the role `function`", hint="use the role `tool`")
    if message.tool_calls is not None and message.role != "assistant":
        raise InvalidField(f"{at}.tool_calls: only the assistant calls tools", field=f"{at}.tool_calls")
    if message.role == "tool" and not message.tool_call_id:
        raise InvalidField(f"{at}.tool_call_id: missing; a tool's message says which call it answers", field=at)
    if message.content is None:
        is_said_otherwise = message.role == "assistant" and (message.tool_calls or message.refusal is not None)
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
