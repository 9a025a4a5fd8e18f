"""What `sequences` hands out and keeps in order: free slots of an instance, free ids, and whose time runs out next."""

from collections.abc import Container, Iterator
from heapq import heapify, heappop, heappush
from typing import Final

from farthing.batching.queue import TIDY_LEFT, TIDY_LEFT_PER_WAITING, WAITING
from farthing.batching.sequence import SequenceWaiter

IDS_MAX: Final = 2**31 - 1
"""The largest id that is given to a sequence whose client gave none: controls of any datatype can hold it."""


class FreeSlots:
    """The slots of an instance that nobody holds. The lowest is taken first, so that direct batches stay short."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._given_back: list[int] = []
        self._unused = 0  # slots from here on were never held

    def take(self) -> int:
        """The lowest; there has to be one."""
        if self._given_back:
            return heappop(self._given_back)
        assert self._unused < self._count
        self._unused += 1
        return self._unused - 1

    def give_back(self, slot: int) -> None:
        heappush(self._given_back, slot)

    def taken(self) -> set[int]:
        """Those that are held (for tests and simulations)."""
        return set(range(self._unused)) - set(self._given_back)


class Deadlines:
    """When the time of requests runs out. Those that have run or left meanwhile are skipped, and tidied away."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, SequenceWaiter]] = []
        self._added = 0

    def add(self, waiter: SequenceWaiter, waiting: int) -> None:
        """Remembers a request's `deadline_ns`; so many wait. It is remembered once, as `is_timed` says."""
        self._added += 1  # breaks ties, so waiters are never compared
        if len(self._heap) > TIDY_LEFT + TIDY_LEFT_PER_WAITING * waiting:
            for _, _, left in self._heap:
                left.is_timed = left.state == WAITING
            self._heap = [entry for entry in self._heap if entry[2].is_timed]
            heapify(self._heap)
        waiter.is_timed = True
        heappush(self._heap, (waiter.deadline_ns, self._added, waiter))

    def passed(self, now_ns: int) -> Iterator[SequenceWaiter]:
        """Requests whose time has run out, each once; whether they still wait is for the caller to see."""
        heap = self._heap
        while heap and heap[0][0] <= now_ns:
            waiter = heappop(heap)[2]
            waiter.is_timed = False
            yield waiter

    def next_ns(self) -> int:
        """When the next request's time runs out; 0 for never."""
        heap = self._heap
        while heap and heap[0][2].state != WAITING:
            heappop(heap)[2].is_timed = False
        return heap[0][0] if heap else 0

    def check_integrity(self, waiting_max: int) -> None:
        """Asserts that it is bounded (for tests and simulations)."""
        assert len(self._heap) <= 1 + TIDY_LEFT + TIDY_LEFT_PER_WAITING * waiting_max


def next_id(last: int, used: Container[int | str]) -> int:
    """An id behind the last one given, that is not in use."""
    while True:
        last = last % IDS_MAX + 1
        if last not in used:
            return last
