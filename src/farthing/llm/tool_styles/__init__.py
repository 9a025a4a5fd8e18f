"""Ways in which models write calls of tools, a page each: marks and names. Data only; there is no parser here."""

from farthing.llm.tool_styles.known import DEFAULT, STYLES, style_of
from farthing.llm.tool_styles.style import ToolStyle

__all__ = ["DEFAULT", "STYLES", "ToolStyle", "style_of"]
