"""A model's configuration file: Triton's `config.pbtxt` or our `model.toml`, read into a `ModelConfig`.

Both hold the same fields. What they mean is said in `config.model`; here is only what a file can get wrong.
"""

import re
import tomllib
from pathlib import Path
from typing import Any, Final

from farthing.config.model import ModelConfig, parse_model_config
from farthing.config.model.spelling import meant
from farthing.types.errors import LoadFailed

PBTXT: Final = "config.pbtxt"
TOML: Final = "model.toml"

CONFIG_FILE_BYTES_MAX: Final = 2**16
"""Real ones have a few kilobytes. Parsing this much takes a tenth of a second, and polling must not take more."""

TOML_LINE_CHARACTERS_MAX: Final = 4096
"""Python's TOML reader takes time that grows with the square of the dots in a key, and keys end with the line."""

FAULT_CHARACTERS_MAX: Final = 300
"""A parser's message quotes what it found, which may be the whole file."""

HINT: Final = "docs/reference/model-config.md lists the fields"

_POSITION: Final = re.compile(r"^\d+:\d+ : (?:'.{0,2000}?': )?")
"""Line, column and a copy of the line, in front of what protobuf says."""

_UNKNOWN: Final = re.compile(r'Message type "(?P<message>[\w.]+)" has no field named "(?P<field>.*)"\.')


def read_config(folder: Path) -> ModelConfig | None:
    """The configuration in a model's folder, None if nobody wrote one. Raises `LoadFailed`."""
    pbtxt, toml = folder / PBTXT, folder / TOML
    has_pbtxt, has_toml = pbtxt.is_file(), toml.is_file()  # not a pipe: reading it would never end
    if has_pbtxt and has_toml:
        raise LoadFailed(f"{folder} has both {PBTXT} and {TOML}", hint="keep the one that is right")
    if has_pbtxt:
        return parse_pbtxt(_bytes(pbtxt), source=str(pbtxt))
    if has_toml:
        return parse_toml(_bytes(toml), source=str(toml))
    return None


def parse_pbtxt(data: bytes, *, source: str = PBTXT) -> ModelConfig:
    """The configuration in protobuf's text format. Raises `LoadFailed` naming line, column and field."""
    from google.protobuf import text_format

    from farthing.repository.wire import from_message, message_class

    message = message_class()()
    text = _text(data, source)
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        fault = _named(_POSITION.sub("", " ".join(str(error).split())))
        where = f"{source}:{error.GetLine() or 1}:{error.GetColumn() or 1}"
        raise LoadFailed(f"{where}: {fault[:FAULT_CHARACTERS_MAX]}", hint=HINT) from None
    except RecursionError:
        raise LoadFailed(f"{source}: brackets nested too deeply") from None
    except ValueError as error:
        raise LoadFailed(f"{source}: {str(error)[:FAULT_CHARACTERS_MAX]}", hint=HINT) from None
    return from_message(message, source=source)


def parse_toml(data: bytes, *, source: str = TOML) -> ModelConfig:
    """The configuration in TOML. Raises `LoadFailed` naming the line, or the path of the field."""
    return parse_model_config(_toml_values(data, source), source=source)


def read_toml(path: Path) -> dict[str, Any]:
    """The values in any TOML file. Raises `LoadFailed` naming the line."""
    return _toml_values(_bytes(path), str(path))


def _toml_values(data: bytes, source: str) -> dict[str, Any]:
    text = _text(data, source)
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > TOML_LINE_CHARACTERS_MAX:
            raise LoadFailed(f"{source}:{number}: a line of over {TOML_LINE_CHARACTERS_MAX} characters")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise LoadFailed(f"{source}: brackets nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError is one, a number of thousands of digits another
        raise LoadFailed(f"{source}: {str(error)[:FAULT_CHARACTERS_MAX]}") from None


def _named(fault: str) -> str:
    """protobuf's words, but for the commonest mistake with the name that was meant."""
    from farthing.repository.wire import pool

    found = _UNKNOWN.fullmatch(fault)
    if found is None:
        return fault
    names = [field.name for field in pool().FindMessageTypeByName(found["message"]).fields]
    return f"unknown field `{found['field'][:100]}`; {meant(found['field'], names)}"


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise LoadFailed(f"{path}: {error.strerror}") from None
    return data


def _text(data: bytes, source: str) -> str:
    if len(data) > CONFIG_FILE_BYTES_MAX:
        raise LoadFailed(f"{source}: over {CONFIG_FILE_BYTES_MAX} bytes, too much for a configuration")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LoadFailed(f"{source}: not UTF-8 at byte {error.start}") from None
