"""The form a client asks its answer to have: OpenAI's `response_format`, and vLLM's `structured_outputs`.

{"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}}
{"structured_outputs": {"choice": ["yes", "no"]}}
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from farthing.protocols.openai.errors import unsupported
from farthing.protocols.openai.json_schema import checked_schema
from farthing.types.errors import InvalidField
from farthing.types.forms import ChoiceForm, Form, JsonForm, LarkForm, RegexForm

PATTERN_CHARACTERS_MAX: Final = 1 << 14
GRAMMAR_CHARACTERS_MAX: Final = 1 << 16
CHOICES_MAX: Final = 4096

ANY_OBJECT: Final = {"type": "object"}


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    """`strict` makes no difference here: what is generated always fits."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True):
    """One of these."""

    json: str | dict[str, Any] | None = None
    """A schema, or one as text."""
    regex: Annotated[str, Meta(min_length=1, max_length=PATTERN_CHARACTERS_MAX)] | None = None
    choice: (
        Annotated[
            list[Annotated[str, Meta(min_length=1, max_length=GRAMMAR_CHARACTERS_MAX)]],
            Meta(min_length=1, max_length=CHOICES_MAX),
        ]
        | None
    ) = None
    grammar: Annotated[str, Meta(min_length=1, max_length=GRAMMAR_CHARACTERS_MAX)] | None = None
    """In Lark's words."""
    json_object: bool | None = None
    structural_tag: Any = None


def form_of(wanted: ResponseFormat | None, structured: StructuredOutputs | None) -> Form | None:
    """The form; None: text as it comes. Raises `InvalidField`."""
    first = _of_response_format(wanted)
    second = None if structured is None else _of_structured_outputs(structured)
    if first is not None and second is not None:
        raise InvalidField("give either response_format or structured_outputs", field="structured_outputs")
    return first or second


def _of_response_format(wanted: ResponseFormat | None) -> Form | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JsonForm(schema=ANY_OBJECT, field="response_format")
    at = "response_format.json_schema"
    if wanted.json_schema is None:
        raise InvalidField(f"{at}: missing, and the type is json_schema", field=at)
    if wanted.json_schema.schema is None:
        raise InvalidField(f"{at}.schema: missing", field=f"{at}.schema", hint="or send type json_object")
    return JsonForm(schema=checked_schema(wanted.json_schema.schema, f"{at}.schema"), field=f"{at}.schema")


def _of_structured_outputs(wanted: StructuredOutputs) -> Form | None:
    if wanted.structural_tag is not None:
        raise unsupported("structured_outputs.structural_tag", "`structural_tag`")
    names = ("json", "regex", "choice", "grammar", "json_object")
    said = [name for name in names if getattr(wanted, name) not in (None, False)]
    if len(said) > 1:
        raise InvalidField(f"structured_outputs: {' and '.join(said)} exclude each other", field="structured_outputs")
    if wanted.json is not None:
        at = "structured_outputs.json"
        return JsonForm(schema=checked_schema(_read(wanted.json, at), at), field=at)
    if wanted.json_object:
        return JsonForm(schema=ANY_OBJECT, field="structured_outputs.json_object")
    if wanted.regex is not None:
        return RegexForm(pattern=wanted.regex, field="structured_outputs.regex")
    if wanted.choice is not None:
        return ChoiceForm(choices=tuple(wanted.choice), field="structured_outputs.choice")
    if wanted.grammar is not None:
        at = "structured_outputs.grammar"
        if "::=" in wanted.grammar:
            raise unsupported(at, "a grammar in EBNF (`::=`)", hint="write it in Lark: `start: ...`")
        return LarkForm(source=wanted.grammar, field=at)
    return None


def _read(schema: str | dict[str, Any], at: str) -> Any:
    if not isinstance(schema, str):
        return schema
    try:
        return msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        raise InvalidField(f"{at}: not JSON", field=at) from None
