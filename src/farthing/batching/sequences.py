"""Which sequences there are, who holds a slot, and whose request may run next.

A sequence is a client's series of requests that share state. It holds a slot of one instance from its first request
to its last; those that find no slot wait in a backlog, first come, first served. Of one sequence one request runs at
a time, in order. Which of those that may run leave together is for `sequence_batcher` to say; keeping time and
answering belongs to `sequence_loop`. One owner, one thread; nothing here waits, and time is an argument.

A sequence's life:

    add(START) -> a slot is free? holds it : backlog -> ... requests, one at a time ...
        -> END has run, or it was idle for too long, or its START never ran: ended; the slot goes to the next

In an iterative sequence there is one request, which may run again and again, each time behind all that are ready.
"""

from collections.abc import Hashable, Iterator

from farthing.batching.queue import (
    ENDED,
    RETRY_AFTER_S_DEFAULT,
    RUNNING,
    SIGNATURE_ALONE,
    WAITING,
    Waiter,
)
from farthing.batching.sequence import NO_STATES, Sequence, SequenceId, SequenceWaiter
from farthing.batching.sequence_places import Deadlines, FreeSlots, next_id
from farthing.types.errors import InvalidInput, Overloaded


class Sequences:
    """The sequences of one model version. `requests`, `add`, `remove`... are those of `queue.Queue`."""

    has_timeouts = False

    def __init__(
        self, *, model: str, instances: int, slots: int, idle_ns: int, requests_max: int, is_in_order: bool = False
    ) -> None:
        """`slots` are those of each instance. `is_in_order`: nobody runs before whoever has been ready for longer.
        `requests_max` bounds the requests that wait in slots, and again those in the backlog: else a full backlog would
        turn away the very requests whose sequences could end and make room.
        """
        self._model = model
        self._slots = slots
        self._idle_ns = idle_ns
        self._requests_max = requests_max
        self._is_in_order = is_in_order
        self._last_id = 0
        self._by_id: dict[SequenceId, Sequence] = {}
        self._backlog: dict[Sequence, None] = {}
        self._idle: dict[Sequence, None] = {}  # by how long they have been idle, the longest first
        # Of each instance: who holds which slot, which are free, and who may run, the longest ready first.
        self._held: list[dict[int, Sequence]] = [{} for _ in range(instances)]
        self._free = [FreeSlots(slots) for _ in range(instances)]
        self._ready: list[dict[Sequence, int]] = [{} for _ in range(instances)]
        self._deadlines = Deadlines()
        self._orphans: list[SequenceWaiter] = []
        self.requests = 0
        """That wait to run."""
        self._without_slot = 0
        """Of these, those of sequences that have no slot."""
        self._again = 0
        """Of these, those that have run already; as many as there are slots, at most."""
        self.sequences = 0
        """That have begun and not ended."""
        self.active = 0
        """Of these, those that hold a slot."""

    @property
    def rows(self) -> int:
        return self.requests

    @property
    def backlog(self) -> int:
        """Sequences that wait for a slot."""
        return self.sequences - self.active

    # -- requests come ---------------------------------------------------------------------------------------------

    def add(self, waiter: SequenceWaiter, retry_after_s: float = RETRY_AFTER_S_DEFAULT) -> None:
        """Puts a request at the end of its sequence, which it may begin.

        Raises `InvalidInput` if it continues one that there is not, `Overloaded` when too many wait.
        """
        known = self._by_id.get(waiter.sequence_id)
        if not waiter.is_start and (known is None or known.is_closed):
            raise self.no_start(waiter)
        self._check_room(waiter, known, retry_after_s)
        if waiter.request.timeout_us:
            waiter.deadline_ns = waiter.arrival_ns + waiter.request.timeout_us * 1000
            self._deadlines.add(waiter, self.requests)
        now_ns = waiter.arrival_ns
        sequence = self._begin(waiter.sequence_id, known, now_ns) if waiter.is_start or known is None else known
        waiter.sequence = sequence
        sequence.waiting.append(waiter)
        self.requests += 1
        self._without_slot += sequence.slot < 0
        if waiter.is_end or waiter.is_iterative:
            sequence.is_closed = True
        self._idle.pop(sequence, None)
        if sequence.slot >= 0:
            self._maybe_ready(sequence, now_ns)
        elif waiter.is_start:
            self._fill(now_ns)

    def _check_room(self, waiter: SequenceWaiter, known: Sequence | None, retry_after_s: float) -> None:
        is_slot_free = known is None and self.active < len(self._held) * self._slots
        has_slot = is_slot_free if waiter.is_start else known is not None and known.slot >= 0
        count = self.requests - self._without_slot - self._again if has_slot else self._without_slot
        # A sequence that gets a slot takes its waiting requests along, so that those with one may have become more.
        if count >= self._requests_max or self.requests - self._again >= 2 * self._requests_max:
            wanted = "" if has_slot else " to get a slot"
            raise Overloaded(
                f"Exceeds maximum queue size: {count} requests of sequences wait for model `{self._model}`{wanted}",
                hint="come back after the time in Retry-After; sequences that end make room for others",
                retry_after_s=retry_after_s,
            )

    def _begin(self, sequence_id: SequenceId, known: Sequence | None, now_ns: int) -> Sequence:
        new = Sequence(sequence_id)
        self._by_id[sequence_id] = new
        self.sequences += 1
        if known is None:
            self._backlog[new] = None
            return new
        known.successor = new
        new.predecessor = known
        new.inherits_slot = not known.is_closed
        known.is_closed = True
        if not known.waiting and known.running is None:
            self._end(known, now_ns)
        return new

    def new_id(self) -> int:
        """An id that no sequence has, for a request that is a sequence of its own."""
        self._last_id = next_id(self._last_id, self._by_id)
        return self._last_id

    def no_start(self, waiter: SequenceWaiter) -> InvalidInput:
        """Triton's words for a request of a sequence that never started, has ended or was idle for too long."""
        return InvalidInput(
            f"inference request for sequence {waiter.sequence_id} to model '{self._model}' must specify the START flag "
            "on the first request of the sequence",
            hint=f"it never started, has ended, or was idle for {self._idle_ns / 1e9:g} s: send sequence_start",
        )

    # -- requests run ----------------------------------------------------------------------------------------------

    def runnable(self, instance: int, requests_max: int) -> tuple[list[SequenceWaiter], list[int]]:
        """Requests of this instance that may share the next run, the longest ready first, and since when they are."""
        found: list[SequenceWaiter] = []
        since: list[int] = []
        signature: Hashable = None
        for sequence, ready_ns in self._ready[instance].items():
            waiter = sequence.waiting[0]
            mine = (waiter.signature, sequence.state_shapes)
            if not found:
                signature = mine
            elif mine != signature:
                if self._is_in_order:
                    break
                continue
            found.append(waiter)
            since.append(ready_ns)
            if len(found) >= requests_max or waiter.signature is SIGNATURE_ALONE:
                break
        return found, since

    def has_ready(self, instance: int) -> bool:
        return bool(self._ready[instance])

    def take(self, waiters: list[SequenceWaiter]) -> None:
        """Marks requests, first of their sequences, as running."""
        for waiter in waiters:
            sequence = waiter.sequence
            assert sequence.waiting[0] is waiter
            assert sequence.running is None
            sequence.waiting.popleft()
            sequence.running = waiter
            waiter.state = RUNNING
            self._again -= waiter.runs > 0
            del self._ready[sequence.instance][sequence]
        self.requests -= len(waiters)

    def finished(self, waiters: list[SequenceWaiter], now_ns: int) -> None:
        """Requests have run, well or not: their sequences go on, rest or end."""
        for waiter in waiters:
            sequence = waiter.sequence
            sequence.running = None
            if waiter.is_end:
                self._end(sequence, now_ns)
            else:
                self._settle(sequence, now_ns)

    def again(self, waiter: SequenceWaiter, now_ns: int, *, is_held: bool = False) -> None:
        """A request of an iterative sequence has run and is to run again, behind all that are ready now.

        One that `is_held` is not ready before it is let `go_on`.
        """
        sequence = waiter.sequence
        assert sequence.running is waiter
        assert not sequence.waiting
        sequence.running = None
        sequence.waiting.append(waiter)
        waiter.state = WAITING
        waiter.is_start = False
        waiter.runs += 1
        waiter.again_ns = now_ns
        waiter.is_held = is_held
        self.requests += 1
        self._again += 1
        if waiter.deadline_ns and not waiter.is_timed:
            self._deadlines.add(waiter, self.requests)
        self._maybe_ready(sequence, now_ns)

    def go_on(self, waiter: SequenceWaiter, now_ns: int) -> None:
        """A request that was held is ready."""
        waiter.is_held = False
        if waiter.state == WAITING:
            self._maybe_ready(waiter.sequence, now_ns)

    # -- requests leave --------------------------------------------------------------------------------------------

    def remove(self, waiter: SequenceWaiter, now_ns: int) -> bool:
        """Takes a request out before it ran; False if it is too late for that. `orphans` may be left behind."""
        if waiter.state != WAITING:
            return False
        sequence = waiter.sequence
        self._leave(waiter)
        sequence.waiting.remove(waiter)
        if sequence.slot >= 0 and not sequence.waiting:
            self._ready[sequence.instance].pop(sequence, None)
        if waiter.is_start:  # what follows would run on a state that never was
            self._orphans += sequence.waiting
            for orphan in sequence.waiting:
                self._leave(orphan)
            sequence.waiting.clear()
            self._end(sequence, now_ns)
        elif sequence.running is None and not sequence.waiting:
            self._settle(sequence, now_ns)
        return True

    def orphans(self) -> list[SequenceWaiter]:
        """Requests that can never run, since the first of their sequence left; each is named once."""
        found, self._orphans = self._orphans, []
        return found

    def expired(self, now_ns: int) -> list[SequenceWaiter]:
        """Requests whose own timeout has passed, taken out."""
        return [waiter for waiter in self._deadlines.passed(now_ns) if self.remove(waiter, now_ns)]

    def end_idle(self, now_ns: int) -> int:
        """Ends sequences of which nothing came for too long; how many."""
        ended = 0
        while self._idle:
            sequence = next(iter(self._idle))
            if sequence.idle_since_ns + self._idle_ns > now_ns:
                break
            self._end(sequence, now_ns)
            ended += 1
        return ended

    def next_deadline_ns(self) -> int:
        """When a request's or a sequence's time runs out next; 0 for never."""
        due_ns = self._deadlines.next_ns()
        if self._idle:
            idle_ns = next(iter(self._idle)).idle_since_ns + self._idle_ns
            due_ns = min(due_ns, idle_ns) if due_ns else idle_ns
        return due_ns

    def refused_after_ns(self, waiter: Waiter) -> int:
        """How long a request may wait until it is refused; 0 for as long as it takes."""
        return waiter.request.timeout_us * 1000

    def rows_before(self, waiter: Waiter) -> int:
        """Rows that would be served before a request that is not queued yet."""
        return self.requests

    def drain(self) -> list[Waiter]:
        """Takes everyone out and ends all sequences, those that run once they have run."""
        out: list[Waiter] = []
        everyone = list(self._all())
        for sequence in everyone:
            out += sequence.waiting
            for waiter in sequence.waiting:
                self._leave(waiter)
            sequence.waiting.clear()
            sequence.is_closed = True
            if sequence.slot >= 0:
                self._ready[sequence.instance].pop(sequence, None)
        for sequence in reversed(everyone):  # of one id the last first
            if sequence.running is None:
                self._end(sequence, 0)
        return out

    # -- slots -----------------------------------------------------------------------------------------------------

    def _settle(self, sequence: Sequence, now_ns: int) -> None:
        """Nothing of it runs: the next request is ready, or it has ended, or it rests."""
        if sequence.waiting:
            if sequence.slot >= 0:
                self._maybe_ready(sequence, now_ns)
        elif sequence.is_closed:
            self._end(sequence, now_ns)
        else:
            sequence.idle_since_ns = now_ns
            self._idle[sequence] = None

    def _maybe_ready(self, sequence: Sequence, now_ns: int) -> None:
        if sequence.running is None and not sequence.waiting[0].is_held:
            self._ready[sequence.instance].setdefault(sequence, now_ns)

    def _end(self, sequence: Sequence, now_ns: int) -> None:
        """It is over: state and slot are let go, and the next in line begin."""
        assert not sequence.waiting
        assert sequence.running is None
        self.sequences -= 1
        sequence.states = NO_STATES
        self._idle.pop(sequence, None)
        self._backlog.pop(sequence, None)
        predecessor, successor = sequence.predecessor, sequence.successor
        instance, slot = sequence.instance, sequence.slot
        sequence.predecessor = sequence.successor = None
        sequence.slot = -1
        if successor is not None:
            successor.predecessor = predecessor
        elif predecessor is not None:
            self._by_id[sequence.id] = predecessor
        else:
            del self._by_id[sequence.id]
        if predecessor is not None:  # it never began, and its place in the line of this id closes
            predecessor.successor = successor
            if successor is not None:
                successor.inherits_slot = sequence.inherits_slot
            return
        if slot >= 0:
            self._ready[instance].pop(sequence, None)
            del self._held[instance][slot]
            self.active -= 1
            if successor is not None and successor.inherits_slot:
                self._hold(successor, instance, slot, now_ns)
                return
            self._free[instance].give_back(slot)
        if successor is not None:
            self._backlog[successor] = None
        self._fill(now_ns)

    def _fill(self, now_ns: int) -> None:
        """Gives free slots to the first of the backlog: the lowest slot of the instance that holds the fewest."""
        while self._backlog:
            instance = min(range(len(self._held)), key=lambda i: len(self._held[i]))
            if len(self._held[instance]) >= self._slots:
                return
            sequence = next(iter(self._backlog))
            del self._backlog[sequence]
            self._hold(sequence, instance, self._free[instance].take(), now_ns)

    def _hold(self, sequence: Sequence, instance: int, slot: int, now_ns: int) -> None:
        self._without_slot -= len(sequence.waiting)
        sequence.instance, sequence.slot = instance, slot
        self._held[instance][slot] = sequence
        self.active += 1
        if sequence.waiting:
            self._maybe_ready(sequence, now_ns)

    def _leave(self, waiter: SequenceWaiter) -> None:
        waiter.state = ENDED
        self.requests -= 1
        self._without_slot -= waiter.sequence.slot < 0
        self._again -= waiter.runs > 0

    def _all(self) -> Iterator[Sequence]:
        for first in (*self._backlog, *(sequence for held in self._held for sequence in held.values())):
            sequence: Sequence | None = first
            while sequence is not None:
                yield sequence
                sequence = sequence.successor

    def check_integrity(self) -> None:
        """Asserts what must hold between any two calls (for tests and simulations)."""
        everyone = list(self._all())
        assert len({id(sequence) for sequence in everyone}) == len(everyone) == self.sequences
        assert self.requests == sum(len(sequence.waiting) for sequence in everyone)
        assert self._again == sum(waiter.runs > 0 for sequence in everyone for waiter in sequence.waiting)
        assert self.requests - self._again <= 2 * self._requests_max
        assert self._without_slot == sum(len(s.waiting) for s in everyone if s.slot < 0) <= self._requests_max
        assert sum(map(len, self._held)) == self.active
        assert self.active == len(self._held) * self._slots or not self._backlog, "a slot is free and somebody waits"
        for instance, held in enumerate(self._held):
            assert set(held) == self._free[instance].taken()
            assert all((s.instance, s.slot) == (instance, slot) for slot, s in held.items())
            can_run = {s for s in held.values() if s.waiting and s.running is None and not s.waiting[0].is_held}
            assert can_run == self._ready[instance].keys()
        for sequence in everyone:
            assert sequence.slot >= 0 or (sequence.waiting and sequence.running is None)
            assert all(waiter.state == WAITING and waiter.sequence is sequence for waiter in sequence.waiting)
            is_resting = not sequence.waiting and sequence.running is None
            assert is_resting == (sequence in self._idle)
            assert not (is_resting and sequence.is_closed)
        self._deadlines.check_integrity(2 * self._requests_max + self.active)
        assert all(known.id == sequence_id and known.successor is None for sequence_id, known in self._by_id.items())
