"""Which tools a client offers, and what it says about calling them: `tools`, `tool_choice`, `parallel_tool_calls`.

    {"tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
     "tool_choice": "required"}

`functions` and `function_call`, their older names, are read as the same. How a model is told of them is for `llm`.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from farthing.protocols.openai.errors import unsupported
from farthing.protocols.openai.json_schema import checked_schema
from farthing.types.errors import InvalidField
from farthing.types.tools import Tool, ToolUse

TOOLS_MAX: Final = 1024
"""Of a request. OpenAI takes 128; agents with many servers of tools send more."""
NAME: Final = "^[a-zA-Z0-9_-]{1,64}$"


class Function(msgspec.Struct, frozen=True, kw_only=True):
    name: Annotated[str, Meta(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    function: Function


class CustomTool(msgspec.Struct, frozen=True, tag_field="type", tag="custom"):
    custom: Any = None


class FunctionName(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class NamedChoice(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    function: FunctionName


class CustomChoice(msgspec.Struct, frozen=True, tag_field="type", tag="custom"):
    custom: Any = None


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Meta(min_length=1, max_length=TOOLS_MAX)]


class AllowedChoice(msgspec.Struct, frozen=True, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


AnyTool = FunctionTool | CustomTool
ToolChoice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice | CustomChoice
FunctionCall = Literal["none", "auto"] | FunctionName


def tool_use(tools: Sequence[AnyTool] | None, choice: ToolChoice | None, is_parallel: bool | None) -> ToolUse | None:
    """What the model may call; None: nothing. Raises `InvalidField`."""
    if tools is None:
        if choice is not None and choice != "none":
            raise InvalidField("tool_choice is only allowed when tools are given", field="tool_choice")
        return None
    if not tools:
        raise InvalidField("tools: an empty array; leave it out instead", field="tools")
    functions: list[tuple[Function, str]] = []
    for index, tool in enumerate(tools):
        if isinstance(tool, CustomTool):
            raise unsupported(f"tools.{index}", "a tool of type custom", hint="use one of type function")
        functions.append((tool.function, f"tools.{index}.function"))
    offered = _offered(functions)
    return _use(offered, choice, takes_several=is_parallel is not False)


def function_use(functions: Sequence[Function] | None, call: FunctionCall | None) -> ToolUse | None:
    """The same, said in the older words: one call at most."""
    if functions is None:
        if call is not None and call != "none":
            raise InvalidField("function_call is only allowed when functions are given", field="function_call")
        return None
    if not functions:
        raise InvalidField("functions: an empty array; leave it out instead", field="functions")
    offered = _offered([(function, f"functions.{index}") for index, function in enumerate(functions)])
    choice: ToolChoice | None = NamedChoice(call) if isinstance(call, FunctionName) else call
    return _use(offered, choice, takes_several=False, at="function_call.name")


def _offered(functions: Sequence[tuple[Function, str]]) -> tuple[Tool, ...]:
    if len(functions) > TOOLS_MAX:
        raise InvalidField(f"tools: {len(functions)} of them; at most {TOOLS_MAX} a request", field="tools")
    offered: dict[str, Tool] = {}
    for function, field in functions:
        name, parameters = function.name, function.parameters
        if not re.fullmatch(NAME.strip("^$"), name):  # `$` alone would let a line break through
            raise InvalidField(f"{field}.name: not a name", field=f"{field}.name")
        if name in offered:
            raise InvalidField(f"{field}.name: `{name}` is there twice", field=f"{field}.name")
        if parameters is not None:
            checked_schema(parameters, f"{field}.parameters")
        offered[name] = Tool(
            name=name,
            description=function.description,
            parameters=parameters or None,
            is_strict=bool(function.strict),
            field=field,
        )
    return tuple(offered.values())


def _use(
    offered: tuple[Tool, ...],
    choice: ToolChoice | None,
    *,
    takes_several: bool,
    at: str = "tool_choice.function.name",
) -> ToolUse | None:
    if choice == "none":
        return None
    names = frozenset(tool.name for tool in offered)
    if isinstance(choice, CustomChoice):
        raise unsupported("tool_choice", "a choice of type custom")
    if isinstance(choice, NamedChoice):
        return ToolUse(
            tools=offered,
            callable_names=frozenset({_known(choice.function.name, names, at)}),
            is_required=True,
            is_named=True,
            takes_several=False,
        )
    is_required = choice == "required"
    if isinstance(choice, AllowedChoice):
        is_required = choice.allowed_tools.mode == "required"
        where = "tool_choice.allowed_tools.tools.{}.function.name"
        allowed = enumerate(choice.allowed_tools.tools)
        names = frozenset(_known(one.function.name, names, where.format(index)) for index, one in allowed)
    return ToolUse(tools=offered, callable_names=names, is_required=is_required, takes_several=takes_several)


def _known(name: str, names: frozenset[str], at: str) -> str:
    if name not in names:
        raise InvalidField(f"{at}: `{name[:64]}` is not among the tools", field=at)
    return name
