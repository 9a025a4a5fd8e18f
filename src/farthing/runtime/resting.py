"""What answers under a model's name while the model itself is unloaded to make room.

It knows what the model takes and gives, so metadata, configuration, statistics and the check of a request need no
load, and what does not fit is told at once. The first request that fits wakes the model; it and those that come
meanwhile wait (bounded in number and time) and are then handed on. Loading belongs to `runtime.catalog`, room to
`runtime.room`.
"""

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Final

from farthing.runtime.check import RequestCheck
from farthing.runtime.served import Done, Served
from farthing.telemetry.statistics import FailureReason
from farthing.telemetry.watchdog import Running
from farthing.types.errors import DeadlineExceeded, FarthingError, InvalidInput, Overloaded, Unavailable
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest

RESTING: Final = "unloaded to make room; loads on demand"
"""The reason the repository index gives."""

WAIT_S_MAX: Final = 30.0
"""How long a request without a deadline of its own waits for its model: proxies give up after 60 s, and one that waits
here holds its body."""

TRY_AGAIN_S: Final = 10.0
"""After a failed load, how long requests are told so before the next one tries again."""


class _Sleeper:
    """A request that waits for its model."""

    __slots__ = ("arrival_ns", "done", "request", "rows", "timer", "withdraw")

    def __init__(self, request: InferRequest, rows: int, arrival_ns: int, done: Done) -> None:
        self.request = request
        self.rows = rows
        self.arrival_ns = arrival_ns
        self.done = done
        self.timer: asyncio.TimerHandle | None = None
        self.withdraw: Callable[[], None] | None = None
        """Once it was handed on."""


