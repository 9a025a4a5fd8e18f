"""Llama 3.1's and 3.2's way: an answer that is nothing but JSON, with `parameters` for the arguments; one call a turn.

    {"name": "weather", "parameters": {"city": "Paris"}}

Meta's "JSON based tool calling". The token <|python_tag|>, which may stand before it, is a control token and no text.
"""

from farthing.llm.tool_styles.style import ToolStyle


def _is_of(template: str) -> bool:
    return '"parameters":' in template and ("ipython" in template or "<|python_tag|>" in template)


LLAMA3 = ToolStyle(name="llama3", is_of=_is_of, arguments="parameters", takes_several=False)
