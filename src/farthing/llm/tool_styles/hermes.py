"""Hermes' way, and Qwen's: JSON between two tags, a pair for each call.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

NousResearch's Hermes function calling; Qwen 2.5 and 3 have the tags as tokens of their own.
"""

from farthing.llm.tool_styles.style import ToolStyle


def _is_of(template: str) -> bool:
    # Later ways put something else than JSON between the same tags.
    others = ("<function=", "<arg_key>")
    return "<tool_call>" in template and not any(mark in template for mark in others)


HERMES = ToolStyle(
    name="hermes",
    is_of=_is_of,
    begin="<tool_call>",
    before="\n",
    after="\n",
    end="</tool_call>",
    between="\n",
)
