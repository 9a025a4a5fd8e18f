"""The system under test over the native loop: LoadGen's queries are handed to it, and it sends, reads and notes.

With one connection LoadGen's own thread turns the loop until the sample is answered, as SingleStream waits for it; with
more a thread of its own does. Python handles a sample twice, when it is issued and when it is over, and no bytes.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from farthing.bench.endpoint import Endpoint
from farthing.bench.load import Load, Progress, Work
from farthing.bench.native_driver import native_run
from farthing.bench.records import Records, records_of

FOREVER_S = 1e8


class NativeSut:
    """`first` is told of samples' first tokens, `last` of their answers and how many tokens each has."""

    def __init__(
        self,
        endpoint: Endpoint,
        work: Work,
        *,
        first: Callable[[Sequence[int]], None],
        last: Callable[[Sequence[tuple[int, int]]], None],
        connections: int,
        timeout_s: float,
    ) -> None:
        load = Load(connections=connections, duration_s=FOREVER_S, timeout_s=timeout_s)
        self._run = native_run(endpoint.host, endpoint.port, work, load, is_fed=True)
        self._first, self._last = first, last
        self._is_stream = work.wire == "stream"
        self._ids: list[int] = []
        self._query: list[int] = []
        self._has_begun: set[int] = set()
        self._queries = 0
        self._cpu_s = time.process_time()
        self._thread = threading.Thread(target=self._serve, name="sut", daemon=True) if connections > 1 else None
        if self._thread is not None:
            self._thread.start()

    def issue(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        number = len(self._ids)
        self._ids += ids
        self._query += [self._queries] * len(ids)
        self._queries += 1
        self._run.feed(number, np.array(indices, np.int32))
        if self._thread is None:
            left = len(ids)
            while left and (told := self._run.serve()) is not None:
                left -= self._tell(told)

    def close(self) -> None:
        self._run.end_feed()
        if self._thread is None:
            while self._run.serve() is not None:
                """Nothing is under way: this ends the loop."""
        else:
            self._thread.join()

    def progress(self) -> Progress:
        return Progress(**self._run.progress())

    def records(self, *, is_by_query: bool) -> Records:
        taken = self._run.take()
        found = replace(records_of(taken), cpu_s=time.process_time() - self._cpu_s)
        if is_by_query:
            found = _by_query(found, np.array(self._query, np.int64)[taken["number"]])
        if not len(found):
            return found
        began = int(found.intended_ns.min())
        return replace(found, started_ns=began, wall_s=float(found.end_ns.max() - began) / 1e9)

    def _serve(self) -> None:
        while (told := self._run.serve()) is not None:
            self._tell(told)

    def _tell(self, told: Sequence[tuple[int, int, int]]) -> int:
        """Gives how many are over."""
        over = [(self._ids[number], tokens) for number, status, tokens in told if status]
        if self._is_stream:
            begun = [number for number, status, _ in told if not status]
            self._has_begun.update(begun)
            # LoadGen wants a first token of every sample, of those that failed before it too.
            missed = {number for number, status, _ in told if status} - self._has_begun
            if begun or missed:
                self._first([self._ids[number] for number in (*begun, *missed)])
        if over:
            self._last(over)
        return len(over)


def _by_query(records: Records, query: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Records:
    """A row a query: from when it came to its last answer; failed as the first of its samples that failed, if any."""
    order = np.lexsort((records.end_ns, query))
    starts = np.flatnonzero(np.diff(query[order], prepend=-1))
    last = order[np.append(starts[1:], len(order))[: len(starts)] - 1]
    # A status that is no answer's goes before one that is.
    by_status = np.lexsort((records.end_ns, records.is_answered, query))
    status = records.status[by_status[starts]]

    def column(name: str) -> Any:
        return getattr(records, name)[last]

    names = ["intended_ns", "sent_ns", "first_ns", "end_ns", "request", "tokens", "prompt_tokens"]
    names += ["completion_tokens", "cached_tokens", "lag_s", "held_s"]
    return replace(records, **{name: column(name) for name in names}, status=status)
