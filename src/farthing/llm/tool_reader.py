"""Calls out of a model's text, as it comes: what is a call never shows as text, what is none is lost to nobody.

    text               is shown as soon as it cannot be the beginning of a mark, or white space before one
    mark {"name": ...  is held until the JSON is whole; then it is a call, if it names a tool that was offered
    anything else      behind a mark is text after all, the mark included; so is what never becomes whole

White space around a call, and its closing mark, belong to it. Everything is decided character by character, so it makes
no difference how a text was cut. How marks look is in `tool_styles`.
"""

import json
import secrets
import string
from collections.abc import Callable, Set
from typing import Any, Final, NoReturn

from farthing.llm.tool_styles import ToolStyle
from farthing.types.tools import Said, ToolCall

_SPACE: Final = frozenset(" \n\r\t")
_JSON: Final = frozenset(string.ascii_letters + string.digits + ' \n\r\t{}[]:,"+-.')
"""What JSON is made of outside of strings; anything else says at once that this is none."""
_LETTERS: Final = string.ascii_letters + string.digits
ID_CHARACTERS: Final = 24


class ToolReader:
    """One choice."""

    def __init__(self, style: ToolStyle, names: Set[str]) -> None:
        """`names`: tools that may be called."""
        self._style = style
        self._names = names
        self._take: Callable[[str], None] = self._take_text if style.begin else self._take_first
        self._space = ""
        """White space that a mark may follow."""
        self._partial = ""
        """The beginning of a mark."""
        self._json = _Scanner(takes_lists=style.is_list)
        self._shown: list[str] = []
        self._calls: list[ToolCall] = []

    def add(self, text: str) -> Said:
        """What is known now."""
        for character in text:
            self._take(character)
        return self._said()

    def end(self) -> Said:
        """Nothing more comes: what is held is text, unless it closes a call that was told."""
        if self._take != self._take_behind:
            self._show(self._space + self._partial + self._json.text)
        self._space = self._partial = ""
        return self._said()

    def _said(self) -> Said:
        said = Said("".join(self._shown), tuple(self._calls))
        self._shown, self._calls = [], []
        return said

    def _show(self, text: str) -> None:
        self._shown.append(text)

    # -- one character, by what came before ----------------------------------------------------------------------------

    def _take_text(self, character: str) -> None:
        """Among words: a mark may begin."""
        mark = self._style.begin
        if mark.startswith(self._partial + character):
            self._partial += character
            if self._partial == mark:
                self._take = self._take_json
            return
        if character in _SPACE:
            if self._partial:
                self._show(self._space + self._partial)
                self._space = self._partial = ""
            self._space += character
            return
        text = self._partial + character
        start = next(at for at in range(1, len(text) + 1) if mark.startswith(text[at:]))
        self._show(self._space + text[:start])
        self._space, self._partial = "", text[start:]

    def _take_first(self, character: str) -> None:
        """Where a call has no mark, an answer is one from its first brace on, or text."""
        if character in _SPACE:
            self._space += character
        elif character == "{":
            self._take = self._take_json
            self._take_json(character)
        else:
            self._show(self._space + character)
            self._space = ""
            self._take = self._show

    def _take_json(self, character: str) -> None:
        """Behind a mark."""
        scanner = self._json
        if not scanner.takes(character):
            self._give_up()
            self._take(character)
        elif scanner.is_whole:
            calls = self._calls_in(scanner.text)
            if not calls:
                self._give_up()
                return
            self._calls += calls
            self._begin_anew(self._take_behind)

    def _take_behind(self, character: str) -> None:
        """Behind a call: white space and the closing mark belong to it."""
        if character in _SPACE and not self._partial:
            return
        end = self._style.end
        if end and end.startswith(self._partial + character):
            self._partial += character
            if self._partial == end:
                self._begin_anew(self._take_behind_all)
            return
        text = self._partial + character
        self._begin_anew(self._take_text if self._style.begin else self._show)
        for one in text:
            self._take(one)

    def _take_behind_all(self, character: str) -> None:
        """Behind a closing mark: white space belongs to it."""
        if character not in _SPACE:
            self._begin_anew(self._take_text if self._style.begin else self._show)
            self._take(character)

    def _give_up(self) -> None:
        """This was no call."""
        self._show(self._space + self._partial + self._json.text)
        self._begin_anew(self._take_text if self._style.begin else self._show)

    def _begin_anew(self, take: Callable[[str], None]) -> None:
        self._space = self._partial = ""
        self._json = _Scanner(takes_lists=self._style.is_list)
        self._take = take

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _calls_in(self, text: str) -> list[ToolCall]:
        """What the JSON says; nothing if any part of it is no call."""
        try:
            value = json.loads(text, strict=False, parse_constant=_refuse)
            calls = [self._call(one) for one in (value if isinstance(value, list) else [value])]
        except (ValueError, RecursionError):
            return []
        return [call for call in calls if call is not None] if None not in calls else []

    def _call(self, value: Any) -> ToolCall | None:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(arguments, str):  # JSON in a string, as on the wire
            arguments = json.loads(arguments or "{}", strict=False, parse_constant=_refuse)
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            return None
        return ToolCall(id=self._new_id(), name=name, arguments=_written(arguments))

    def _new_id(self) -> str:
        size = self._style.id_characters
        characters = "".join(secrets.choice(_LETTERS) for _ in range(size or ID_CHARACTERS))
        return characters if size else f"call_{characters}"


class _Scanner:
    """Where an object or an array ends, without understanding it."""

    def __init__(self, *, takes_lists: bool) -> None:
        self._first = _SPACE | set("{[" if takes_lists else "{")
        self._read: list[str] = []
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.is_whole = False

    @property
    def text(self) -> str:
        return "".join(self._read)

    def takes(self, character: str) -> bool:
        """Takes it in, unless no JSON goes on so."""
        if self._is_in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._is_in_string = False
        elif character not in (_JSON if self._depth else self._first):
            return False
        elif character == '"':
            self._is_in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.is_whole = not self._depth
        self._read.append(character)
        return True


def _written(arguments: dict[str, Any]) -> str:
    """As text again, whatever liberties the model took."""
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a character, which only an escape can say
        return json.dumps(arguments, allow_nan=False)
    return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
