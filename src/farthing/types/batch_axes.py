"""Along which axis of each tensor the rows of a batch lie, for models whose tensors do not all lead with it.

Recurrent networks often keep time or layers first, [layers, batch, width], and take a scalar beside. Their files say
nothing of batches, so such axes are found on data (`optimizer.row_axes`); who runs together is up to `batching`.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import msgspec

from farthing.types.tensors import Tensor

SHARED_BYTES_MAX: Final = 1024
"""Of an input that all requests of a run have in common; a request with a larger one runs alone."""


class BatchAxes(msgspec.Struct, frozen=True, kw_only=True):
    """Input or output name -> the axis that counts rows, from 0."""

    inputs: dict[str, int]
    """Inputs that are not named here have no rows: requests share a run if they agree in them to the bit."""
    outputs: dict[str, int]

    def of(self, outputs: Sequence[str]) -> "BatchAxes":
        """The same for a model with these outputs only; empty: with all."""
        kept = {name: axis for name, axis in self.outputs.items() if not outputs or name in outputs}
        return BatchAxes(inputs=self.inputs, outputs=kept)

    def group(self, inputs: Mapping[str, Tensor], order: Sequence[str]) -> tuple[int, Hashable]:
        """Rows of a request that fits the model, and its batching signature; None as the signature: it runs alone.

        `order` has the names of all inputs in the model's order.
        """
        rows = -1
        signature: list[Hashable] = []
        for name in order:
            tensor = inputs.get(name)
            if tensor is None:
                continue
            axis = self.inputs.get(name)
            if axis is None:
                if tensor.dtype.hasobject or tensor.nbytes > SHARED_BYTES_MAX:
                    return 1, None
                signature.append((name, tensor.shape, tensor.tobytes()))
                continue
            shape = tensor.shape
            if rows not in (-1, shape[axis]):
                return 1, None
            rows = shape[axis]
            signature.append((name, shape[:axis], shape[axis + 1 :]))
        return (rows, tuple(signature)) if rows > 0 else (1, None)
