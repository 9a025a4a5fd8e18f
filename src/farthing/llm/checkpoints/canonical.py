"""A checkpoint's tensors under their canonical names, proven complete before anybody asks for one."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from farthing.llm.architectures import Source
from farthing.llm.checkpoints.checkpoint import StoredTensor
from farthing.llm.checkpoints.gguf import KIND_NAMED
from farthing.llm.checkpoints.gguf_blocks import dequantise
from farthing.llm.spec import DecoderSpec, tensor_shapes
from farthing.types.errors import LoadFailed


class CanonicalTensors:
    """The tensors of `tensor_shapes(spec)`, read from those a file holds. Raises `LoadFailed`.

    A tensor that no canonical one is made of would mean that the model computes something else than its spec says: it
    is refused, unless its name ends in one of `ignored`.
    """

    def __init__(
        self,
        path: Path,
        spec: DecoderSpec,
        sources: Mapping[str, Source],
        tensors: Mapping[str, StoredTensor],
        *,
        ignored: Iterable[str] = (),
    ) -> None:
        self._sources = sources
        self._tensors = tensors
        for name, shape in tensor_shapes(spec).items():
            source = sources[name]
            if source.name not in tensors:
                raise LoadFailed(
                    f"{path}: tensor `{source.name}` is missing, which "
                    f"a {spec.architecture} model of {spec.layers} layers has"
                )
            found = _cut(tensors[source.name].shape, source)
            if found != shape:
                raise LoadFailed(
                    f"{path}: tensor `{source.name}` is {list(tensors[source.name].shape)}; "
                    f"by the configuration `{name}` in it is {list(shape)}"
                )
        endings = tuple(ignored)
        unused = sorted(set(tensors) - {source.name for source in sources.values()})
        strange = [name for name in unused if not name.endswith(endings)] if endings else unused
        if strange:
            shown = ", ".join(f"`{name[:100]}`" for name in strange[:5])
            raise LoadFailed(
                f"{path}: {len(strange)} tensors are not of a plain {spec.architecture} model: {shown}",
                hint="a variant of this architecture, which is not supported",
            )

    def stored(self, name: str) -> StoredTensor:
        """The tensor as it is kept, or in float32 where its values are not those kept."""
        source = self._source(name)
        if source.adds_one:
            values = self.tensor(name)
            return StoredTensor("F32", values.shape, values.data.cast("B"))
        return _rows(self._tensors[source.name], source)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The tensor in float32."""
        source = self._source(name)
        values = dequantise(_rows(self._tensors[source.name], source))
        if source.adds_one:
            values += 1
        return values

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            raise KeyError(f"`{name}` is no canonical tensor of this model")
        return self._sources[name]


def _cut(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    if source.rows is None:
        return shape
    first, end = source.rows
    return (end - first, *shape[1:]) if end <= shape[0] else shape


def _rows(stored: StoredTensor, source: Source) -> StoredTensor:
    """Rows of a tensor lie one after another, each a whole number of blocks."""
    if source.rows is None:
        return stored
    kind = KIND_NAMED[stored.kind]
    row_bytes = int(np.prod(stored.shape[1:], dtype=np.int64)) // kind.elements * kind.size_bytes
    first, end = source.rows
    return StoredTensor(stored.kind, (end - first, *stored.shape[1:]), stored.data[first * row_bytes : end * row_bytes])
