"""Int8 versions of an ONNX file, made by ONNX Runtime's own quantiser: weights per channel, activations as calibrated.

Static files hold QuantizeLinear/DequantizeLinear pairs, which ONNX Runtime and OpenVINO both turn into integer
kernels. All operators take part: with pairs around convolutions alone, their activation functions outside,
EfficientNet-Lite0 kept 57 % of its top classes, with all of them 91 %. Smoothed files are for transformers: after
`optimizer.smoothing`, what enters products and convolutions with weights is rounded, and nothing else. Nobody says here
whether the result is any good: `optimizer.agreement` does, on samples that took no part.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.engines.failure import reason_of
from farthing.optimizer.machine import saturates_bytes
from farthing.optimizer.quiet import quiet
from farthing.optimizer.recipes import Artefact
from farthing.optimizer.samples import Samples
from farthing.optimizer.smoothing import smooth
from farthing.optimizer.watch import Stopped
from farthing.types.errors import LoadFailed
from farthing.types.tensors import Tensor

HISTOGRAM_SAMPLES_MAX: Final = 64
"""Entropy and percentile keep every activation of every sample until the end."""

SMOOTHING_SAMPLES_MAX: Final = 128
"""That smoothed files are made from."""

HELD_MAX: Final = 32
"""Samples whose activations are held in memory together, where only their extremes count."""

WEIGHTED: Final = ("Conv", "Gemm", "MatMul")
"""Operators that int8 makes faster, and whose weights it changes."""


def quantise(
    prepared: Path,
    artefact: Artefact,
    samples: Samples,
    out: Path,
    *,
    has_batch_axis: bool,
    keep: Sequence[str] = (),
    check: Callable[[], None] = lambda: None,
) -> None:
    """Writes the int8 file. Nodes named in `keep` stay in float. Raises `LoadFailed`.

    Weights have 7 bits on a processor where 8 would saturate. `check` is called now and then, and may raise `Stopped`.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

    methods = {
        "int8_minmax": CalibrationMethod.MinMax,
        "int8_entropy": CalibrationMethod.Entropy,
        "int8_percentile": CalibrationMethod.Percentile,
        "int8_smooth": CalibrationMethod.MinMax,
    }
    with quiet():
        try:
            if artefact == "int8_dynamic":
                quantize_dynamic(
                    str(prepared),
                    str(out),
                    op_types_to_quantize=["MatMul", "Gemm"],
                    per_channel=True,
                    reduce_range=saturates_bytes(),
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=list(keep),
                )
                return
            most = {"int8_minmax": len(samples), "int8_smooth": SMOOTHING_SAMPLES_MAX}.get(
                artefact, HISTOGRAM_SAMPLES_MAX
            )
            samples = samples.take(np.arange(min(len(samples), most)))
            options: dict[str, Any] = {"CalibMaxIntermediateOutputs": _held(len(samples))}
            operators: list[str] | None = None
            if artefact == "int8_smooth":
                smoothed = out.with_name("smoothed.onnx")
                smooth(prepared, list(_Rows(samples, check, has_batch_axis=has_batch_axis)), smoothed)
                prepared, keep, operators = smoothed, [*keep, *_products_of_activations(smoothed)], list(WEIGHTED)
                # What comes out is added to float; rounding it too turned MiniLM's vectors by 5.9 % instead of 0.7 %.
                options["OpTypesToExcludeOutputQuantization"] = operators
            quantize_static(
                str(prepared),
                str(out),
                _Rows(samples, check, has_batch_axis=has_batch_axis),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=saturates_bytes(),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(keep),
                op_types_to_quantize=operators,
                calibrate_method=methods[artefact],
                extra_options=options,
            )
        except Stopped:
            raise
        except Exception as error:
            raise LoadFailed(f"{artefact} could not be made: {reason_of(error)}") from error


def layers_of(prepared: Path) -> list[tuple[str, ...]]:
    """Names of the nodes of each layer, in the order they run: one with weights, and those up to the next."""
    import onnx

    layers: list[list[str]] = []
    before: list[str] = []
    for node in onnx.load(str(prepared), load_external_data=False).graph.node:
        if node.op_type in WEIGHTED:
            layers.append([*before, node.name])
            before = []
        elif layers:
            layers[-1].append(node.name)
        else:
            before.append(node.name)
    return [tuple(layer) for layer in layers]


def _products_of_activations(file: Path) -> list[str]:
    """Matrix products without weights, such as attention's: both sides would be rounded, and little is gained."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] not in constant]


def _held(samples: int) -> int:
    """Samples whose activations are held at a time. ONNX Runtime fails ("No data is collected") where the last of them
    fill it exactly."""
    return next(count for count in range(HELD_MAX, 0, -1) if samples % count or count == 1)


class _Rows:
    """A calibration reader (`CalibrationDataReader`): one sample at a time."""

    def __init__(self, samples: Samples, check: Callable[[], None], *, has_batch_axis: bool) -> None:
        self._samples = samples
        self._check = check
        self._has_batch_axis = has_batch_axis
        self._at = 0

    def get_next(self) -> dict[str, Tensor] | None:
        self._check()
        at = self._at
        if at >= len(self._samples):
            return None
        self._at += 1
        rows = slice(at, at + 1)
        return {
            name: _as_read(array[rows] if self._has_batch_axis else np.asarray(array[at], order="C"))
            for name, array in self._samples.inputs.items()
        }

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> dict[str, Tensor]:
        row = self.get_next()
        if row is None:
            raise StopIteration
        return row

    def __len__(self) -> int:
        return len(self._samples)


def _as_read(array: Tensor) -> Tensor:
    """Text is text to ONNX Runtime's Python interface, and bytes everywhere else here."""
    if not array.dtype.hasobject:
        return array
    made = np.empty(array.shape, object)
    for at, value in enumerate(array.flat):
        made.flat[at] = value.decode()
    return made
