"""The models every server is given, one row of input for each, and the answer that counts as right.

The tiny MLP is all server overhead; EfficientNet-Lite0 and MiniLM are all engine. What the rows look like on the
wire belongs to `wire`; how fast the engine alone is, to `yardstick`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CACHE: Final = Path.home() / ".cache" / "farthing" / "benchmarks"
"""Model files and server logs; everything in it can be deleted."""

MINILM_TOKENS: Final = 32
SEED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An ONNX file, one row for each input, and what one row must come back as."""

    name: str
    file: Path
    row: dict[str, NDArray[Any]]
    """Input name -> array with a leading batch dimension of 1."""
    answer: dict[str, NDArray[Any]]
    """Output name -> what onnxruntime says in process, one thread, batch 1."""
    tolerance: float
    """Largest absolute difference that is still the same answer (another batch size, another precision of sums)."""

    def is_right(self, got: dict[str, NDArray[Any]]) -> bool:
        """Whether every output is there, of the right shape, and within the tolerance."""
        return got.keys() == self.answer.keys() and all(
            got[name].shape == want.shape and float(np.abs(got[name] - want).max()) <= self.tolerance
            for name, want in self.answer.items()
        )


def build_mlp(file: Path) -> None:
    """Writes the 32-64-8 perceptron (2,632 weights from a fixed seed)."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    random = np.random.default_rng(SEED)
    weights = {
        "w1": random.normal(0, 32**-0.5, (32, 64)),
        "b1": random.normal(0, 0.1, 64),
        "w2": random.normal(0, 64**-0.5, (64, 8)),
        "b2": random.normal(0, 0.1, 8),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    # Opset 17 and IR 8 are read by every onnxruntime that the peers pin.
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(proto)
    save(proto, file)


def _sample(sample: str, file: Path) -> None:
    """Puts a sample model where its file name is the name that all servers use for it."""
    from farthing.repository.samples import sample_path

    (source,) = sample_path(sample).glob("*/model.onnx")
    if not file.exists() or file.stat().st_size != source.stat().st_size:
        shutil.copyfile(source, file)


def _row(name: str) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(SEED)
    if name == "mlp":
        return {"x": random.uniform(-1, 1, (1, 32)).round(4).astype(np.float32)}
    if name == "effnet":
        return {"image": random.uniform(-1, 1, (1, 3, 224, 224)).astype(np.float32)}
    # Word pieces between [CLS] (101) and [SEP] (102); 2,000 to 20,000 are whole words in BERT's vocabulary.
    words = random.integers(2_000, 20_000, MINILM_TOKENS - 2)
    ids = np.concatenate([[101], words, [102]]).astype(np.int64)[None]
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


NAMES: Final = ("mlp", "effnet", "minilm")
SAMPLES: Final = {"effnet": "effnet-lite0", "minilm": "minilm-l6"}
TOLERANCES: Final = {"mlp": 1e-5, "effnet": 1e-3, "minilm": 1e-4}
"""onnxruntime in f32 stays within a tenth of these between batch sizes; bf16 would not pass, on purpose: all
servers must do the same work."""


def session(file: Path) -> Any:
    """onnxruntime as every server here runs it: one thread, in the calling thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def load(name: str) -> Model:
    """The model by its name in `NAMES`, built or fetched when it is not there yet."""
    CACHE.mkdir(parents=True, exist_ok=True)
    file = CACHE / f"{name}.onnx"
    if name == "mlp":
        build_mlp(file)
    else:
        _sample(SAMPLES[name], file)
    engine, row = session(file), _row(name)
    outputs = [output.name for output in engine.get_outputs()]
    answer = dict(zip(outputs, engine.run(outputs, row), strict=True))
    return Model(name=name, file=file, row=row, answer=answer, tolerance=TOLERANCES[name])