class Resting:
    """A version that is not in memory; lives on the event loop, in the place of what it stands for."""

    def __init__(
        self,
        served: Served,
        *,
        wake: Callable[[], None],
        load_s: Callable[[], float],
        requests_max: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`wake` has the model loaded and may be called again and again; `load_s` says how long that will take."""
        self.spec = served.spec
        self.config = served.config
        self.statistics = served.statistics
        self.version = served.version
        self._wake = wake
        self._load_s = load_s
        self._requests_max = requests_max
        self._loop = loop
        self._check = RequestCheck(served.spec)
        self._sleepers: dict[_Sleeper, None] = {}
        self._rows = 0
        self._is_closed = False
        self._trouble = ""
        self._try_again_s = 0.0

    def spec_now(self) -> ModelSpec:
        """The spec, for those who ask later."""
        return self.spec

    def check(self, request: InferRequest) -> tuple[int, Hashable]:
        """Rows of a request and its signature. Raises `InvalidInput` if it does not fit the model."""
        try:
            return self._check(request)
        except InvalidInput:
            self.statistics.failed(FailureReason.INVALID)
            raise

    def submit(
        self, request: InferRequest, rows: int, signature: Hashable, arrival_ns: int, done: Done
    ) -> Callable[[], None]:
        """Wakes the model and keeps a checked request for it; `done` gets its answer once. Answers how to withdraw it.

        Raises `Overloaded` where too many wait, `DeadlineExceeded` where the load takes longer than the request has,
        `Unavailable` where the model cannot be loaded; each says when to come back.
        """
        try:
            self._let_in(request, arrival_ns)
        except FarthingError:
            self.statistics.failed(FailureReason.REJECTED)
            raise
        sleeper = _Sleeper(request, rows, arrival_ns, done)
        sleeper.timer = self._loop.call_later(min(WAIT_S_MAX, _left_s(request, arrival_ns)), self._late, sleeper)
        self._sleepers[sleeper] = None
        self._gauge(rows)
        self._wake()
        return partial(self._withdraw, sleeper)

    def come_back(self) -> FarthingError:
        """Wakes the model for somebody who will not wait for it here; what to tell them."""
        self._wake()
        return Unavailable(
            f"model `{self.spec.name}` version {self.version} is being loaded", retry_after_s=self._load_s()
        )

    def _let_in(self, request: InferRequest, arrival_ns: int) -> None:
        name = self.spec.name
        if self._is_closed:
            raise Unavailable(f"model `{name}` version {self.version} is being unloaded", retry_after_s=1)
        now_s = time.monotonic()
        if now_s < self._try_again_s:
            raise Unavailable(
                f"model `{name}` version {self.version} could not be loaded again: {self._trouble}",
                retry_after_s=self._try_again_s - now_s,
            )
        load_s = self._load_s()
        if len(self._sleepers) >= self._requests_max:
            raise Overloaded(
                f"{self._requests_max} requests wait for model `{name}` to be loaded, as many as may",
                retry_after_s=load_s,
            )
        if _left_s(request, arrival_ns) < load_s:
            self._wake()  # whoever comes back finds it
            raise DeadlineExceeded(
                f"model `{name}` is being loaded, which takes {load_s:.2g} s; the request has less",
                hint="come back then, or give it more time",
                retry_after_s=load_s,
            )

    def woken(self, served: Served) -> None:
        """The model is here: hands on what waits."""
        for sleeper in self._emptied():
            request = sleeper.request
            try:
                rows, signature = served.check(request)
                sleeper.withdraw = served.submit(request, rows, signature, sleeper.arrival_ns, sleeper.done)
            except FarthingError as error:
                sleeper.done(error)

    def failed(self, error: FarthingError) -> None:
        """The model could not be loaded: tells those that wait. `Unavailable`: for want of room; else it is broken."""
        if not isinstance(error, Unavailable):
            self._trouble = error.message
            self._try_again_s = time.monotonic() + TRY_AGAIN_S
            error = Unavailable(
                f"model `{self.spec.name}` version {self.version} could not be loaded again: {error.message}",
                hint=error.hint,
                retry_after_s=TRY_AGAIN_S,
            )
        self.fail_all(error)

    def health(self) -> str:
        """Empty, as it answers when asked; for a while after a failed load why it would not."""
        return self._trouble if time.monotonic() < self._try_again_s else ""

    def running(self) -> Iterable[Running]:
        """Nothing runs."""
        return ()

    def when_empty(self, call: Callable[[], None]) -> None:
        """It is unloaded for good: what waits is told, and nothing new is taken."""
        self._is_closed = True
        self.fail_all(Unavailable(f"model `{self.spec.name}` was unloaded", retry_after_s=1))
        call()

    def fail_all(self, error: FarthingError) -> None:
        """Ends what waits with an error."""
        for sleeper in self._emptied():
            self.statistics.failed(FailureReason.UNAVAILABLE)
            sleeper.done(error)

    def close(self, timeout_s: float) -> None:
        """Nothing is held."""

    def _emptied(self) -> list[_Sleeper]:
        sleepers = list(self._sleepers)
        self._sleepers.clear()
        self._gauge(-self._rows)
        for sleeper in sleepers:
            if sleeper.timer is not None:
                sleeper.timer.cancel()
        return sleepers

    def _late(self, sleeper: _Sleeper) -> None:
        del self._sleepers[sleeper]
        self._gauge(-sleeper.rows)
        self.statistics.failed(FailureReason.REJECTED)
        sleeper.done(
            DeadlineExceeded(
                f"model `{self.spec.name}` was not loaded in the time the request had", retry_after_s=self._load_s()
            )
        )

    def _withdraw(self, sleeper: _Sleeper) -> None:
        if sleeper.withdraw is not None:
            sleeper.withdraw()
        elif sleeper in self._sleepers:
            del self._sleepers[sleeper]
            assert sleeper.timer is not None
            sleeper.timer.cancel()
            self._gauge(-sleeper.rows)
            self.statistics.failed(FailureReason.CANCELED)

    def _gauge(self, rows: int) -> None:
        self._rows += rows
        self.statistics.pending_requests = len(self._sleepers)
        self.statistics.pending_rows = self._rows


def _left_s(request: InferRequest, arrival_ns: int) -> float:
    """How long a request may still take, seconds."""
    if not request.timeout_us:
        return math.inf
    return request.timeout_us / 1e6 - (time.monotonic_ns() - arrival_ns) / 1e9
