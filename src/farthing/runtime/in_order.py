"""Answers in the order their requests came, for models that say `preserve_ordering`.

Batches of several instances, and answers from a cache, overtake one another; here they are held back until those before
them have been told. Lives on the event loop, around a model's own `submit`.
"""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol

from farthing.runtime.served import Done
from farthing.types.errors import FarthingError
from farthing.types.requests import InferRequest, InferResponse


class Submit(Protocol):
    """How a model takes requests: `Served.submit`."""

    def __call__(
        self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, done: Done
    ) -> Callable[[], None]: ...


class _Place:
    """A request's place in the line of those not told yet."""

    __slots__ = ("answer", "done", "is_gone", "order")

    def __init__(self, order: "InOrder", done: Done) -> None:
        self.order = order
        self.done = done
        self.answer: InferResponse | FarthingError | None = None
        self.is_gone = False

    def answered(self, answer: InferResponse | FarthingError) -> None:
        self.answer = answer
        self.order.tell()


class InOrder:
    """A `submit` that answers in the order it was called in."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._line: deque[_Place] = deque()
        self._is_telling = False

    def __call__(
        self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, done: Done
    ) -> Callable[[], None]:
        """As the model's own. Who is refused at the door is told at once."""
        place = _Place(self, done)
        self._line.append(place)
        try:
            withdraw = self._submit(request, rows, signature, arrival_ns, place.answered)
        except BaseException:
            self._leave(place)
            raise

        def leave() -> None:
            if not place.is_gone:
                withdraw()
                self._leave(place)

        return leave

    def _leave(self, place: _Place) -> None:
        place.is_gone = True
        self.tell()

    def tell(self) -> None:
        """Tells all at the head of the line that have their answers."""
        if self._is_telling:
            return  # one that is told sends the next request, or leaves: the outer call goes on
        self._is_telling = True
        line = self._line
        try:
            while line and (line[0].is_gone or line[0].answer is not None):
                place = line.popleft()
                if not place.is_gone and place.answer is not None:
                    place.is_gone = True
                    place.done(place.answer)
        finally:
            self._is_telling = False
