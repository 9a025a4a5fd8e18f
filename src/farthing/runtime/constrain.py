"""What a request asks of an answer's form and of tools, to what its model can follow: a grammar, a prompt, a reader.

Compiling takes from a millisecond to a second or so, and belongs on a thread (`server.preparation`).
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from farthing.llm.grammar_text import GrammarText, calls_grammar, form_grammar
from farthing.llm.tool_prompt import style_in
from farthing.llm.tool_reader import ToolReader
from farthing.llm.tool_styles import ToolStyle
from farthing.runtime.language_model import LanguageModel
from farthing.types.errors import InvalidField, InvalidInput
from farthing.types.forms import Form
from farthing.types.grammar import Grammar
from farthing.types.tools import ToolUse

SEARCH_S_MAX: Final = 1.0
"""How long is looked for the one of many tools whose schema is at fault, to name it."""


def grammar_of(model: LanguageModel, form: Form | None, use: ToolUse | None = None) -> Grammar | None:
    """The grammar of the answers; None: any text. Raises `InvalidField` for what is not understood, or too much."""
    if use is not None and (use.is_constrained or form is not None):
        mark_id = next(iter(call_mark_ids(model)), None)
        written = calls_grammar(use, _style(model), mark_id, form)
    elif form is not None:
        written = form_grammar(form)
    else:
        return None
    try:
        return model.grammars.compile(written.text)
    except InvalidInput as error:
        raise _at_its_field(model, written, error) from None


def template_tools(use: ToolUse | None) -> list[Mapping[str, Any]] | None:
    """Tools as chat templates expect them (those of transformers)."""
    if use is None:
        return None
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in use.tools
    ]


def call_reader(model: LanguageModel, use: ToolUse) -> ToolReader:
    """Tells calls from one choice's text."""
    return ToolReader(_style(model), use.callable_names)


def call_mark_ids(model: LanguageModel) -> frozenset[int]:
    """The control token that begins a call, where it is one: text must show it, for `call_reader` to find it."""
    begin = _style(model).begin
    token = model.tokenizer.token_id(begin) if begin else None
    return frozenset({token}) & model.tokenizer.special_ids if token is not None else frozenset()


def _style(model: LanguageModel) -> ToolStyle:
    assert model.template is not None  # or there would be no prompt
    return style_in(model.template)


def _at_its_field(model: LanguageModel, written: GrammarText, error: InvalidInput) -> InvalidField:
    """The same error, at the part that does not compile by itself."""
    stops_s = time.monotonic() + SEARCH_S_MAX
    for field, text in written.parts if len(written.parts) > 1 else ():
        if time.monotonic() > stops_s:
            break
        try:
            model.grammars.check(text)
        except InvalidInput as of_part:
            return InvalidField(f"{field}: {of_part.message}", field=field, hint=of_part.hint)
    field = written.parts[0].field if len(written.parts) == 1 else _common(written)
    return InvalidField(f"{field}: {error.message}", field=field, hint=error.hint)


def _common(written: GrammarText) -> str:
    """What all parts are of: `tools`, when they are too much together."""
    first: Sequence[str] = sorted({part.field.partition(".")[0] for part in written.parts})
    return first[0] if len(first) == 1 else "tools"
