"""Which names a model may have, and the name a file gives it.

A name becomes part of paths, URLs, metric labels and log lines, whoever sent it. So it is checked before it is
looked up anywhere.
"""

import re
from pathlib import Path
from typing import Final

from farthing.types.errors import InvalidInput

NAME_CHARACTERS_MAX: Final = 200
"""Leaves room for a suffix in a file name, which may be 255 bytes long on common file systems."""

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_UNTELLING: Final = {"model", "pipeline", "saved_model"}
"""Stems that many exports share; the folder around them tells more."""


def check_model_name(name: str) -> None:
    """Returns for a name a model may have, else raises `InvalidInput`: nothing that leads to another folder."""
    fault = ""
    if not name:
        fault = "is empty"
    elif len(name) > NAME_CHARACTERS_MAX:
        fault = f"has {len(name)} characters; allowed: {NAME_CHARACTERS_MAX}"
    elif name.startswith("."):
        fault = "begins with a dot"
    elif "/" in name or "\\" in name:
        fault = "has a slash in it"
    elif not name.isprintable() or any(letter.isspace() for letter in name):
        fault = "has white space or an unprintable character in it"
    if fault:
        shown = name[:NAME_CHARACTERS_MAX].encode("unicode_escape").decode("ascii")
        raise InvalidInput(f"model name `{shown}` {fault}", hint="use letters, digits, `.`, `_` and `-`")


def name_from_file(path: Path) -> str:
    """A legal model name for a file: its stem, or its folder's name where the stem is just `model`."""
    candidates = [path.stem]
    if path.stem in _UNTELLING:
        folders = [folder.name for folder in path.absolute().parents if not version_number(folder.name)]
        candidates.insert(0, folders[0] if folders else "")
    for candidate in candidates:
        if legal := made_legal(candidate):
            return legal
    return "model"


def made_legal(text: str) -> str:
    """Only letters, digits, `.`, `_` and `-`, not beginning with a dot; may come out empty."""
    return _NOT_PLAIN.sub("-", text).lstrip(".-")[:NAME_CHARACTERS_MAX].rstrip("-")


def version_number(folder_name: str) -> int:
    """The version a folder holds, 0 if its name is no version (digits only, not beginning with 0)."""
    return int(folder_name) if _VERSION.fullmatch(folder_name) else 0
