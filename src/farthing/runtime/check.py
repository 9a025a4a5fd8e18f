"""Does this request fit this model? Names, datatypes, shapes and rows, with messages a client can act on.

What can be known without the model (counts of elements, JSON types) was checked by `protocols`. The phrases Triton's
users and tests match on are kept (docs/reference/kserve-http.md).
"""

from collections.abc import Hashable

from farthing.batching.queue import FIXED_SHAPES
from farthing.types.batch_axes import BatchAxes
from farthing.types.errors import InvalidInput, Unsupported
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest
from farthing.types.tensors import DATATYPES, TensorSpec, shape_fits


class RequestCheck:
    """The check of one model version, prepared so that a fitting request costs about a microsecond."""

    def __init__(self, spec: ModelSpec, *, is_decoupled: bool = False, axes: BatchAxes | None = None) -> None:
        """`axes`: along which requests may share a run though their tensors do not lead with rows."""
        self._spec = spec
        self._axes = axes
        self._order = [tensor.name for tensor in spec.inputs]
        self._has_batch_axis = spec.batch_rows_max > 0
        self._inputs = {tensor.name: tensor for tensor in spec.inputs}
        self._output_names = frozenset(tensor.name for tensor in spec.outputs)
        self._required = frozenset(tensor.name for tensor in spec.inputs if not tensor.is_optional)
        self._is_decoupled = is_decoupled
        # (name, dtype, row shape) of models whose rows have one shape; None when any shape is free.
        tails = [tensor.shape[1:] for tensor in spec.inputs]
        is_fixed = self._has_batch_axis and tails and self._required == self._inputs.keys() and -1 not in sum(tails, ())
        self._fixed = [(tensor.name, tensor.dtype, tensor.shape[1:]) for tensor in spec.inputs] if is_fixed else None

    def __call__(self, request: InferRequest) -> tuple[int, Hashable]:
        """Rows of the request, and its batching signature. Raises `InvalidInput` if it does not fit the model."""
        if request.outputs:
            for asked in request.outputs:
                if asked.name not in self._output_names:
                    raise self._unknown_output(asked.name)
        inputs = request.inputs
        fixed = self._fixed
        if fixed is not None and len(inputs) == len(fixed):
            rows = -1
            for name, dtype, tail in fixed:
                tensor = inputs.get(name)
                if tensor is None or tensor.dtype != dtype:
                    break
                shape = tensor.shape
                if not shape or shape[1:] != tail or (shape[0] != rows and rows >= 0):
                    break
                rows = shape[0]
            else:
                if rows <= self._spec.batch_rows_max and not self._is_decoupled:
                    return rows, (FIXED_SHAPES if rows else None)
        return self._carefully(request)

    def _carefully(self, request: InferRequest) -> tuple[int, Hashable]:
        spec = self._spec
        if self._is_decoupled:
            raise Unsupported(
                f"model `{spec.name}` is decoupled: /infer doesn't support models with decoupled transaction policy"
            )
        self._check_names(request)
        rows = 1
        first = ""
        signature = []
        for tensor in spec.inputs:
            given = request.inputs.get(tensor.name)
            if given is None:
                continue
            if given.dtype != tensor.dtype:
                found = DATATYPES.get(given.dtype, str(given.dtype))
                raise InvalidInput(
                    f"inference input '{tensor.name}' data-type is '{found}', but model '{spec.name}' "
                    f"expects '{tensor.datatype}'",
                    hint=f"send `datatype` {tensor.datatype}",
                )
            if not shape_fits(given.shape, tensor.shape):
                raise self._wrong_shape(tensor, given.shape)
            if self._has_batch_axis:
                if first and given.shape[0] != rows:
                    raise InvalidInput(
                        f"input '{tensor.name}' batch size does not match other inputs for '{spec.name}': "
                        f"{given.shape[0]} rows, but '{first}' has {rows}"
                    )
                rows, first = given.shape[0], first or tensor.name
            signature.append((tensor.name, given.shape[1:]))
        if self._has_batch_axis and rows > spec.batch_rows_max:
            raise InvalidInput(
                f"inference request batch-size must be <= {spec.batch_rows_max} for '{spec.name}', got {rows}",
                hint="send fewer rows a request, or raise max_batch_size",
            )
        if self._axes is not None:
            return self._axes.group(request.inputs, self._order)
        # Without rows, or without a tensor to have any, there is nothing to put one after the other.
        return rows, (tuple(signature) if self._has_batch_axis and rows and signature else None)

    def _check_names(self, request: InferRequest) -> None:
        spec = self._spec
        for name in request.inputs:
            if name not in self._inputs:
                raise InvalidInput(
                    f"unexpected inference input '{name}' for model '{spec.name}'",
                    hint=f"inputs of this model: {', '.join(self._inputs)}",
                )
        missing = [name for name in self._inputs if name in self._required and name not in request.inputs]
        if missing:
            raise InvalidInput(
                f"expected {len(self._inputs)} inputs but got {len(request.inputs)} inputs for model '{spec.name}'; "
                f"missing: {', '.join(missing)}"
            )

    def _unknown_output(self, name: str) -> InvalidInput:
        return InvalidInput(
            f"unexpected inference output '{name}' for model '{self._spec.name}'",
            hint=f"outputs of this model: {', '.join(tensor.name for tensor in self._spec.outputs)}",
        )

    def _wrong_shape(self, tensor: TensorSpec, found: tuple[int, ...]) -> InvalidInput:
        return InvalidInput(
            f"unexpected shape for input '{tensor.name}' for model '{self._spec.name}'. "
            f"Expected {_shape(tensor.shape)}, got {_shape(found)}",
            hint="-1 is any size" + ("; the first dimension is the batch" if self._has_batch_axis else ""),
        )


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
