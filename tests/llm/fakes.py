"""A model whose every answer can be told beforehand: its logits are a hash of the tokens it can see.

`FakeRunner` writes tokens and positions into KV blocks of its own and reads them back through the block tables it is
given, so a wrong, stale or shared block gives a wrong token. `FakeModel.logits` is the same without any blocks.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from farthing.llm.runners.runner import Step
from farthing.llm.spec import DecoderSpec, Rotary, RotaryKind
from farthing.telemetry.clock import ManualClock

EOS = 2
SPECIAL = frozenset({0, 1, EOS})


def fake_spec(vocabulary: int, context_tokens: int) -> DecoderSpec:
    return DecoderSpec(
        architecture="fake",
        vocabulary=vocabulary,
        context_tokens=context_tokens,
        layers=1,
        width=2,
        heads=1,
        kv_heads=1,
        head_size=2,
        ffn_width=2,
        norm_epsilon=1e-5,
        rotary_kind=RotaryKind.HALVES,
        rotaries=(Rotary(frequencies=(1.0,)),),
        rotary_of_layer=(0,),
        window_of_layer=(0,),
        attention_scale=1.0,
    )


class FakeModel:
    """Logits from tokens. The last two tokens matter most, so that its text repeats itself now and then."""

    def __init__(self, vocabulary: int = 40, seed: int = 0) -> None:
        self.vocabulary = vocabulary
        chance = np.random.default_rng(seed)
        self._by_last = chance.normal(size=(256, vocabulary)).astype(np.float32) * 3
        self._by_all = chance.normal(size=(1024, vocabulary)).astype(np.float32)

    def logits(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        data = np.asarray(tokens, np.int32)
        last = zlib.crc32(data[-2:].tobytes()) & 255
        return self._by_last[last] + self._by_all[zlib.crc32(data.tobytes()) & 1023]


class FakeRunner:
    """The runner's contract, checked at each call."""

    def __init__(
        self,
        model: FakeModel,
        *,
        blocks: int,
        block_tokens: int = 4,
        context_tokens: int = 256,
        clock: ManualClock | None = None,
        cost_ns: Callable[[int], int] = lambda rows: 0,
    ) -> None:
        """Each run takes as long as `cost_ns` says for its rows."""
        self.model = model
        self.clock = clock
        self.cost_ns = cost_ns
        self.spec = fake_spec(model.vocabulary, context_tokens)
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.tokens = np.full((blocks, block_tokens), -1, np.int32)
        self.positions = np.full((blocks, block_tokens), -1, np.int32)
        self.steps = 0
        self.rows: list[tuple[int, ...]] = []
        """Rows of each sequence, a step."""
        self.fails_at: set[int] = set()
        self.is_closed = False

    def run(self, step: Step) -> np.ndarray:
        assert not self.is_closed
        self.steps += 1
        assert step.tokens.dtype == np.int32
        assert step.logits_rows.dtype == np.int32
        assert len(step.tokens) == sum(one.rows for one in step.sequences) > 0
        assert (np.diff(step.logits_rows) > 0).all()
        size = self.block_tokens
        first = 0
        written: set[tuple[int, int]] = set()
        for one in step.sequences:
            assert one.rows >= 1
            assert one.blocks.dtype == np.int32
            for at in range(one.rows):
                position = one.start + at
                place = (int(one.blocks[position // size]), position % size)
                assert place not in written, "two rows of a step write to one place"
                written.add(place)
                self.tokens[place] = step.tokens[first + at]
                self.positions[place] = position
            first += one.rows
        if self.steps in self.fails_at:
            raise RuntimeError("the machine is on fire")
        logits = np.empty((len(step.logits_rows), self.model.vocabulary), np.float32)
        first = at = 0
        for one in step.sequences:
            while at < len(step.logits_rows) and step.logits_rows[at] < first + one.rows:
                seen = one.start + int(step.logits_rows[at]) - first + 1
                table = one.blocks[: -(-seen // size)]
                assert (self.positions[table].ravel()[:seen] == np.arange(seen)).all(), "reads what was never written"
                logits[at] = self.model.logits(self.tokens[table].ravel()[:seen])
                at += 1
            first += one.rows
        if self.clock is not None:
            self.clock.advance(ns=self.cost_ns(len(step.tokens)))
        self.rows.append(tuple(one.rows for one in step.sequences))
        return logits

    def copy_block(self, source: int, target: int) -> None:
        assert source != target
        self.tokens[target] = self.tokens[source]
        self.positions[target] = self.positions[source]

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


class FakeTokenizer:
    """Tokens of one to three bytes, some of which cut a character in two."""

    def __init__(self, vocabulary: int = 40) -> None:
        parts = [
            "<s>",
            "<x>",
            "</s>",
            "é".encode()[:1],
            "é".encode()[1:],
            "日".encode()[:2],
            "日".encode()[2:],
            b"\xff",
        ]
        self._bytes = [part.encode() if isinstance(part, str) else part for part in parts]
        letters = "abcdefgh ijklmno"
        while len(self._bytes) < vocabulary:
            number = len(self._bytes) - len(parts)
            text = letters[number % 16] if number < 16 else letters[number % 5] + letters[number % 7]
            self._bytes.append(text.encode())
        self.eos_ids = frozenset({EOS})
        self.special_ids = SPECIAL

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def encode(self, text: str, *, adds_special: bool = False) -> list[int]:
        """Longest pieces first; what cannot be spelt is left out."""
        data, ids = text.encode(), []
        pieces = sorted(range(3, len(self._bytes)), key=lambda one: -len(self._bytes[one]))
        while data:
            token = next((one for one in pieces if data.startswith(self._bytes[one])), None)
            ids += [] if token is None else [token]
            data = data[1 if token is None else len(self._bytes[token]) :]
        return ids

    def text(self, tokens: Sequence[int], *, skips_special: bool = True) -> str:
        kept = [one for one in tokens if not (skips_special and one in SPECIAL)]
        return b"".join(self._bytes[one] for one in kept).decode("utf-8", "replace")
