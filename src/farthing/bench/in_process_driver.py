"""The driver for a model in process: requests go from this thread, or from their answers, straight to the runtime.

Closed loop: as many requests under way as a server would have connections; each answer begins the next request in the
following turn of the loop, as it would on a socket. Open loop: this thread sleeps until requests are due and hands them
over; its lateness is the generator's, a busy loop is the model's.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.bench import records as noted
from farthing.bench.in_process import Answer, InProcess
from farthing.bench.load import Load, Progress, Work
from farthing.bench.records import Records
from farthing.types.errors import FarthingError

SWEEP_S: Final = 0.05
"""Between looks for requests whose time is over."""
SAMPLE_BYTES: Final = 1_024


class InProcessDriver:
    """One load against one model, or a mix."""

    def __init__(self, host: InProcess, work: Work, load: Load) -> None:
        self._host, self._load, self._order = host, load, work.order
        self._requests = [message.request for chain in work.chains for message in chain]
        self._under_way: dict[int, Callable[[], None]] = {}
        self._due: deque[tuple[int, float]] = deque()
        self._intended: list[int] = []
        self._sent: list[int] = []
        self._end: list[int] = []
        self._request: list[int] = []
        self._status: list[int] = []
        self._lag: list[float] = []
        self._samples: dict[int, bytes] = {}
        self._failed = self._answered = self._waited = self._start_ns = 0
        self._is_all_sent = False
        self._is_stopping = threading.Event()
        self._is_over = threading.Event()

    def run(self) -> Records:
        cpu_s, starved_s = time.thread_time(), starved_now_s()
        self._start_ns = time.monotonic_ns()
        loop = self._host.loop
        if self._load.arrivals_s is None:
            loop.call_soon_threadsafe(self._begin_closed)
        else:
            loop.call_soon_threadsafe(self._sweep)
            self._send((self._load.arrivals_s * 1e9).astype(np.int64) + self._start_ns)
        self._is_over.wait()
        return self._records(time.thread_time() - cpu_s, starved_now_s() - starved_s)

    def stop(self) -> None:
        self._is_stopping.set()
        self._host.loop.call_soon_threadsafe(self._abandon)

    def progress(self) -> Progress:
        return Progress(
            sent=len(self._sent),
            done=self._answered,
            failed=self._failed,
            tokens=0,
            in_flight=len(self._under_way),
        )

    # -- on the generator's thread -------------------------------------------------------------------------------

    def _send(self, due_ns: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
        """Hands over each request when it is due, and all that are due by then with it."""
        due_ns = due_ns[due_ns < self._start_ns + int(self._load.duration_s * 1e9)][: self._load.requests_max]
        loop, at = self._host.loop, 0
        while at < len(due_ns):
            wait_s = (int(due_ns[at]) - time.monotonic_ns()) / 1e9
            if self._is_stopping.wait(wait_s) if wait_s > 0 else self._is_stopping.is_set():
                break
            now = time.monotonic_ns()
            upto = max(int(np.searchsorted(due_ns, now, side="right")), at + 1)
            loop.call_soon_threadsafe(self._arrive, due_ns[at:upto].tolist(), now)
            at = upto
        loop.call_soon_threadsafe(self._all_sent)

    # -- on the runtime's loop -----------------------------------------------------------------------------------

    def _begin_closed(self) -> None:
        self._sweep()
        for _ in range(self._load.connections):
            self._next()

    def _next(self) -> None:
        now = time.monotonic_ns()
        is_time = now - self._start_ns < self._load.duration_s * 1e9
        if is_time and not self._is_stopping.is_set() and len(self._sent) < self._load.requests_max:
            self._ask(now, 0.0)
        else:
            self._all_sent()

    def _arrive(self, due_ns: list[int], now: int) -> None:
        if self._is_stopping.is_set():
            return
        for intended in due_ns:
            if len(self._under_way) < self._load.connections:
                self._ask(intended, (now - intended) / 1e9)
            else:
                self._waited += 1
                self._due.append((intended, (now - intended) / 1e9))

    def _all_sent(self) -> None:
        self._is_all_sent = True
        self._end_if_done()

    def _ask(self, intended_ns: int, lag_s: float) -> None:
        number = len(self._sent)
        which = self._order[number % len(self._order)]
        request = self._requests[which]
        assert request is not None
        self._intended.append(intended_ns)
        self._request.append(which)
        self._lag.append(lag_s)
        self._end.append(0)
        self._status.append(0)
        self._sent.append(time.monotonic_ns())
        self._under_way[number] = self._host.submit(request, partial(self._done, number))

    def _done(self, number: int, answer: Answer) -> None:
        if isinstance(answer, FarthingError):
            self._samples.setdefault(answer.http_status, answer.message.encode()[:SAMPLE_BYTES])
            self._ended(number, answer.http_status)
        else:
            self._ended(number, noted.ANSWERED)

    def _ended(self, number: int, status: int) -> None:
        self._end[number], self._status[number] = time.monotonic_ns(), status
        del self._under_way[number]
        if status == noted.ANSWERED:
            self._answered += 1
        else:
            self._failed += 1
        if self._load.arrivals_s is None:
            self._host.loop.call_soon(self._next)
        elif self._due:
            self._ask(*self._due.popleft())
        else:
            self._end_if_done()

    def _end_if_done(self) -> None:
        if self._is_all_sent and not self._under_way:
            self._is_over.set()

    def _sweep(self) -> None:
        """Those that began first run out of time first."""
        if self._is_over.is_set():
            return
        oldest_ns = time.monotonic_ns() - int(self._load.timeout_s * 1e9)
        for number, withdraw in list(self._under_way.items()):
            if self._intended[number] > oldest_ns:
                break
            withdraw()
            self._ended(number, noted.TIMEOUT)
        self._host.loop.call_later(SWEEP_S, self._sweep)

    def _abandon(self) -> None:
        self._due.clear()
        for number, withdraw in list(self._under_way.items()):
            withdraw()
            self._ended(number, noted.ABANDONED)
        self._all_sent()

    def _records(self, cpu_s: float, starved_s: float) -> Records:
        count = len(self._sent)
        end = np.array(self._end, np.int64)
        status = np.array(self._status, np.int32)
        nothing: dict[str, Any] = {
            name: np.full(count, -1, np.int32) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")
        }
        return Records(
            intended_ns=np.array(self._intended, np.int64),
            sent_ns=np.array(self._sent, np.int64),
            first_ns=np.where(status > 0, end, 0),
            end_ns=end,
            request=np.array(self._request, np.int32),
            status=status,
            tokens=np.zeros(count, np.int32),
            **nothing,
            lag_s=np.array(self._lag, np.float32),
            held_s=np.zeros(count, np.float32),
            event_record=np.zeros(0, np.uint32),
            event_ns=np.zeros(0, np.int64),
            samples=self._samples,
            started_ns=self._start_ns,
            wall_s=(time.monotonic_ns() - self._start_ns) / 1e9,
            cpu_s=cpu_s,
            starved_s=starved_s,
            connections_opened=0,
            waited_for_connection=self._waited,
            events_lost=0,
        )


def starved_now_s() -> float:
    """How long this thread has waited for a core so far; 0 where the system does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
