"""What an untrusted file or a runtime said, made fit for an error message: one line, printable, not endless."""

import re
from typing import Final

NAME_CHARACTERS_MAX: Final = 120
"""How much of a name out of a file a message repeats."""

REASON_CHARACTERS_MAX: Final = 300
"""How much of a runtime's own error text a message repeats."""

_NOISE: Final = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "  # the status has become our own
    r"|/onnxruntime_src/\S+ |onnxruntime::[\w:]+\([^()]*\) "
    r"|Load model from \S+ failed: ?"
    r"|Exception from \S+:\d+:"
    r"|Check '[^\n]*' failed at \S+:\d+:"
)
"""Status prefixes and source places of ONNX Runtime and OpenVINO: they help their authors, not an operator."""


def shown(name: str) -> str:
    """A name from an untrusted file."""
    return _cut(name, NAME_CHARACTERS_MAX)


def reason_of(error: BaseException) -> str:
    """A runtime's error without the places in its source code."""
    text = " ".join(_NOISE.sub(" ", str(error)).split())
    return _cut(text or type(error).__name__, REASON_CHARACTERS_MAX)


def _cut(text: str, characters_max: int) -> str:
    shortened = text if len(text) <= characters_max else text[:characters_max] + "..."
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shortened)
