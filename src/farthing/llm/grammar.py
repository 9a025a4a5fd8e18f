"""Which tokens keep a text within a grammar: compiled for a model's vocabulary, followed token by token.

`llguidance` does the work (Lark with JSON schemas and regular expressions in it); this is the only file that knows it.
Grammars come from strangers: compiling one and each mask have bounds on what they may cost, and one that goes over
them is refused, or ends its own request. What a grammar is written from is in `grammar_text`. Which tokens may come
depends on those before alone, so the same request still gets the same answer.
"""

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, Protocol, cast

import numpy as np

from farthing.llm.wording import Vocabulary
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput, TooLarge
from farthing.types.grammar import GrammarState, Masks

TEXT_CHARACTERS_MAX: Final = 1 << 19
"""Of one grammar, schemas included: hundreds of tools with long descriptions."""
KEPT_MAX: Final = 32
"""Compiled grammars a model keeps for the next request. Most take well under a MB, the worst that `FIRST_FUEL` lets
through 40."""
FIRST_FUEL: Final = 250_000
"""What building the lexer may cost: `a{1000}{1000}` is refused after 0.1 s and 40 MB, ten thousand words in an enum
pass in 20 ms."""
STEP_FUEL: Final = 100_000
STEP_ITEMS_MAX: Final = 25_000
"""What one mask may cost: some 7 ms and 1 ms (14,000 and 20,000 a ms by the library's own figures). Masks of ordinary
schemas take 0.05 to 0.1 ms."""
LEXER_STATES_MAX: Final = 50_000
"""1 to 2 KB each, for each choice; ordinary schemas have some hundreds."""

REASON_CHARACTERS_MAX: Final = 400
"""What an error repeats of the library's words, which quote the grammar."""
PIECE_BYTES_MAX: Final = 256
"""Longest token that a text is cut into when the tokenizer's own way does not give the same bytes."""

log = logging.getLogger(__name__)


class Speller(Vocabulary, Protocol):
    """A tokenizer, as far as grammars ask."""

    def encode(self, text: str, *, adds_special: bool) -> list[int]: ...


class GrammarCompiler:
    """Makes grammars for one model. Safe to use from several threads; one compiles at a time."""

    def __init__(self, tokenizer: Speller, vocabulary: int) -> None:
        """`vocabulary`: logits a row has."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._lock = threading.Lock()  # of what is kept; never held for long
        self._compiling = threading.Lock()
        self._library: Any = None
        self._kept: OrderedDict[str, CompiledGrammar] = OrderedDict()

    def compile(self, text: str) -> "CompiledGrammar":
        """The grammar written in `text`, kept for the next one who asks. Raises `InvalidInput` with what is wrong."""
        _check_size(text)
        if (kept := self._found(text)) is not None:
            return kept
        with self._compiling:
            kept = self._found(text) or self._compiled(text)
            with self._lock:
                self._kept[text] = kept
                if len(self._kept) > KEPT_MAX:
                    self._kept.popitem(last=False)
            return kept

    def check(self, text: str) -> None:
        """Raises `InvalidInput` with what is wrong, and keeps nothing."""
        _check_size(text)
        if self._found(text) is None:
            with self._compiling:
                self._compiled(text)

    def _found(self, text: str) -> "CompiledGrammar | None":
        with self._lock:
            kept = self._kept.get(text)
            if kept is not None:
                self._kept.move_to_end(text)
            return kept

    def _compiled(self, text: str) -> "CompiledGrammar":
        import llguidance

        if self._library is None:
            spelling = _Spelling(self._tokenizer, self._vocabulary)
            self._library = llguidance.LLTokenizer(
                cast("Any", spelling), n_vocab=self._vocabulary, eos_token=spelling.eos_ids or None
            )
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=FIRST_FUEL,
            step_lexer_fuel=STEP_FUEL,
            step_max_items=STEP_ITEMS_MAX,
            max_lexer_states=LEXER_STATES_MAX,
            verbose_errors=False,
        )
        matcher = llguidance.LLMatcher(self._library, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise InvalidInput(_reason(matcher))
        compiled = CompiledGrammar(matcher, -(-self._library.vocab_size // 32), self._tokenizer.eos_ids)
        compiled.start().masks((), ())  # what breaks down at once is the request's fault, and said before it begins
        return compiled


class CompiledGrammar:
    """A grammar at its beginning."""

    def __init__(self, matcher: Any, words: int, eos_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._words = words
        """Of a mask. The library makes up a token more for vocabularies without an end of text."""
        self._eos_ids = eos_ids

    def start(self) -> GrammarState:
        """A text of its own."""
        return _State(self._matcher.deep_copy(), self._words, self._eos_ids)


class _State:
    """One text and how far it has come."""

    def __init__(self, matcher: Any, words: int, eos_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._words = words
        self._eos_ids = eos_ids

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_stopped())

    def allowed(self, draft: Sequence[int]) -> int:
        ends = (at for at, token in enumerate(draft) if token in self._eos_ids)
        plain = list(draft[: next(ends, len(draft))])
        return int(self._matcher.validate_tokens(plain)) if plain else 0

    def forced(self) -> Sequence[int]:
        tokens: list[int] = self._matcher.compute_ff_tokens()
        return tokens

    def masks(self, draft: Sequence[int], unwanted: Sequence[int]) -> Masks:
        matcher = self._matcher
        masks = np.zeros((len(draft) + 1, self._words), np.uint32)
        for at, mask in enumerate(masks):
            if at and not matcher.consume_token(draft[at - 1]):
                raise _broken(matcher, f"token {draft[at - 1]} of a draft")
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if matcher.is_error():
                raise _broken(matcher)
            if unwanted:
                _leave_out(mask, unwanted)
        if draft and not matcher.rollback(len(draft)):
            raise _broken(matcher, "taking back a draft")
        return masks

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise _broken(self._matcher, f"token {token}")


def _check_size(text: str) -> None:
    if len(text) > TEXT_CHARACTERS_MAX:
        raise TooLarge(f"the grammar has {len(text)} characters; {TEXT_CHARACTERS_MAX} are allowed")


def _leave_out(mask: np.ndarray, unwanted: Sequence[int]) -> None:
    """Clears these tokens' bits, unless nothing else is left."""
    kept = mask.copy()
    for token in unwanted:
        kept[token >> 5] &= ~np.uint32(1 << (token & 31))
    if kept.any():
        mask[:] = kept


