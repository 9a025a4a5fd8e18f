"""Who waits, in which order, and who may share a batch.

A bounded queue for one model version. Requests are served by priority level, then by arrival; only requests with the
same signature (names, datatypes and row shapes of their inputs) are ever offered together. When they leave is up to
`batching.batcher`; keeping time and answering is up to `batching.loop`. One owner, one thread; nothing here waits.
"""

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import ClassVar, Final

import msgspec

from farthing.types.errors import FarthingError, Overloaded
from farthing.types.requests import InferRequest, InferResponse
from farthing.types.tensors import Tensor

SIGNATURE_ALONE: Final = None
"""The signature of a request that shares a batch with nobody."""

FIXED_SHAPES: Final = "fixed"
"""The signature of every request to a model whose row shapes are all fixed: they always fit together."""

RETRY_AFTER_S_DEFAULT: Final = 1.0
"""What a client is told when a queue is full and nothing is yet known of the model's speed."""

TIDY_LEFT: Final = 64
TIDY_LEFT_PER_WAITING: Final = 4
"""Requests that leave from the middle of a line stay in it as dead entries. Once so many have left since the lines were
last tidied, they are tidied again: memory stays bounded whatever leaves, and the cost is O(1) a request."""

WAITING, RUNNING, ENDED = 0, 1, 2


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How one priority level queues (Triton's `ModelQueuePolicy`)."""

    requests_max: int = 0
    """`max_queue_size`; 0: only the queue's own bound counts."""
    timeout_ns: int = 0
    """`default_timeout_microseconds`; 0: none."""
    may_override: bool = True
    """`allow_timeout_override`: whether a request may bring a shorter timeout of its own."""
    is_delayed: bool = False
    """`timeout_action`: DELAY serves a late request after all punctual ones, REJECT answers it with an error."""

    def deadline_ns(self, arrival_ns: int, timeout_us: int) -> int:
        """When a request that arrived then stops being punctual; 0 for never."""
        timeout_ns = self.timeout_ns
        own_ns = timeout_us * 1000
        if own_ns and self.may_override and (not timeout_ns or own_ns < timeout_ns):
            timeout_ns = own_ns
        return arrival_ns + timeout_ns if timeout_ns else 0


class Waiter:
    """One request on its way through the queue; `done` is called exactly once with its answer."""

    comes_back: ClassVar[bool] = True
    """Whether its caller may send the next one when it has the answer to this."""
    goes_on: ClassVar[bool] = False
    """Whether it is a `batching.rider.Rider`, whose answer another model reads next."""
    ran_ns = 0
    """How long it has run before it came here again, as requests of iterative sequences do."""
    start = -1
    """Which row of `inputs` is its first, of a rider that shares them with others; -1: all rows are its own."""

    __slots__ = (
        "arrival_ns",
        "deadline_ns",
        "done",
        "inputs",
        "level",
        "request",
        "rows",
        "signature",
        "state",
    )

    def __init__(
        self,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        rows: int,
        signature: Hashable,
        arrival_ns: int,
        done: Callable[[InferResponse | FarthingError], None],
    ) -> None:
        self.request = request
        self.inputs = inputs
        self.rows = rows
        self.signature = signature
        self.arrival_ns = arrival_ns
        self.done = done
        self.deadline_ns = 0
        self.level = 0
        self.state = WAITING

    @property
    def since_ns(self) -> int:
        """Since when it has waited to run."""
        return self.arrival_ns


class _Level:
    """One priority level: everyone by arrival, and the same by signature. Those who left are skipped lazily."""

    __slots__ = ("by_signature", "everyone", "late", "left", "rows", "waiting")

    def __init__(self) -> None:
        self.everyone: deque[Waiter] = deque()
        self.by_signature: dict[Hashable, deque[Waiter]] = {}
        self.late: deque[Waiter] = deque()  # DELAY policy: after everyone else of this level
        self.waiting = 0
        self.rows = 0  # kept only where there are several levels
        self.left = 0  # requests that left since the lines were tidied


class Queue:
    """Requests of one model version that have not been run yet.

    Levels run from 1 (most urgent) to `levels`; priority 0, or one beyond the last level, means `level_default`.
    """

    def __init__(
        self,
        *,
        model: str,
        requests_max: int,
        levels: int = 0,
        level_default: int = 0,
        policy: Policy | None = None,
        level_policies: Mapping[int, Policy] | None = None,
    ) -> None:
        self._model = model
        self._requests_max = requests_max
        self._level_default = level_default if levels else 0
        self._policy = policy or Policy()
        self._policies = [(level_policies or {}).get(level, self._policy) for level in range(levels + 1)]
        self._levels = [_Level() for _ in range(levels + 1)]
        self.has_levels = levels > 0
        """Whether some go before others that came earlier."""
        self.has_timeouts = any(policy.timeout_ns for policy in self._policies)
        """Whether requests have deadlines although they bring none."""
        self._deadlines = 0  # waiting requests that have a deadline
        self._by_deadline: list[tuple[int, int, Waiter]] = []  # a heap; those who left are skipped lazily
        self._added = 0
        self.requests = 0
        self.rows = 0

    def add(self, waiter: Waiter, retry_after_s: float = RETRY_AFTER_S_DEFAULT) -> None:
        """Puts a request at the end of its level. Raises `Overloaded` when the queue or its level is full."""
        index = self._level_of(waiter) if self.has_levels else 0
        level, policy = self._levels[index], self._policies[index]
        if self.requests >= self._requests_max or (policy.requests_max and level.waiting >= policy.requests_max):
            raise Overloaded(
                f"Exceeds maximum queue size: {level.waiting} requests wait for model `{self._model}`",
                hint="come back after the time in Retry-After, or raise max_queue_size",
                retry_after_s=retry_after_s,
            )
        waiter.level = index
        if policy.timeout_ns or waiter.request.timeout_us:
            waiter.deadline_ns = policy.deadline_ns(waiter.arrival_ns, waiter.request.timeout_us)
            if waiter.deadline_ns:
                self._deadlines += 1
                self._added += 1  # breaks ties, so waiters are never compared
                heappush(self._by_deadline, (waiter.deadline_ns, self._added, waiter))
        level.everyone.append(waiter)
        same = level.by_signature.get(waiter.signature)
        if same is None:
            same = level.by_signature[waiter.signature] = deque()
        same.append(waiter)
        level.waiting += 1
        if self.has_levels:
            level.rows += waiter.rows
        self.requests += 1
        self.rows += waiter.rows

    @property
    def is_plain(self) -> bool:
        """Whether those who wait differ in nothing but when they came: no priorities, no deadlines."""
        return not self.has_levels and not self._deadlines

    def rows_before(self, waiter: Waiter) -> int:
        """Rows that would be served before a request that is not queued yet."""
        if not self.has_levels:
            return self.rows
        return sum(level.rows for level in self._levels[: self._level_of(waiter) + 1])

    def refused_after_ns(self, waiter: Waiter) -> int:
        """How long a request that is not queued yet may wait until it is refused; 0 for as long as it takes."""
        policy = self._policies[self._level_of(waiter) if self.has_levels else 0]
        return 0 if policy.is_delayed else policy.deadline_ns(0, waiter.request.timeout_us)

    def head(self, requests_max: int) -> list[Waiter]:
        """The next request to be served and others that may ride with it, in order of service."""
        if not self.requests:
            return []
        first, level_index, is_late = self._first()
        if first.signature is SIGNATURE_ALONE:
            return [first]
        found: list[Waiter] = []
        if is_late:
            for waiter in self._levels[level_index].late:
                if waiter.state == WAITING and waiter.signature == first.signature:
                    found.append(waiter)
                    if len(found) >= requests_max:
                        break
            return found
        for level in self._levels[level_index:]:
            same = level.by_signature.get(first.signature)
            if same is None:
                continue
            for waiter in same:
                if waiter.state == WAITING:
                    found.append(waiter)
                    if len(found) >= requests_max:
                        return found
        return found

    def takes_at_once(self, requests: int) -> bool:
        """Whether `add_all` may be called: there is room for so many, and nothing tells one request from another."""
        policy = self._policies[0]
        return not (self.has_levels or self.has_timeouts or policy.requests_max) and (
            self.requests + requests <= self._requests_max
        )

    def add_all(self, waiters: Sequence[Waiter]) -> None:
        """Puts requests of one signature and without deadlines at the end, as `add` would one by one."""
        level = self._levels[0]
        level.everyone.extend(waiters)
        level.by_signature.setdefault(waiters[0].signature, deque()).extend(waiters)
        level.waiting += len(waiters)
        self.requests += len(waiters)
        for waiter in waiters:
            self.rows += waiter.rows

    def take(self, waiters: list[Waiter]) -> None:
        """Marks requests as running; they are no longer queued."""
        if self.has_levels or self._deadlines or not waiters:
            for waiter in waiters:
                self._leave(waiter, RUNNING)
            return
        for waiter in waiters:
            waiter.state = RUNNING
            self.rows -= waiter.rows
        self.requests -= len(waiters)
        level = self._levels[0]
        level.waiting -= len(waiters)
        level.left += len(waiters)
        self._tidy(level, waiters[0].signature)

    def remove(self, waiter: Waiter) -> bool:
        """Takes a request out before it ran; False if it is too late for that."""
        if waiter.state != WAITING:
            return False
        self._leave(waiter, ENDED)
        return True

    def expired(self, now_ns: int) -> list[Waiter]:
        """Requests whose deadline has passed, taken out; late ones whose policy is DELAY move to the end instead."""
        heap = self._by_deadline
        out: list[Waiter] = []
        while heap and heap[0][0] <= now_ns:
            waiter = heappop(heap)[2]
            if waiter.state != WAITING:
                continue
            if self._policies[waiter.level].is_delayed:
                self._delay(self._levels[waiter.level], waiter)
            else:
                self._leave(waiter, ENDED)
                out.append(waiter)
        return out

    def next_deadline_ns(self) -> int:
        """The earliest deadline among those waiting; 0 for none."""
        heap = self._by_deadline
        while heap and heap[0][2].state != WAITING:
            heappop(heap)
        return heap[0][0] if heap else 0

    def drain(self) -> list[Waiter]:
        """Takes everyone out, in order of service."""
        out = []
        while self.requests:
            first = self._first()[0]
            self._leave(first, ENDED)
            out.append(first)
        return out

    def check_integrity(self) -> None:
        """Asserts that the counters agree with the lists (for tests and simulations)."""
        waiting = [w for level in self._levels for q in (level.everyone, level.late) for w in q if w.state == WAITING]
        assert len(waiting) == len({id(w) for w in waiting}) == self.requests
        assert sum(w.rows for w in waiting) == self.rows
        assert sum(1 for w in waiting if w.deadline_ns) == self._deadlines
        for level in self._levels:
            mine = sum(1 for q in (level.everyone, level.late) for w in q if w.state == WAITING)
            assert mine == level.waiting
            grouped = sum(1 for same in level.by_signature.values() for w in same if w.state == WAITING)
            assert grouped + sum(1 for w in level.late if w.state == WAITING) == mine
            assert all(same and same[0].state == WAITING for same in level.by_signature.values())
            if self.has_levels:
                assert level.rows == sum(w.rows for q in (level.everyone, level.late) for w in q if w.state == WAITING)
            dead = len(level.everyone) + len(level.late) + sum(map(len, level.by_signature.values())) - mine
            assert dead <= 3 * (TIDY_LEFT + (TIDY_LEFT_PER_WAITING + 1) * self._requests_max)

    def _first(self) -> tuple[Waiter, int, bool]:
        for index, level in enumerate(self._levels):
            if not level.waiting:
                continue
            for is_late, line in ((False, level.everyone), (True, level.late)):
                while line and line[0].state != WAITING:
                    line.popleft()
                if line:
                    return line[0], index, is_late
        raise AssertionError("a queue with requests has a first one")

    def _level_of(self, waiter: Waiter) -> int:
        asked = waiter.request.priority
        return asked if 0 < asked < len(self._levels) else self._level_default

    def _leave(self, waiter: Waiter, state: int) -> None:
        waiter.state = state
        level = self._levels[waiter.level]
        level.waiting -= 1
        if self.has_levels:
            level.rows -= waiter.rows
        self.requests -= 1
        self.rows -= waiter.rows
        if waiter.deadline_ns:
            self._deadlines -= 1
            if len(self._by_deadline) > TIDY_LEFT + TIDY_LEFT_PER_WAITING * self._deadlines:
                self._by_deadline = [entry for entry in self._by_deadline if entry[2].state == WAITING]
                heapify(self._by_deadline)
        level.left += 1
        self._tidy(level, waiter.signature)

    def _tidy(self, level: _Level, signature: Hashable) -> None:
        """After requests of this signature have left."""
        self._tidy_front(level, signature)
        everyone = level.everyone
        while everyone and everyone[0].state != WAITING:
            everyone.popleft()
        if level.left > TIDY_LEFT + TIDY_LEFT_PER_WAITING * level.waiting:
            level.left = 0
            level.everyone = deque(w for w in everyone if w.state == WAITING)
            level.late = deque(w for w in level.late if w.state == WAITING)
            for same, line in level.by_signature.items():
                level.by_signature[same] = deque(w for w in line if w.state == WAITING)

    @staticmethod
    def _tidy_front(level: _Level, signature: Hashable) -> None:
        same = level.by_signature.get(signature)
        if same is not None:
            while same and same[0].state != WAITING:
                same.popleft()
            if not same:
                del level.by_signature[signature]  # shapes are the client's choice: keep none that is unused

    def _delay(self, level: _Level, waiter: Waiter) -> None:
        self._deadlines -= 1
        waiter.deadline_ns = 0
        level.everyone.remove(waiter)
        same = level.by_signature[waiter.signature]
        same.remove(waiter)
        self._tidy_front(level, waiter.signature)
        level.late.append(waiter)
