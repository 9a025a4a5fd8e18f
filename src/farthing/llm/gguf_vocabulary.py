"""A tokenizer from a GGUF file's metadata (`tokenizer.ggml.*`): the vocabulary is in there, the algorithm only by name.

    gpt2     byte-level BPE; `pre` names the expression that first cuts a text into words
    llama    SentencePiece's BPE: pieces have scores, any two that make a third may merge, best score first

The expressions are those of the models' own tokenizer.json files, as llama.cpp names them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from farthing.llm.tokenizer import Tokenizer
from farthing.types.errors import LoadFailed

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORTENED: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES_AND_SPACE: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3: Final = (
    rf"{_SHORTENED}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES_AND_SPACE}"
)
_QWEN2: Final = rf"{_SHORTENED}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES_AND_SPACE}"
_UPPER: Final = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER: Final = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED: Final = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+END|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*END"
_GPT4O: Final = (
    _CASED.replace("END", f"{_SHORTENED}?") + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES_AND_SPACE}"
)
_TEKKEN: Final = _CASED.replace("END", "") + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES_AND_SPACE}"

_DIGITS_FIRST: Final = "digits, then gpt-2"

PRE_TOKENIZERS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "trillion", "granite-docling"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_FIRST),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), _QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "tekken": _TEKKEN,
}
"""`tokenizer.ggml.pre` -> the expression whose matches are the words."""

_LLAMA3_LIKE: Final = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"})
"""A word that is a token is that token, whatever the merges would make of it (`ignore_merges`); and begin-of-text is
added where the file does not say."""
_ENDS: Final = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<eos>"}
)
"""Control tokens that end a turn or a text even where the file's own fields forget one of them."""

