"""Mistral's way, from its tokenizers' version 3 on: a control token, then all calls in one array.

    [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]

Its templates want ids of nine letters and digits. Version 11 and later write `[TOOL_CALLS]weather[ARGS]{...}` instead.
"""

from farthing.llm.tool_styles.style import ToolStyle


def _is_of(template: str) -> bool:
    return "[TOOL_CALLS]" in template and "[ARGS]" not in template


MISTRAL = ToolStyle(name="mistral", is_of=_is_of, begin="[TOOL_CALLS]", between=", ", is_list=True, id_characters=9)
