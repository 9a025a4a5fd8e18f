"""What a runner, a tokenizer and a chat may ask of a model on disk, whatever its format.

Opening one belongs to `opening`, reading a format to `gguf_checkpoint` and `hugging_face`; what tensors are called in
each family to `llm.architectures`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.llm.spec import DecoderSpec
from farthing.llm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's own bytes: row-major, in the blocks of its kind, usually a view of the mapped file."""

    kind: str
    """GGUF's word: F32, F16, BF16, Q8_0, Q4_1, Q6_K, ..."""
    shape: tuple[int, ...]
    data: memoryview


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What the model's makers advise where a request says nothing; None where they are silent."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class Checkpoint(Protocol):
    """A model on disk, opened and checked: every tensor of `tensor_shapes(spec)` is there, whole and of its shape."""

    @property
    def path(self) -> Path: ...

    @property
    def spec(self) -> DecoderSpec: ...

    @property
    def identity(self) -> str:
        """Names these weights: for the packed cache and as salt of cached prefixes. It changes when the file does."""

    @property
    def generation_defaults(self) -> GenerationDefaults: ...

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A canonical tensor, dequantised: C order, the shape of `tensor_shapes`. Made anew by every call."""

    def stored(self, name: str) -> StoredTensor:
        """A canonical tensor as it is kept. Kind F32 where its rows had to be changed to become canonical."""

    def tokenizer(self) -> Tokenizer:
        """Built on the first call, the same one afterwards."""

    def chat_template(self) -> str | None:
        """Jinja source; None for a model that has none."""
