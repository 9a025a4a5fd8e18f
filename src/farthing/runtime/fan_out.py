"""One step of one request, run for many items: so many at a time, answers in order, the first error ends them all.

What an item asks and what is made of the answers is `runtime.passage`'s; lives on the event loop.
"""

from collections.abc import Callable, Sequence
from functools import partial

from farthing.telemetry.statistics import FailureReason
from farthing.types.errors import FarthingError
from farthing.types.requests import InferResponse

Withdraw = Callable[[], None]
Ask = Callable[[int, Callable[[InferResponse | FarthingError], None]], Withdraw]
"""Asks one item's model; raises `FarthingError` if it does not take the request."""


class FanOut:
    """Items on their way through one step."""

    __slots__ = (
        "_answered", "_answers", "_ask", "_inflight_max", "_is_ended", "_is_pumping", "_next", "_on_done", "_on_fail",
        "_withdraws",
    )  # fmt: skip

    def __init__(
        self,
        count: int,
        inflight_max: int,
        ask: Ask,
        on_done: Callable[[Sequence[InferResponse]], None],
        on_fail: Callable[[FarthingError, int, str], None],
    ) -> None:
        """One of `on_done` (answers in order) and `on_fail` (error, item, reason) is called once, unless withdrawn."""
        self._answers: list[InferResponse | None] = [None] * count
        self._inflight_max = inflight_max
        self._ask = ask
        self._on_done = on_done
        self._on_fail = on_fail
        self._withdraws: dict[int, Withdraw | None] = {}
        """Items under way: how to withdraw them, as far as their model has taken them."""
        self._next = 0
        self._answered = 0
        self._is_pumping = False
        self._is_ended = False

    def pump(self) -> None:
        """Begins as many items as may be under way."""
        if self._is_pumping:  # an item was answered at once: the loop below goes on
            return
        self._is_pumping = True
        while not self._is_ended and self._next < len(self._answers) and len(self._withdraws) < self._inflight_max:
            place = self._next
            self._next += 1
            self._withdraws[place] = None
            try:
                withdraw = self._ask(place, partial(self._on_answer, place))
            except FarthingError as error:
                self._fail(error, place, FailureReason.REJECTED)
                break
            if self._is_ended:
                withdraw()
            elif place in self._withdraws:
                self._withdraws[place] = withdraw
        self._is_pumping = False
        if not self._is_ended and self._answered == len(self._answers):
            self._is_ended = True
            self._on_done([answer for answer in self._answers if answer is not None])

    def withdraw(self) -> None:
        """Nobody wants the answers: items under way are withdrawn, no other begins."""
        self._is_ended = True
        withdraws, self._withdraws = list(self._withdraws.values()), {}
        for withdraw in withdraws:
            if withdraw is not None:
                withdraw()

    def _on_answer(self, place: int, answer: InferResponse | FarthingError) -> None:
        self._withdraws.pop(place, None)
        if self._is_ended:
            return
        if isinstance(answer, FarthingError):
            self._fail(answer, place, FailureReason.BACKEND)
            return
        self._answers[place] = answer
        self._answered += 1
        self.pump()

    def _fail(self, error: FarthingError, place: int, reason: str) -> None:
        self._withdraws.pop(place, None)
        self.withdraw()
        self._on_fail(error, place, reason)
