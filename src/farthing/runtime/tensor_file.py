"""A tensor's values from a file of a model's folder: warm-up inputs, initial states.

The file holds them one after the other, little-endian; texts are written as on the wire, each behind its length in
four bytes. What shape they are to have is for the caller to say.
"""

from pathlib import Path

import numpy as np

from farthing.types.errors import LoadFailed
from farthing.types.tensors import BYTES_LENGTH_PREFIX, NUMPY_DTYPES, Tensor


def read_tensor_file(folder: Path, filename: str, datatype: str, where: str, bytes_max: int) -> Tensor:
    """All elements of a file of that folder, flat. Raises `LoadFailed` that begins with `where` or the path."""
    path = folder / filename
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LoadFailed(f"{where}: data file `{filename}` leads out of {folder}")
    try:
        if path.stat().st_size > bytes_max:
            raise LoadFailed(f"{path}: more than {bytes_max} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise LoadFailed(f"{where}: {path}: {error.strerror}") from error
    dtype = NUMPY_DTYPES[datatype]
    if datatype == "BYTES":
        flat: Tensor = np.array([*_texts(data, path), None], dtype)[:-1]  # the None keeps equal lengths objects
        return flat
    if len(data) % dtype.itemsize:
        raise LoadFailed(f"{path}: {len(data)} bytes are not a number of {datatype} elements")
    return np.frombuffer(data, dtype)


def _texts(data: bytes, path: Path) -> list[bytes]:
    texts: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + BYTES_LENGTH_PREFIX
        at = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or at > len(data):
            raise LoadFailed(f"{path}: ends inside element {len(texts)}")
        texts.append(data[start:at])
    return texts
