"""Every way there is a page for, found by what a chat template teaches."""

import re
from typing import Final

from farthing.llm.tool_styles.hermes import HERMES
from farthing.llm.tool_styles.llama3 import LLAMA3
from farthing.llm.tool_styles.mistral import MISTRAL
from farthing.llm.tool_styles.style import ToolStyle

STYLES: Final[tuple[ToolStyle, ...]] = (MISTRAL, HERMES, LLAMA3)

DEFAULT: Final = HERMES
"""For models whose template says nothing of tools, or something that nobody here has read: `llm.tool_prompt` tells them
this way, in words."""

_TOOLS: Final = re.compile(r"\btools\b")


def style_of(template: str) -> ToolStyle | None:
    """The way that a template teaches; None: it does not, and the model has to be told."""
    if not _TOOLS.search(template):
        return None
    return next((style for style in STYLES if style.is_of(template)), None)
