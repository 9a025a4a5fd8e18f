"""A Hugging Face folder as a checkpoint: config.json, safetensors (whole or in shards), tokenizer and templates.

Only regular files inside the folder are opened, only JSON, Jinja text and safetensors are read; a pickle never is. A
folder may be a cache's snapshot, whose files are links to blobs beside it: links may lead anywhere the operator's own
folder leads, names in the index may not.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import tokenizers
from numpy.typing import NDArray

from farthing.llm.architectures import family_of_hugging_face
from farthing.llm.architectures.settings import Settings
from farthing.llm.checkpoints.canonical import CanonicalTensors
from farthing.llm.checkpoints.checkpoint import GenerationDefaults, StoredTensor
from farthing.llm.checkpoints.identity import identity_of
from farthing.llm.checkpoints.safetensors import safetensors_in
from farthing.llm.spec import DecoderSpec
from farthing.llm.tokenizer import Tokenizer
from farthing.types.errors import LoadFailed

CONFIG_BYTES_MAX: Final = 16 << 20
TOKENIZER_BYTES_MAX: Final = 256 << 20
SHARDS_MAX: Final = 1_000

_NAMED: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_IGNORED: Final = (".rotary_emb.inv_freq",)
"""Buffers that old versions of transformers wrote; they follow from the configuration."""


class HuggingFaceCheckpoint:
    """Implements `Checkpoint`."""

    def __init__(self, folder: Path) -> None:
        config = Settings(folder / "config.json", _object(folder / "config.json", CONFIG_BYTES_MAX))
        if config.has("quantization_config"):
            raise config.wrong("quantization_config", "weights quantised for other programs cannot be read")
        family = family_of_hugging_face(config.where, config.text("model_type"))
        self.path: Final = folder
        self.spec: Final[DecoderSpec] = family.spec_of_config(config)
        self._config = config
        self._files = _weight_files(folder)
        self._stored: dict[str, StoredTensor] = {}
        for file in self._files:
            for name, stored in safetensors_in(file).items():
                if name in self._stored:
                    raise LoadFailed(f"{file}: tensor `{name[:100]}` is also in another file of {folder}")
                self._stored[name] = stored
        sources = family.sources_of_config(self.spec)
        ignored = (*_IGNORED, "lm_head.weight") if self.spec.ties_head else _IGNORED
        self._tensors = CanonicalTensors(folder, self.spec, sources, self._stored, ignored=ignored)
        self._generation = Settings(folder / "generation_config.json", _optional(folder / "generation_config.json"))
        self._tokenizer_config = _optional(folder / "tokenizer_config.json")

    @cached_property
    def identity(self) -> str:
        return identity_of([self._config.where, *self._files], self._stored)

    @cached_property
    def generation_defaults(self) -> GenerationDefaults:
        said = self._generation
        if said.get("do_sample") is False:
            return GenerationDefaults(temperature=0.0)

        def number(name: str, most: float = 1e6) -> float | None:
            return said.number(name, most=most) if said.has(name) else None

        return GenerationDefaults(
            temperature=number("temperature"),
            top_p=number("top_p", 1.0),
            top_k=said.integer("top_k", least=0) if said.has("top_k") else None,
            min_p=number("min_p", 1.0),
            repetition_penalty=number("repetition_penalty"),
        )

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self._tensors.tensor(name)

    def stored(self, name: str) -> StoredTensor:
        return self._tensors.stored(name)

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def chat_template(self) -> str | None:
        path = self.path / "chat_template.jinja"
        if path.is_file():
            return _text(path, CONFIG_BYTES_MAX)
        template = self._tokenizer_config.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
            template = named.get("default")
        return template if isinstance(template, str) and template else None

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        path = self.path / "tokenizer.json"
        text = _text(path, TOKENIZER_BYTES_MAX)
        try:
            library = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exceptions
            raise LoadFailed(f"{path}: no tokenizer can be made of it: {error}") from error
        named = {}
        others = _optional(self.path / "special_tokens_map.json")
        for name in _NAMED:
            said = self._tokenizer_config.get(name, others.get(name))
            content = said.get("content") if isinstance(said, dict) else said
            if isinstance(content, str):
                named[name] = content
        bos = library.token_to_id(named["bos_token"]) if "bos_token" in named else None
        tokenizer = Tokenizer(library, eos_ids=self._ends(library, named), bos_id=bos, named=named)
        if tokenizer.vocabulary_size > self.spec.vocabulary:
            raise LoadFailed(
                f"{path}: {tokenizer.vocabulary_size} tokens, but embeddings for {self.spec.vocabulary} only",
                hint="tokenizer.json and the weights belong to different models",
            )
        return tokenizer

    def _ends(self, library: tokenizers.Tokenizer, named: dict[str, str]) -> set[int]:
        """What ends a text: by generation_config.json, else config.json, and the tokenizer's own end-of-text."""
        said = self._generation if self._generation.has("eos_token_id") else self._config
        ids = said.get("eos_token_id")
        ends = set(ids if isinstance(ids, list) else [] if ids is None else [ids])
        if not all(type(one) is int and 0 <= one < self.spec.vocabulary for one in ends):
            raise said.wrong("eos_token_id", "ids of the vocabulary are needed")
        own = library.token_to_id(named["eos_token"]) if "eos_token" in named else None
        return ends if own is None else ends | {own}


def _weight_files(folder: Path) -> list[Path]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise LoadFailed(
            f"{folder}: neither model.safetensors nor model.safetensors.index.json is there",
            hint="weights in .bin or .pt files are pickles, which are programs; save the model as safetensors",
        )
    places = _object(index, CONFIG_BYTES_MAX).get("weight_map")
    names = sorted(set(places.values())) if isinstance(places, dict) and _are_texts(places.values()) else []
    if not 0 < len(names) <= SHARDS_MAX:
        raise LoadFailed(f"{index}: `weight_map` has to name 1 to {SHARDS_MAX} files")
    for name in names:
        if Path(name).name != name or name in {"", ".", ".."} or "\\" in name or not name.endswith(".safetensors"):
            raise LoadFailed(f"{index}: names the file `{name[:100]}`; only *.safetensors beside it are read")
    return [folder / name for name in names]


def _are_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _optional(path: Path) -> dict[str, Any]:
    return _object(path, CONFIG_BYTES_MAX) if path.is_file() else {}


def _object(path: Path, most: int) -> dict[str, Any]:
    try:
        value = json.loads(_text(path, most))
    except (ValueError, RecursionError) as error:
        raise LoadFailed(f"{path}: not sound JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadFailed(f"{path}: an object is needed")
    return value


def _text(path: Path, most: int) -> str:
    try:
        if not path.is_file():
            raise LoadFailed(f"{path}: no such file", hint="copy the whole folder of the model")
        size = path.stat().st_size
        if size > most:
            raise LoadFailed(f"{path}: {size} bytes; {most} are allowed")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadFailed(f"{path}: cannot be read: {error}") from error
