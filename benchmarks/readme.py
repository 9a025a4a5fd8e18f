"""The README's tables: each stands between two marks that name it, and is replaced by what a run found."""

import re
from pathlib import Path
from typing import Final

README: Final = Path(__file__).parents[1] / "README.md"


class NoMarks(Exception):
    """The page has no such pair of marks, or has them more than once."""


def put(name: str, text: str, page: Path = README) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- end of NAME -->`. Raises `NoMarks`."""
    before = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end of {re.escape(name)} -->\n)", re.DOTALL)
    after, count = pattern.subn(lambda found: f"{found[1]}{text.strip()}\n{found[2]}", before)
    if count != 1:
        raise NoMarks(f"{page} has {count} pairs of marks for `{name}`; there must be one")
    page.write_text(after, encoding="utf-8")
