"""Class names for the classification extension, from the file an output's `label_filename` names."""

import os
from pathlib import Path
from typing import Final

from farthing.repository.snapshot import FoundModel
from farthing.types.errors import LoadFailed

LABEL_FILE_BYTES_MAX: Final = 16 * 2**20
"""A million class names of 16 letters. More is not a label file."""


def read_labels(model: FoundModel) -> dict[str, tuple[str, ...]]:
    """Output name -> class names by index, for outputs that have a label file. Raises `LoadFailed`."""
    outputs = [output for output in model.config.output if output.label_filename]
    return {output.name: _labels(model.folder, output.label_filename) for output in outputs}


def _labels(folder: Path, filename: str) -> tuple[str, ...]:
    path = folder / filename
    try:
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise LoadFailed(f"label file `{filename}` lies outside the model's folder")
        if not path.is_file():  # a pipe would never end
            raise LoadFailed(f"{path}: no such file", hint="put the label file into the model's folder")
        if path.stat().st_size > LABEL_FILE_BYTES_MAX:
            raise LoadFailed(f"{path}: over {LABEL_FILE_BYTES_MAX} bytes, too much for a label file")
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise LoadFailed(f"{path}: not UTF-8 at byte {error.start}") from None
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{path}: {_reason(error)}", hint="put the label file into the model's folder") from None
    return tuple(line.strip() for line in text.rstrip("\n").split("\n")) if text else ()


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
