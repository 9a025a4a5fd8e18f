"""What a page about a way of calling tools has to say.

    begin before {"name": "weather", "arguments": {"city": "Paris"}} after end     a call
    begin [{...}, {...}] end                                                        calls, where one mark opens a list

`llm.tool_reader` reads text by it, `llm.grammar_text` makes models write by it.
"""

from collections.abc import Callable

import msgspec


class ToolStyle(msgspec.Struct, frozen=True, kw_only=True):
    """One page."""

    name: str
    is_of: Callable[[str], bool]
    """Whether a chat template teaches this way."""
    begin: str = ""
    """The mark before a call; empty where an answer that begins with `{` is one."""
    before: str = ""
    """White space as the model was shown it, between the mark and the JSON."""
    after: str = ""
    end: str = ""
    between: str = ""
    """Between two calls."""
    arguments: str = "arguments"
    """The key beside `name`."""
    is_list: bool = False
    """One mark, and all calls in one array."""
    takes_several: bool = True
    """The model was shown more than one call in a turn."""
    id_characters: int | None = None
    """What the template wants of a call's id: so many letters and digits. None: anything."""
