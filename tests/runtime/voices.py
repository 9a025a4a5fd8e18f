"""Silero VAD as a model of sequences: the sample's own file with a shell that gives each sequence its row.

The file wants its state as [2, batch, 128] and the last 64 samples of the chunk before in front of each chunk. The
shell turns the state so that rows come first, and makes the 64 samples a second state: clients send sound, no more.
"""

from pathlib import Path
from typing import Final

import numpy as np
import onnx
import soundfile
from onnx import helper, numpy_helper
from tests.models import tensor_info

from farthing.repository.samples import input_folder, sample_path
from farthing.types.tensors import Tensor

CHUNK: Final = 512
CONTEXT: Final = 64

CONFIG: Final = """
max_batch_size: %d
input [ { name: "chunk" data_type: TYPE_FP32 dims: [ 512 ] } ]
output [ { name: "speech" data_type: TYPE_FP32 dims: [ 1 ] } ]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  %s
  state [
    { input_name: "state_before" output_name: "state_after" data_type: TYPE_FP32 dims: [ 2, 128 ]
      initial_state { name: "silence" data_type: TYPE_FP32 dims: [ 2, 128 ] zero_data: true } },
    { input_name: "heard_before" output_name: "heard_after" data_type: TYPE_FP32 dims: [ 64 ] }
  ]
}
"""


def silero() -> Path:
    """The sample's model file."""
    return sample_path("silero-vad") / "1" / "model.onnx"


def streaming(silero: Path) -> bytes:
    """`chunk` [batch, 512] -> `speech` [batch, 1], with two states."""
    whole = onnx.load(silero)
    graph = whole.graph
    before = [
        helper.make_node("Concat", ["heard_before", "chunk"], ["input"], axis=1),
        helper.make_node("Transpose", ["state_before"], ["state"], perm=[1, 0, 2]),
    ]
    after = [
        helper.make_node("Transpose", ["stateN"], ["state_after"], perm=[1, 0, 2]),
        helper.make_node("Slice", ["chunk", "last_from", "last_to", "last_axis"], ["heard_after"]),
        helper.make_node("Identity", ["output"], ["speech"]),
    ]
    nodes = [*before, *graph.node, *after]
    numbers = {"sr": np.array(16_000), "last_from": np.array([CHUNK - CONTEXT]), "last_to": np.array([CHUNK])}
    numbers["last_axis"] = np.array([1])
    inputs = [
        tensor_info("chunk", "FP32", ["batch", CHUNK]),
        tensor_info("state_before", "FP32", ["batch", 2, 128]),
        tensor_info("heard_before", "FP32", ["batch", CONTEXT]),
    ]
    outputs = [
        tensor_info("speech", "FP32", ["batch", 1]),
        tensor_info("state_after", "FP32", ["batch", 2, 128]),
        tensor_info("heard_after", "FP32", ["batch", CONTEXT]),
    ]
    weights = [*graph.initializer, *(numpy_helper.from_array(array, name) for name, array in numbers.items())]
    made = helper.make_model(
        helper.make_graph(nodes, "streaming", inputs, outputs, weights),
        opset_imports=whole.opset_import,
        ir_version=whole.ir_version,
    )
    return bytes(made.SerializeToString())


def sounds(count: int, chunks: int) -> list[Tensor]:
    """So many pieces of a telephone call, each at its own place and its own loudness; [chunks, 512] each."""
    call, rate = soundfile.read(input_folder("telephone-call") / "sample.wav", dtype="float32")
    assert rate == 16_000
    chance = np.random.default_rng(5)
    starts = chance.integers(0, len(call) - chunks * CHUNK, count)
    return [
        (call[start : start + chunks * CHUNK] * chance.uniform(0.3, 1.0)).astype(np.float32).reshape(chunks, CHUNK)
        for start in starts
    ]