PIECE_CHARACTERS_MAX: Final = 1_000
"""Of one SentencePiece piece; every place to cut it is looked at."""

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type`; 1 is an ordinary piece."""

_PREFIX: Final = "tokenizer.ggml."
_NAMED: Final = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_from_metadata(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file describes. Raises `LoadFailed` naming the field that is at fault."""
    return _Vocabulary(path, metadata).tokenizer()


class _Vocabulary:
    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path = path
        self._metadata = metadata
        self._tokens = self._strings("tokens")
        kinds = self._get("token_type")
        self._kinds = np.ones(len(self._tokens), np.int32) if kinds is None else np.asarray(kinds)
        if not self._tokens or self._kinds.shape != (len(self._tokens),):
            raise self._wrong(f"{len(self._tokens)} tokens with types of shape {self._kinds.shape}")
        self._pre = str(self._get("pre", ""))

    def tokenizer(self) -> Tokenizer:
        model = self._get("model")
        makers = {"gpt2": self._byte_level, "llama": self._by_score}
        if model not in makers:
            raise self._wrong(f"tokenizer.ggml.model is {model!r}; {' and '.join(makers)} are understood")
        try:
            library = makers[model]()
            for kind, is_special in ((CONTROL, True), (UNKNOWN, True), (USER_DEFINED, False)):
                tokens = [
                    AddedToken(name, special=is_special, normalized=False, rstrip=self._takes_space_after(name))
                    for name in (self._tokens[number] for number in self._of_kind(kind))
                    if name
                ]
                (library.add_special_tokens if is_special else library.add_tokens)(tokens)
            return self._surrounded(library, adds_bos=model == "llama" or self._pre in _LLAMA3_LIKE)
        except LoadFailed:
            raise
        except Exception as error:  # the library raises plain Exceptions for vocabularies that contradict themselves
            raise self._wrong(str(error)) from error

    def _byte_level(self) -> tokenizers.Tokenizer:
        if self._pre not in PRE_TOKENIZERS:
            raise self._wrong(
                f"tokenizer.ggml.pre is {self._pre!r}; understood: {', '.join(sorted(PRE_TOKENIZERS))}",
                hint="serve the model's Hugging Face folder instead: its tokenizer.json says how texts are cut",
            )
        parts = (merge.partition(" ") for merge in self._strings("merges"))
        merges = [(left, right) for left, _, right in parts]
        library = tokenizers.Tokenizer(
            models.BPE(self._ids(), merges, ignore_merges=self._pre in _LLAMA3_LIKE, fuse_unk=False)
        )
        expression = PRE_TOKENIZERS[self._pre]
        if expression == _DIGITS_FIRST:
            cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        else:
            split = pre_tokenizers.Split(tokenizers.Regex(expression), behavior="isolated")
            cut = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        library.pre_tokenizer = pre_tokenizers.Sequence(cut)
        library.decoder = decoders.ByteLevel()
        return library

    def _by_score(self) -> tokenizers.Tokenizer:
        scores = self._get("scores")
        if getattr(scores, "shape", None) != (len(self._tokens),):
            raise self._wrong("tokenizer.ggml.scores has to be one number a token")
        pieces = {
            token: score
            for token, score, kind in zip(self._tokens, scores.tolist(), self._kinds.tolist(), strict=True)
            if kind not in {CONTROL, UNKNOWN, UNUSED, BYTE}
        }
        longest = max(map(len, pieces), default=0)
        if longest > PIECE_CHARACTERS_MAX:
            raise self._wrong(f"a piece of {longest} characters; {PIECE_CHARACTERS_MAX} are allowed")
        unknown = self._token("unknown")
        library = tokenizers.Tokenizer(
            models.BPE(self._ids(), _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True)
        )
        has_prefix = bool(self._get("add_space_prefix", True))
        spaces = normalizers.Replace(" ", "\u2581")
        library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if has_prefix else spaces
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        library.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
        return library

    def _surrounded(self, library: tokenizers.Tokenizer, *, adds_bos: bool) -> Tokenizer:
        bos, eos = self._id("bos"), self._id("eos")
        before = [bos] if bos is not None and self._get("add_bos_token", adds_bos) else []
        after = [eos] if eos is not None and self._get("add_eos_token", False) else []
        if before or after:
            names = {number: f"special{number}" for number in (*before, *after)}
            library.post_processor = processors.TemplateProcessing(
                single=" ".join([*map(names.__getitem__, before), "$A", *map(names.__getitem__, after)]),
                special_tokens=[(name, number) for number, name in names.items()],
            )
        ends = {number for name in ("eos", "eot", "eom") if (number := self._id(name)) is not None}
        ends |= {number for number in self._of_kind(CONTROL) if self._tokens[number] in _ENDS}
        named = {word: found for name, word in _NAMED.items() if (found := self._token(name)) is not None}
        return Tokenizer(library, eos_ids=ends, bos_id=bos, named=named)

    def _takes_space_after(self, name: str) -> bool:
        """Phi-3's control tokens swallow the white space behind them, which GGUF files have no field for."""
        is_phi3 = self._metadata.get("general.architecture") == "phi3" and self._get("model") == "llama"
        return is_phi3 and name not in {"<unk>", "<s>", "<|endoftext|>"}

    def _ids(self) -> dict[str, int]:
        """Of equal tokens the first."""
        return dict(zip(reversed(self._tokens), range(len(self._tokens) - 1, -1, -1), strict=True))

    def _of_kind(self, kind: int) -> list[int]:
        numbers: list[int] = np.flatnonzero(self._kinds == kind).tolist()
        return numbers

    def _id(self, name: str) -> int | None:
        number = self._get(f"{name}_token_id")
        if number is None:
            return None
        if type(number) is not int or not 0 <= number < len(self._tokens):
            raise self._wrong(f"tokenizer.ggml.{name}_token_id is {number!r}; there are {len(self._tokens)} tokens")
        return number

    def _token(self, name: str) -> str | None:
        number = self._id(name)
        return None if number is None else self._tokens[number]

    def _strings(self, name: str) -> list[str]:
        strings = self._get(name)
        if not isinstance(strings, list) or not set(map(type, strings)) <= {str}:
            raise self._wrong(f"tokenizer.ggml.{name} has to be an array of strings")
        return strings

    def _get(self, name: str, default: Any = None) -> Any:
        return self._metadata.get(_PREFIX + name, default)

    def _wrong(self, reason: str, *, hint: str = "") -> LoadFailed:
        return LoadFailed(f"{self._path}: no tokenizer can be made of its metadata: {reason}", hint=hint)


def _merges(pieces: Mapping[str, float]) -> Sequence[tuple[str, str]]:
    """Every two pieces that make a third, best score first."""
    found: list[tuple[float, int, str, str]] = []
    for piece, score in pieces.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in pieces and right in pieces:
                found.append((-score, len(found), left, right))
    found.sort()
    return [(left, right) for _, _, left, right in found]
