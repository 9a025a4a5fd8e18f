"""Text to token ids and back, and the exact bytes of each token, through the `tokenizers` library.

Whether a control token's name inside a text means that token is the caller's choice: `parses_special`. Reading a
tokenizer from disk belongs to `checkpoints` and `gguf_vocabulary`, putting messages into a prompt to `chat_template`.
"""

import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import tokenizers

from farthing.types.errors import LoadFailed

_SPACE: Final = "\u2581"
"""What SentencePiece writes for a space."""
_ARMED: Final = "\U0010fffd"
"""Stands before the name of a control token in texts for the wary tokenizer: a character reserved for private use."""


def _byte_alphabet() -> dict[str, int]:
    """The characters byte-level vocabularies are written in (GPT-2): printable bytes as themselves, others from 256."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


_BYTES: Final = _byte_alphabet()
_BYTE_TOKEN: Final = re.compile("<0x([0-9A-F]{2})>")


class Tokenizer:
    """A model's vocabulary. Safe to use from several threads."""

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        *,
        eos_ids: Iterable[int],
        bos_id: int | None = None,
        named: Mapping[str, str] | None = None,
    ) -> None:
        """`named` are the control tokens that chat templates know by name: bos_token, eos_token and so on."""
        library.no_truncation()
        library.no_padding()
        self._library = library
        self._added: dict[int, Any] = library.get_added_tokens_decoder()
        self.special_ids: Final = frozenset(number for number, token in self._added.items() if token.special)
        self.eos_ids: Final = frozenset(eos_ids)
        self.bos_id: Final = bos_id
        self.named: Final = dict(named or {})
        vocabulary = library.get_vocab_size(with_added_tokens=True)
        self.vocabulary_size: Final = max(vocabulary, *(number + 1 for number in self._added), 1)
        """One more than the highest id; the model's own vocabulary may be larger (padded)."""
        self._prefix, self._suffix = _surroundings(library)
        self.adds_bos: Final = bos_id is not None and bos_id in self._prefix
        self._spelling = _Spelling(library)
        names = [name for number in self.special_ids if len(name := self._added[number].content) > 1]
        self._special = _any_of(names)
        self._special_starts = re.compile(f"(?={self._special.pattern})") if self._special else None
        self._name_beginnings = {name[:end] for name in names for end in range(1, len(name))}
        self._name_characters_max = max(map(len, names), default=0)
        # A normaliser could make a control token of something that is none yet; then no text is trusted.
        self._is_always_wary = library.normalizer is not None and any(
            self._added[number].normalized for number in self.special_ids
        )
        self._wary: _Wary | None = None
        self._lock = threading.Lock()

    def encode(self, text: str, *, adds_special: bool = True, parses_special: bool = False) -> list[int]:
        """Token ids. `adds_special` puts around them what the model expects (a begin-of-text token, or nothing).

        With `parses_special` the name of a control token in the text becomes that token; without, it stays text.
        """
        if parses_special or not (self._is_always_wary or self.holds_special(text)):
            ids = self._library.encode(text, add_special_tokens=False).ids
        else:
            ids = self._wary_encode(_disarmed_marks(text))
        return [*self._prefix, *ids, *self._suffix] if adds_special else list(ids)

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """Token ids of a rendered prompt in which `mark` breaks control tokens that are to stay text.

        `mark` is one character, from `disarm`; it is taken out. Control tokens that it does not break are parsed.
        """
        if mark not in text and not self._is_always_wary:
            return list(self._library.encode(text, add_special_tokens=False).ids)
        armed = self._special.sub(lambda found: _ARMED + found[0], _disarmed_marks(text)) if self._special else text
        return self._wary_encode(armed.replace(mark, ""))

    def disarm(self, text: str, mark: str) -> str:
        """The text with `mark` after the first character of every control token's name that stands in it or that its
        end begins, so that no name starts in it, whatever comes to stand behind it."""
        if self._special_starts is None:
            return text
        at = {found.start() for found in self._special_starts.finditer(text)}
        first = max(0, len(text) - self._name_characters_max)
        at |= {start for start in range(first, len(text)) if text[start:] in self._name_beginnings}
        pieces = [text[start : end + 1] for start, end in zip([0, *(i + 1 for i in sorted(at))], sorted(at))]  # noqa: B905
        return mark.join([*pieces, text[max(at) + 1 :]]) if at else text

    def holds_special(self, text: str) -> bool:
        """Whether a control token's name stands in the text."""
        return self._special is not None and self._special.search(text) is not None

    def decode(self, ids: Sequence[int], *, skips_special: bool = True) -> str:
        """The text of a sequence from its beginning; what is no UTF-8 becomes U+FFFD."""
        kept = (one for one in ids if not (skips_special and one in self.special_ids))
        text = b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")
        return text[1:] if self._spelling.strips_first_space and text.startswith(" ") else text

    def token_bytes(self, number: int) -> bytes:
        """Exactly what the token adds to a text that it continues; empty for ids that are only padding."""
        if token := self._added.get(number):
            return self._spelling.added(token)
        text = self._library.id_to_token(number) if number >= 0 else None
        return self._spelling.bytes_of(text) if text is not None else b""

    def token_id(self, text: str) -> int | None:
        """The id of the token of that name."""
        number: int | None = self._library.token_to_id(text)
        return number

    @cached_property
    def token_characters_max(self) -> int:
        """Characters that one token may stand for, at most: what bounds a text's tokens from below."""
        return max(map(len, self._library.get_vocab(with_added_tokens=True)), default=1)

    def _wary_encode(self, text: str) -> list[int]:
        with self._lock:
            wary = self._wary = self._wary or _Wary(self._library)
        return wary.encode(text)


