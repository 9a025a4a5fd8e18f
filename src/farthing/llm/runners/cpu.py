"""The fast forward pass: packed weights and the native core behind the runner's contract.

Everything that is computed, and how threads share it, is in `native/`; the layout of weights is `llm.packing`.
"""

import logging
import threading
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from farthing import _native
from farthing.llm.checkpoints.checkpoint import Checkpoint
from farthing.llm.packing import PackedWeights, Progress, WeightsMode, packed_weights, padded
from farthing.llm.runners.runner import BLOCK_TOKENS, Step
from farthing.llm.spec import DecoderSpec
from farthing.types.errors import InvalidSetting

KvMode = Literal["bf16", "int8", "f32"]
KV_BYTES: Final = {"f32": 4, "bf16": 2, "int8": 1}
"""Bytes a number takes; int8 keeps a float scale for each token and head besides."""

HUGE_BYTES: Final = 2 << 20
MOVED_BYTES: Final = 32 * HUGE_BYTES
"""Of weights between two looks whether the runner is closing."""

log = logging.getLogger(__name__)


def kv_token_bytes(spec: DecoderSpec, kv: KvMode) -> int:
    """Memory that keys and values of one token take, all layers."""
    head = padded(spec.head_size) * KV_BYTES[kv] + (4 if kv == "int8" else 0)
    return 2 * head * spec.kv_heads * spec.layers


class CpuRunner:
    """Implements `Runner` on this processor's best instruction set (`FARTHING_ISA` forces another).

    Threads are the caller's and `threads` - 1 of its own, which sleep while nothing runs. KV memory is reserved at once
    and taken from the system shortly before blocks are first written.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        weights: WeightsMode = "q8",
        kv: KvMode | None = None,
        kv_blocks: int,
        threads: int = 2,
        cache_folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.spec: Final[DecoderSpec] = checkpoint.spec
        self.block_tokens: Final = BLOCK_TOKENS
        self.blocks: Final = kv_blocks
        assert BLOCK_TOKENS == _native.TILE
        try:
            _native.isa()
        except RuntimeError as error:
            raise InvalidSetting(str(error), hint="unset FARTHING_ISA to take the best there is") from None
        self.packed: Final[PackedWeights] = packed_weights(
            checkpoint, weights, threads=threads, cache_folder=cache_folder, progress=progress
        )
        self._is_closing = threading.Event()
        self._mover: threading.Thread | None = None
        self._native = _native.Runner(
            _config(self.spec, self.packed),
            self.packed.data,
            self.packed.offsets,
            kv=kv or ("f32" if weights == "f32" else "int8"),
            blocks=kv_blocks,
            threads=threads,
        )

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._native.isa

    @property
    def kv_bytes(self) -> int:
        """Size of the KV pool."""
        return self._native.kv_bytes

    @property
    def populated_blocks(self) -> int:
        """KV blocks whose memory is there already: so many that no step waits for the system to clear some. A thread
        sees to it, from a second after the start on, unless the pool is small."""
        return self._native.populated_blocks

    def run(self, step: Step) -> NDArray[np.float32]:
        sequences = [(one.rows, one.start, one.blocks) for one in step.sequences]
        return self._native.run(step.tokens, sequences, step.logits_rows)

    def run_likeliest(self, step: Step) -> tuple[list[int], list[float]]:
        sequences = [(one.rows, one.start, one.blocks) for one in step.sequences]
        return self._native.run_likeliest(step.tokens, sequences, step.logits_rows)

    def copy_block(self, source: int, target: int) -> None:
        self._native.copy_block(source, target)

    def take_profile(self) -> dict[str, float]:
        """Seconds spent in each part of the pass since the last call."""
        return dict(self._native.take_profile())

    def move_weights(self, after_s: float) -> None:
        """Begins to move the weights into huge pages, on a thread of its own, while the runner works.

        They are then this process's own memory and no longer a mapping. A core streams them up to 1.4 times as fast
        (docs/decisions/0007). Begins after so many seconds, so that the first to ask has the cores for itself.
        """
        assert self._mover is None
        self._mover = threading.Thread(target=self._move_weights, args=(after_s,), name="huge-pages", daemon=True)
        self._mover.start()

    def _move_weights(self, after_s: float) -> None:
        if self._is_closing.wait(after_s):
            return
        data = self.packed.data
        moved = 0
        for begin in range(-data.ctypes.data % HUGE_BYTES, len(data), MOVED_BYTES):
            if self._is_closing.is_set():
                return
            moved += _native.into_huge_pages(data[begin : begin + MOVED_BYTES])
        log.debug("%d of %d MB of weights are in huge pages", moved >> 20, len(data) >> 20)

    def close(self) -> None:
        self._is_closing.set()
        if self._mover is not None:
            self._mover.join()
        self._native.close()


def _config(spec: DecoderSpec, packed: PackedWeights) -> dict[str, object]:
    plan = packed.plan
    return {
        "vocabulary": spec.vocabulary,
        "layers": spec.layers,
        "width": spec.width,
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "head_size": spec.head_size,
        "ffn_width": spec.ffn_width,
        "norm_epsilon": spec.norm_epsilon,
        "attention_scale": spec.attention_scale,
        "attention_soft_cap": spec.attention_soft_cap,
        "logit_soft_cap": spec.logit_soft_cap,
        "embedding_scale": spec.embedding_scale,
        "gate": spec.gate.value,
        "has_qkv_bias": spec.has_qkv_bias,
        "has_qk_norm": spec.has_qk_norm,
        "has_post_norms": spec.has_post_norms,
        "rotary_frequencies": [list(rotary.frequencies) for rotary in spec.rotaries],
        "rotary_factors": [rotary.factor for rotary in spec.rotaries],
        "rotary_of_layer": list(spec.rotary_of_layer),
        "window_of_layer": list(spec.window_of_layer),
        "format": plan.mode,
        "head_format": plan.head_mode,
        "formats": plan.formats,
        "embedding_is_f32": plan.embedding_is_f32,
        "width_block": plan.width_block,
        "attention_block": plan.attention_block,
        "ffn_block": plan.ffn_block,
        "width_part": plan.width_part,
        "attention_part": plan.attention_part,
        "ffn_part": plan.ffn_part,
        "head_part": plan.head_part,
    }
