"""What an answer must look like, written as a grammar: a form that a client asked for, calls of tools, or either.

    start: %json {"type": "object"}
    start: call ("\\n" call)*       call: "<tool_call>\\n" body "\\n</tool_call>"       body: call_0 | call_1

Text only: compiling it belongs to `grammar`. Each part remembers the field it was made from, so that one that does not
compile can be named.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from farthing.llm.tool_styles import ToolStyle
from farthing.types.forms import ChoiceForm, Form, JsonForm, LarkForm, RegexForm
from farthing.types.tools import Tool, ToolUse

WHITE_SPACE: Final = r"[\x20\x0A\x0D\x09]{1,64}"
"""Between the parts of JSON. Bounded: models that have lost the thread write line breaks for ever."""

ANY_OBJECT: Final = {"type": "object"}


class GrammarPart(NamedTuple):
    """A grammar of its own, for the field it came from."""

    field: str
    text: str


class GrammarText(NamedTuple):
    """The whole, and its parts."""

    text: str
    parts: Sequence[GrammarPart]


def form_grammar(wanted: Form) -> GrammarText:
    """An answer of this form."""
    text = _form(wanted)
    return GrammarText(text, [GrammarPart(wanted.field, text)])


def calls_grammar(use: ToolUse, style: ToolStyle, mark_id: int | None, form: Form | None) -> GrammarText:
    """Calls of the tools; where none is required, also an answer in the form, or any text.

    `mark_id` is the style's opening mark, where that is a control token.
    """
    tools = [tool for tool in use.tools if tool.name in use.callable_names]
    takes_several = use.takes_several and style.takes_several
    mark = "" if not style.begin else _quoted(style.begin) if mark_id is None else f"<[{mark_id}]>"
    body = _body(tools, style)
    if use.is_required:
        text = f"start: calls\n{_calls(style, mark, takes_several)}\n{body}"
    elif isinstance(form, JsonForm) and not style.begin:
        text = f"start: {_calls_or_json(tools, style, form)}"
    elif form is not None:
        answer = _form(form).removeprefix("start:")
        text = f"start: calls | answer\nanswer:{answer}\n{_calls(style, mark, takes_several)}\n{body}"
    else:
        text = f"{_calls_or_text(style, mark, mark_id is not None, takes_several)}\n{body}"
    parts = [GrammarPart(f"{tool.field}.parameters", f"start: {_arguments(tool)}") for tool in tools]
    if form is not None:
        parts.append(GrammarPart(form.field, _form(form)))
    return GrammarText(text, parts)


def _form(wanted: Form) -> str:
    match wanted:
        case JsonForm():
            return f"start: {_json(wanted.schema)}"
        case RegexForm():
            return f"start: /{_in_slashes(wanted.pattern)}/"
        case ChoiceForm():
            return "start: " + " | ".join(map(_quoted, wanted.choices))
        case LarkForm():
            return wanted.source


def _calls(style: ToolStyle, mark: str, takes_several: bool) -> str:
    """Nothing but calls."""
    if style.is_list:
        more = f" ({_quoted(style.between)} body)*" if takes_several else ""
        return f"calls: {mark} {_quoted('[')} body{more} {_quoted(']' + style.end)}"
    more = f" ({_quoted(style.between)} call)*" if takes_several else ""
    return f"calls: call{more}\ncall: {mark} {_literal(style.before)} body {_literal(style.after + style.end)}"


def _calls_or_text(style: ToolStyle, mark: str, is_control: bool, takes_several: bool) -> str:
    """Any text; behind the mark, a call."""
    if not mark:  # an answer that begins with `{` is a call
        return f"start: TEXT | calls\nTEXT: /([^{{ \\n\\r\\t](.|\\n)*)?/\n{_calls(style, mark, False)}"
    if style.is_list:
        more = f" ({_quoted(style.between)} body)*" if takes_several else ""
        rest = f"rest: {_quoted('[')} body{more} {_quoted(']' + style.end)}"
    else:
        rest = f"rest: {_literal(style.before)} body {_literal(style.after + style.end)}"
    # Once more text may follow, the mark may come again.
    repeat = "*" if takes_several and not style.is_list else "?"
    text = "TEXT: /(.|\\n)*/"
    if is_control:
        return f"start: (TEXT {mark} rest){repeat} TEXT\n{rest}\n{text}"
    if repeat == "?":
        return f"start: TEXT | head rest\nhead[lazy]: TEXT {mark}\n{rest}\n{text}"
    return f"start: (head rest)* TEXT\nhead[lazy]: TEXT {mark}\n{rest}\n{text}"


def _body(tools: Sequence[Tool], style: ToolStyle) -> str:
    """The JSON of one call; the schemas stand by themselves, for references in them begin at their own root."""
    lines = ["body: " + " | ".join(f"call_{number}" for number in range(len(tools)))]
    for number, tool in enumerate(tools):
        opening = f'{{"name": {json.dumps(tool.name)}, "{style.arguments}": '
        lines.append(f"call_{number}: {_quoted(opening)} {_arguments(tool)} {_quoted('}')}")
    return "\n".join(lines)


def _calls_or_json(tools: Sequence[Tool], style: ToolStyle, form: JsonForm) -> str:
    """Where calls have no mark, only the whole of a JSON tells them from an answer: they are one schema."""
    ways: list[Any] = []
    for number, tool in enumerate(tools):
        within = f"#/anyOf/{number}/properties/{style.arguments}"
        properties = {"name": {"const": tool.name}, style.arguments: _moved(_schema_of(tool), within)}
        ways.append({**ANY_OBJECT, "properties": properties, "required": [*properties], "additionalProperties": False})
    return _json({"anyOf": [*ways, _moved(form.schema, f"#/anyOf/{len(ways)}")]})


def _moved(schema: Any, to: str) -> Any:
    """The schema with its references, which begin at its root, as they are when that stands elsewhere."""
    if isinstance(schema, list):
        return [_moved(one, to) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(value, to) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = to + reference[1:]
    return moved


def _arguments(tool: Tool) -> str:
    return _json(_schema_of(tool), is_lenient=not tool.is_strict)


def _schema_of(tool: Tool) -> Mapping[str, Any]:
    """Of its arguments, which are an object whatever it says."""
    schema = tool.parameters or ({**ANY_OBJECT, "additionalProperties": False} if tool.is_strict else ANY_OBJECT)
    return schema if "type" in schema else {**ANY_OBJECT, **schema}


def _json(schema: Mapping[str, Any], *, is_lenient: bool = False) -> str:
    """`is_lenient`: keywords that are not understood are passed over."""
    options = {"whitespace_pattern": WHITE_SPACE, "lenient": is_lenient}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _literal(text: str) -> str:
    return _quoted(text) if text else ""


_SLASHES: Final = re.compile(r"\\.|/|\n", re.DOTALL)


def _in_slashes(pattern: str) -> str:
    """The expression as it may stand between slashes."""
    written = {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}
    return _SLASHES.sub(lambda found: written.get(found[0], found[0]), pattern)