class _Wary:
    """A second tokenizer in which control tokens are only found with the mark `_ARMED` before them."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        described = json.loads(library.to_str())
        kept = described.pop("added_tokens", [])
        described["post_processor"] = None
        self._library = tokenizers.Tokenizer.from_str(json.dumps(described))
        self._ids: dict[int, int] = {}
        for token in kept:
            armed = _ARMED + token["content"] if token["special"] else token["content"]
            flags = {name: token[name] for name in ("single_word", "lstrip", "rstrip")}
            is_normalised = token["normalized"] and not token["special"]
            added = tokenizers.AddedToken(armed, normalized=is_normalised, special=token["special"], **flags)
            (self._library.add_special_tokens if token["special"] else self._library.add_tokens)([added])
            number = self._library.token_to_id(armed)
            assert number is not None  # it was added in the line before
            self._ids[number] = token["id"]

    def encode(self, text: str) -> list[int]:
        ids = self._library.encode(text, add_special_tokens=False).ids
        return [self._ids.get(one, one) for one in ids]


class _Spelling:
    """How this vocabulary writes bytes, taken from its decoder."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        steps = _steps(json.loads(library.decoder.__getstate__())) if library.decoder is not None else []
        kinds = {step["type"] for step in steps}
        self._is_byte_level = "ByteLevel" in kinds
        self._has_byte_tokens = "ByteFallback" in kinds
        self._space = next((step["replacement"] for step in steps if step["type"] == "Metaspace"), _SPACE)
        if not kinds & {"ByteLevel", "ByteFallback", "Metaspace", "Replace"}:
            raise LoadFailed(
                f"the tokenizer's decoder ({', '.join(sorted(kinds)) or 'none'}) is not understood",
                hint="byte-level and SentencePiece-style vocabularies are",
            )
        self.strips_first_space: Final = any(
            (step["type"] == "Strip" and step.get("start", 0) > 0)
            or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
            for step in steps
        )

    def bytes_of(self, text: str) -> bytes:
        if self._is_byte_level:
            try:
                return bytes([_BYTES[character] for character in text])
            except KeyError:  # not written in the alphabet: a name rather than a piece of text
                return text.encode()
        if self._has_byte_tokens and (byte := _BYTE_TOKEN.fullmatch(text)):
            return bytes.fromhex(byte[1])
        return text.replace(self._space, " ").encode()

    def added(self, token: Any) -> bytes:
        text: str = token.content
        return (text if self._is_byte_level or token.special else text.replace(self._space, " ")).encode()


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [inner for step in decoder["decoders"] for inner in _steps(step)]


def _surroundings(library: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """What the library puts before and after a text when asked for special tokens."""
    bare = library.encode("a", add_special_tokens=False).ids
    full = library.encode("a", add_special_tokens=True).ids
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return full[:at], full[at + len(bare) :]
    return [], []


def _any_of(names: Sequence[str]) -> "re.Pattern[str] | None":
    named = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, named))) if named else None


def _disarmed_marks(text: str) -> str:
    # A client could otherwise arm a control token itself. Nobody writes this character: it means nothing.
    return text.replace(_ARMED, "\ufffd") if _ARMED in text else text