def _broken(matcher: Any, at: str = "") -> FarthingError:
    """Grammars over their bounds are the request's fault, a token that no mask had let through would be ours."""
    reason = _reason(matcher)
    if at and "too many" not in reason.lower():
        return EngineFailed(f"the grammar broke down at {at}: {reason}")
    return InvalidInput(f"the grammar cannot be followed any further: {reason}", hint="make it simpler")


def _reason(matcher: Any) -> str:
    """The library's words, without the lines of the grammar that it shows and the state of its parser."""
    if matcher.get_error().startswith("panic"):
        return "it is more than can be compiled"
    said = _SHOWN_LINE.split(str(matcher.get_error()).replace("<non-verbose/>", ""), maxsplit=1)[0]
    return _IN_JSON.sub("", " ".join(said.split()))[:REASON_CHARACTERS_MAX] or "no reason given"


_SHOWN_LINE: Final = re.compile(r"^ *\d+ \| ", re.MULTILINE)
_IN_JSON: Final = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")


class _Spelling:
    """The vocabulary as the library asks for it (`llguidance.TokenizerWrapper`'s fields): each token's bytes, and how
    the model is used to see a text cut."""

    is_tokenizer_wrapper: Final = True

    def __init__(self, tokenizer: Speller, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocabulary)]
        self.special_token_ids = sorted(token for token in tokenizer.special_ids if token < vocabulary)
        self.eos_ids = sorted(token for token in tokenizer.eos_ids if token < vocabulary)
        self.eos_token_id = self.eos_ids[0] if self.eos_ids else None
        self.bos_token_id = None
        self._pieces: dict[bytes, int] | None = None

    def __call__(self, text: str) -> list[int]:
        """Tokens that spell exactly this, wherever it stands. Called by the library where a text is forced."""
        data = text.encode(errors="replace")
        ids = self._tokenizer.encode(text, adds_special=False)
        if self._spell(ids, data):
            return ids
        # SentencePiece puts a space before the first word: put something else before it, and take that away again.
        ids = self._tokenizer.encode(f"\n{text}", adds_special=False)
        for start in range(len(ids)):
            if self._spell(ids[start:], data):
                return ids[start:]
        return self._longest_pieces(data)

    def _spell(self, ids: Sequence[int], data: bytes) -> bool:
        return b"".join(self.tokens[one] for one in ids if one < len(self.tokens)) == data

    def _longest_pieces(self, data: bytes) -> list[int]:
        """For vocabularies that change what they read (normalisers)."""
        if self._pieces is None:
            special = set(self.special_token_ids)
            named = ((piece, token) for token, piece in enumerate(self.tokens) if token not in special)
            self._pieces = {piece: token for piece, token in named if 0 < len(piece) <= PIECE_BYTES_MAX}
        ids: list[int] = []
        at = 0
        while at < len(data):
            for end in range(min(len(data), at + PIECE_BYTES_MAX), at, -1):
                if (token := self._pieces.get(data[at:end])) is not None:
                    ids.append(token)
                    break
            else:
                log.warning("the vocabulary cannot spell byte %d, which a grammar asks for", data[at])
                return ids
            at = end
        return ids
