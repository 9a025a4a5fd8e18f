"""A name for weights that changes when they do, found without reading them all."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from farthing.llm.checkpoints.checkpoint import StoredTensor

_SAMPLE_BYTES: Final = 512


def identity_of(files: Iterable[Path], tensors: Mapping[str, StoredTensor]) -> str:
    """32 hexadecimal digits from the files' sizes and times of change, every tensor's name, kind and shape, and a few
    hundred bytes of each.

    Reading gigabytes to hash them would cost more than mapping the packed weights does. A file written again with other
    weights has another time, or other samples; a copy under a new time is packed once more, which is all it costs.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        seen = file.stat()
        digest.update(f"{file.name} {seen.st_size} {seen.st_mtime_ns}\n".encode())
    for name, stored in sorted(tensors.items()):
        digest.update(f"{name} {stored.kind} {stored.shape}\n".encode())
        middle = len(stored.data) // 2
        digest.update(stored.data[:_SAMPLE_BYTES])
        digest.update(stored.data[middle : middle + _SAMPLE_BYTES])
    return digest.hexdigest()
