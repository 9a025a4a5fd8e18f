"""`POST /tokenize` and `/detokenize`, spelled as vLLM spells them: text to token ids and back."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from farthing.protocols.openai.fields import TOKENS_MAX
from farthing.protocols.openai.messages import MESSAGES_MAX, Message, check_message
from farthing.protocols.openai.parse import parse
from farthing.protocols.openai.tools import AnyTool, tool_use
from farthing.types.errors import InvalidField
from farthing.types.tools import ToolUse

_encode = msgspec.json.Encoder().encode

_Id = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)] | None = None
    tools: list[AnyTool] | None = None
    """That the conversation would be told of."""
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    @property
    def tool_use(self) -> ToolUse | None:
        return tool_use(self.tools, None, None)


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids of one text."""

    model: str | None = None
    tokens: list[_Id]


_tokenize = msgspec.json.Decoder(TokenizeBody)
_detokenize = msgspec.json.Decoder(DetokenizeBody)


def parse_tokenize(body: bytes | memoryview) -> TokenizeBody:
    """Raises `InvalidField` naming the field."""
    asked = parse(body, _tokenize)
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidField("give either prompt or messages", field="prompt")
    if asked.tools is not None and asked.messages is None:
        raise InvalidField("tools are only told of in messages", field="tools")
    _ = asked.tool_use  # raises that it is wrong
    for index, message in enumerate(asked.messages or ()):
        check_message(message, f"messages.{index}")
    return asked


def parse_detokenize(body: bytes | memoryview) -> DetokenizeBody:
    """Raises `InvalidField` naming the field."""
    return parse(body, _detokenize)


def tokenize_json(tokens: Sequence[int], context_tokens: int, texts: Sequence[str] | None) -> bytes:
    """The answer of `/tokenize`."""
    answer: dict[str, Any] = {"count": len(tokens), "max_model_len": context_tokens, "tokens": list(tokens)}
    return _encode(answer | {"token_strs": texts})


def detokenize_json(text: str) -> bytes:
    """The answer of `/detokenize`."""
    return _encode({"prompt": text})
