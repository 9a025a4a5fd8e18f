"""A GGUF file as a checkpoint: everything a language model needs is in the one file."""

from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from farthing.llm.architectures import family_of_gguf
from farthing.llm.architectures.settings import Settings
from farthing.llm.checkpoints.canonical import CanonicalTensors
from farthing.llm.checkpoints.checkpoint import GenerationDefaults, StoredTensor
from farthing.llm.checkpoints.gguf import GgufFile
from farthing.llm.checkpoints.gguf_blocks import dequantise
from farthing.llm.checkpoints.identity import identity_of
from farthing.llm.gguf_vocabulary import tokenizer_from_metadata
from farthing.llm.spec import DecoderSpec
from farthing.llm.tokenizer import Tokenizer
from farthing.types.errors import LoadFailed

_ROTARY_TENSORS: Final = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")


class GgufCheckpoint:
    """Implements `Checkpoint`."""

    def __init__(self, path: Path) -> None:
        file = GgufFile(path)
        metadata = Settings(path, file.metadata)
        if metadata.integer("split.count", 1, least=0) > 1:
            raise metadata.wrong(
                "split.count", "a model in parts cannot be read; join them with llama-gguf-split --merge"
            )
        architecture = metadata.text("general.architecture")
        family = family_of_gguf(path, architecture)
        own = Settings(path, file.metadata, prefix=f"{architecture}.")
        self.path: Final = path
        self.spec: Final[DecoderSpec] = family.spec_of_metadata(own, _Tensors(file))
        self.generation_defaults: Final = _defaults(Settings(path, file.metadata, prefix="general.sampling."))
        self._file = file
        sources = family.sources_of_metadata(self.spec)
        self._tensors = CanonicalTensors(path, self.spec, sources, file.tensors, ignored=_ROTARY_TENSORS)

    @cached_property
    def identity(self) -> str:
        return identity_of([self.path], self._file.tensors)

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self._tensors.tensor(name)

    def stored(self, name: str) -> StoredTensor:
        return self._tensors.stored(name)

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def chat_template(self) -> str | None:
        template = self._file.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) and template else None

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = tokenizer_from_metadata(self.path, self._file.metadata)
        if tokenizer.vocabulary_size > self.spec.vocabulary:
            raise LoadFailed(
                f"{self.path}: {tokenizer.vocabulary_size} tokens, but embeddings for {self.spec.vocabulary} only"
            )
        return tokenizer


def _defaults(said: Settings) -> GenerationDefaults:
    def number(name: str, most: float = 1e6) -> float | None:
        return said.number(name, most=most) if said.has(name) else None

    return GenerationDefaults(
        temperature=number("temp"),
        top_p=number("top_p", 1.0),
        top_k=said.integer("top_k", least=0) if said.has("top_k") else None,
        min_p=number("min_p", 1.0),
        repetition_penalty=number("penalty_repeat"),
    )


class _Tensors:
    """What pages of `llm.architectures` may ask of the file."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def shape(self, name: str) -> tuple[int, ...] | None:
        stored = self._file.tensors.get(name)
        return None if stored is None else stored.shape

    def read(self, name: str) -> NDArray[np.float32] | None:
        stored = self._file.tensors.get(name)
        return None if stored is None else dequantise(stored)
