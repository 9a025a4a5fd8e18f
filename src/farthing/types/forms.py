"""The form an answer is to have: JSON of a schema, what an expression matches, one of some texts, or a grammar's.

Fields of the wire become these in `protocols`, and these become grammars in `llm`. Each remembers the field it came in,
so that an error found much later still names it.
"""

from collections.abc import Mapping
from typing import Any

import msgspec


class JsonForm(msgspec.Struct, frozen=True, kw_only=True):
    """JSON that fits a schema."""

    schema: Mapping[str, Any]
    field: str


class RegexForm(msgspec.Struct, frozen=True, kw_only=True):
    """A text that an expression matches from beginning to end."""

    pattern: str
    field: str


class ChoiceForm(msgspec.Struct, frozen=True, kw_only=True):
    """One of these texts."""

    choices: tuple[str, ...]
    field: str


class LarkForm(msgspec.Struct, frozen=True, kw_only=True):
    """A text of a context-free grammar, in Lark's words."""

    source: str
    field: str


Form = JsonForm | RegexForm | ChoiceForm | LarkForm
