"""Tools told in words, for models whose chat template knows none: what stands in the prompt then.

The tools and how to call them go into the system message, calls back into what the assistant said, and results into a
user's turn; the words are those that Hermes and Qwen models were trained on, so that one that saw them knows them:

    system     ... <tools>{"type": "function", ...}</tools> ...
    assistant  <tool_call>\\n{"name": "weather", "arguments": {"city": "Paris"}}\\n</tool_call>
    user       <tool_response>\\n18 degrees\\n</tool_response>
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from farthing.llm.tool_styles import DEFAULT, ToolStyle
from farthing.types.errors import InvalidInput

Message = Mapping[str, Any]


class Template(Protocol):
    """A chat template, as far as tools are concerned."""

    @property
    def tool_style(self) -> ToolStyle | None: ...

    def encode(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None, **variables: Any
    ) -> list[int]: ...


def style_in(template: Template) -> ToolStyle:
    """How a model with this template is to call tools."""
    return template.tool_style or DEFAULT


def encode(
    template: Template, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, **variables: Any
) -> list[int]:
    """The prompt's token ids; everything about tools is told by the template if it can, else in words."""
    if template.tool_style is not None:
        return template.encode(messages, tools=tools, **variables)
    if not tools:
        return template.encode(plain(messages), **variables)
    said = told(messages, tools)
    try:
        return template.encode(said, **variables)
    except InvalidInput:
        if messages[0]["role"] == "system":
            raise
        return template.encode(without_system(said), **variables)


def told(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation with everything about tools in plain words."""
    said = plain(messages)
    words = _words(tools)
    if said and said[0]["role"] == "system":
        said[0] = {**said[0], "content": f"{said[0]['content']}\n\n{words}"}
        return said
    return [{"role": "system", "content": words}, *said]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The same for templates that take no system message: its words come first in what the user says."""
    first, *rest = messages
    at = next((index for index, message in enumerate(rest) if message["role"] == "user"), None)
    if at is None:
        return [{"role": "user", "content": first["content"]}, *rest]
    rest[at] = {**rest[at], "content": f"{first['content']}\n\n{rest[at]['content']}"}
    return rest


def plain(messages: Sequence[Message]) -> list[Message]:
    """Calls and results in plain words."""
    said: list[Message] = []
    for message in messages:
        calls = message.get("tool_calls")
        if message["role"] == "tool":
            result = f"<tool_response>\n{message['content']}\n</tool_response>"
            if said and said[-1].get("is_result"):
                said[-1] = {**said[-1], "content": f"{said[-1]['content']}\n{result}"}
            else:
                said.append({"role": "user", "content": result, "is_result": True})
        elif calls:
            content = "\n".join([*filter(None, [message["content"]]), *map(_call, calls)])
            said.append({"role": message["role"], "content": content})
        else:
            said.append(message)
    return [{key: value for key, value in message.items() if key != "is_result"} for message in said]


def _call(call: Mapping[str, Any]) -> str:
    function = call["function"]
    written = json.dumps({"name": function["name"], DEFAULT.arguments: function["arguments"]}, ensure_ascii=False)
    return f"{DEFAULT.begin}{DEFAULT.before}{written}{DEFAULT.after}{DEFAULT.end}"


def _words(tools: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{listed}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )
