"""`POST /v1/chat/completions`: what a client may send, as values.

    {"model": "...", "messages": [{"role": "user", "content": "..."}], "max_completion_tokens": 64, "stream": true}

A parsed request knows nothing of the model: its template, tokenizer and context come in `runtime`. Messages are in
`messages`, tools in `tools`, the form of answers in `forms`; what is not honoured is refused by name.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from farthing.protocols.openai.errors import unsupported
from farthing.protocols.openai.fields import Fields, check_fields, refuse
from farthing.protocols.openai.messages import MESSAGES_MAX, Message, check_message
from farthing.protocols.openai.parse import parse
from farthing.protocols.openai.tools import (
    AnyTool,
    Function,
    FunctionCall,
    FunctionTool,
    ToolChoice,
    function_use,
    tool_use,
)
from farthing.types.errors import InvalidField
from farthing.types.generation import TOP_LOGPROBS_MAX
from farthing.types.tools import ToolUse

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
    "audio",
    "web_search_options",
    "chat_template",
    "documents",
)
"""A template from a request is code from a stranger."""


class ChatBody(Fields, frozen=True, kw_only=True):
    """The body, field by field as OpenAI documents it."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: Annotated[int, Meta(ge=0, le=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    tools: list[AnyTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = None
    function_call: FunctionCall | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    modalities: list[str] | None = None
    add_generation_prompt: bool | None = None  # X
    continue_final_message: bool | None = None  # X
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=VARIABLES_MAX)] | None = None  # X

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

    @property
    def needs_grammar(self) -> bool:
        """Of calls, too."""
        is_free = self.tool_choice in (None, "none", "auto") and self.parallel_tool_calls is not False
        is_strict = any(isinstance(tool, FunctionTool) and tool.function.strict for tool in self.tools or ())
        return super().needs_grammar or is_strict or not is_free or self.functions is not None

    @property
    def tool_use(self) -> ToolUse | None:
        """What the model may call; None: nothing."""
        if self.functions is not None or self.function_call is not None:
            return function_use(self.functions, self.function_call)
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)


_decoder = msgspec.json.Decoder(ChatBody)


def parse_chat(body: bytes | memoryview) -> ChatBody:
    """A request for a chat completion. Raises `InvalidField` naming the field."""
    asked = parse(body, _decoder)
    check_fields(asked)
    refuse(asked, _UNSUPPORTED)
    _check_tokens_max(asked)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise InvalidField("top_logprobs is only allowed when logprobs is true", field="top_logprobs")
    if (asked.tools is not None or asked.tool_choice is not None) and asked.functions is not None:
        raise InvalidField("give either tools or functions, which is their older name", field="functions")
    _ = asked.tool_use  # raises that it is wrong
    if asked.modalities and asked.modalities != ["text"]:
        raise unsupported("modalities", "output other than text")
    for index, message in enumerate(asked.messages):
        check_message(message, f"messages.{index}")
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


def _check_tokens_max(asked: ChatBody) -> None:
    for name in ("max_completion_tokens", "max_tokens"):
        if getattr(asked, name) == 0:
            raise InvalidField(f"{name}: expected at least 1", field=name)
    if asked.tokens_max is not None and (asked.min_tokens or 0) > asked.tokens_max:
        raise InvalidField(
            f"min_tokens is {asked.min_tokens}, more than the {asked.tokens_max} allowed", field="min_tokens"
        )
