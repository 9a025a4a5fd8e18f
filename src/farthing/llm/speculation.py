"""Which tokens will probably come next, and is it worth to compute them before one knows?

Text repeats itself: if its last words were there before, what followed them then is a good guess now (prompt lookup
decoding). The model verifies a draft in the step in which it would have computed one token anyway: each drafted token
is a row more, and it stands if it is the very token that the sampler picks there. So output never depends on drafts,
only time does. A row more costs time, measured step by step; a drafted token is worth it as long as the chance that it
stands, times what a token costs now, is more than that. Where a grammar leaves no choice, there is no need to guess.
Nothing here is configured.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Final

import numpy as np

NGRAM: Final = 3
"""Tokens that must have been there before. Two match by chance, and four miss most of what repeats."""

DRAFT_TOKENS_MAX: Final = 8
"""Tokens of a draft at most; where nearly all stand, each step then yields nine for the price of two or so."""

LOOKBACK_TOKENS: Final = 16_384
"""How far back is looked; 10 us a look."""

SEQUENCES_PER_LOOK: Final = 4
"""Who found nothing looks again after a token for so many that run, so that many together do not spend a step looking.
"""

CHANCE_FIRST: Final = 0.5
"""Chance that a drafted token stands, before anything is known."""

CHANCE_WEIGHT: Final = 0.2
"""Weight of the newest drafted token in that chance."""

PAUSE_FIRST: Final = 16
PAUSE_MAX: Final = 512
"""Tokens for which a generation whose drafts were not worth it tries no more; doubled each time."""


class StepTimes:
    """Undisturbed time of steps in which every row has logits, by rows."""

    FALL: Final = 0.5
    RISE: Final = 0.05
    """Disturbances only ever add time, so the figure follows the fast steps, and the machine's drift."""
    SIZES_MAX: Final = 256

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._ns: dict[int, float] = {}

    def observe(self, rows: int, elapsed_ns: int) -> None:
        known = self._ns.get(rows)
        if known is None:
            if len(self._rows) < self.SIZES_MAX:
                insort(self._rows, rows)
                self._ns[rows] = float(elapsed_ns)
            return
        self._ns[rows] = known + (self.FALL if elapsed_ns < known else self.RISE) * (min(elapsed_ns, 2 * known) - known)

    @property
    def rows_max(self) -> int:
        """The largest step seen."""
        return self._rows[-1] if self._rows else 0

    def estimate_ns(self, rows: int) -> float:
        """Interpolated; more rows than were ever run are hoped to cost no more, or nobody would ever try."""
        known, ns = self._rows, self._ns
        if not known:
            return 0.0
        at = bisect_left(known, rows)
        if at == len(known):
            return ns[known[-1]]
        if known[at] == rows or at == 0:
            return ns[known[at]]
        low, high = known[at - 1], known[at]
        return ns[low] + (rows - low) / (high - low) * (ns[high] - ns[low])


class Drafter:
    """What one generation has said so far, and how its drafts have fared."""

    __slots__ = ("_history", "_is_sure", "_known", "_pause", "_resumes_at", "chance")

    def __init__(self) -> None:
        self.chance = CHANCE_FIRST
        """That a drafted token stands."""
        self._history = np.empty(0, np.int32)
        self._known = 0
        self._pause = PAUSE_FIRST
        self._resumes_at = 0
        self._is_sure = False

    def draft(self, ids: Sequence[int], tokens_max: int, rows: int, sequences: int, times: StepTimes) -> list[int]:
        """Tokens worth verifying in a step that has `rows` rows so far and yields a token for each of `sequences`."""
        self._is_sure = False
        known = len(ids)
        if known < self._resumes_at:
            return []
        wanted = worth_drafting(self.chance, rows, sequences, times, min(tokens_max, DRAFT_TOKENS_MAX))
        if not wanted:
            return []
        history = self._history
        if len(history) < known:
            self._history = np.empty(max(256, 2 * known), np.int32)
            self._history[: self._known] = history[: self._known]
            history = self._history
        history[self._known : known] = ids[self._known :]
        self._known = known
        drafted = look_up(history[max(0, known - LOOKBACK_TOKENS) : known], wanted)
        if not drafted:
            self._resumes_at = known + sequences // SEQUENCES_PER_LOOK
        return drafted

    def sure(self, tokens: Sequence[int], tokens_max: int, rows: int, sequences: int, times: StepTimes) -> list[int]:
        """The same for tokens that are known to come; how they fare says nothing about guesses."""
        self._is_sure = True
        return list(tokens[: worth_drafting(1.0, rows, sequences, times, min(tokens_max, DRAFT_TOKENS_MAX))])

    def rest(self, known: int) -> None:
        """Its drafts are not worth it: in a while it may try again."""
        if known >= self._resumes_at and self.chance < CHANCE_FIRST:
            self._resumes_at = known + self._pause
            self._pause = min(2 * self._pause, PAUSE_MAX)
            self.chance = CHANCE_FIRST

    def fared(self, drafted: int, stood: int) -> None:
        """Of so many drafted tokens so many stood; of the others only the first is known to be wrong."""
        if self._is_sure:
            return
        for is_right in (1.0,) * stood + (0.0,) * (stood < drafted):
            self.chance += CHANCE_WEIGHT * (is_right - self.chance)
        if 2 * stood >= drafted:
            self._pause = PAUSE_FIRST


def chance_needed(rows: int, sequences: int, times: StepTimes) -> float:
    """Below this no draft of any length pays: a quick look for everyone before each is asked."""
    token_ns = times.estimate_ns(rows) / max(sequences, 1)
    if token_ns <= 0.0:
        return 1.0
    before = times.estimate_ns(rows)
    return min(
        (times.estimate_ns(rows + tokens) - before) / (tokens * token_ns) for tokens in range(1, DRAFT_TOKENS_MAX + 1)
    )


def worth_drafting(chance: float, rows: int, sequences: int, times: StepTimes, tokens_max: int) -> int:
    """How many drafted tokens of one generation pay in a step of `rows` rows that yields `sequences` tokens."""
    token_ns = times.estimate_ns(rows) / max(sequences, 1)
    if token_ns <= 0.0:
        return 0
    best, gain, best_gain = 0, 0.0, 0.0
    stands = 1.0
    before = times.estimate_ns(rows)
    for tokens in range(1, tokens_max + 1):
        stands *= chance
        gain += stands * token_ns
        net = gain - (times.estimate_ns(rows + tokens) - before)
        if net > best_gain:
            best, best_gain = tokens, net
    return best


def look_up(history: np.ndarray, tokens: int) -> list[int]:
    """What followed when the last `NGRAM` tokens came last; a text that runs in a circle goes on in its circle."""
    size = len(history)
    if size <= NGRAM:
        return []
    is_same = history[NGRAM - 1 : size - 1] == history[size - 1]
    for back in range(1, NGRAM):
        is_same &= history[NGRAM - 1 - back : size - 1 - back] == history[size - 1 - back]
    found = np.flatnonzero(is_same)
    if not len(found):
        return []
    first = int(found[-1]) + NGRAM
    period = size - first
    return [int(history[first + at % period]) for at in range(tokens)]
