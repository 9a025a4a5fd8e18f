"""Where batches of all models meet while streams of frames are open: who runs, who waits, whose turn it is.

One for the server, on the event loop. A model's loop asks its *lane* before it starts a batch; as long as no stream
with a deadline is open, nobody asks. Who goes is up to `batching.right_of_way`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from farthing.batching.batcher import Run, Wait
from farthing.batching.frames import Stream
from farthing.batching.right_of_way import (
    GIVEN_UP_RUNS,
    Claim,
    Underway,
    block_ns,
    decide,
    owed_ns,
    rank,
    slack_ns,
)
from farthing.types.frames import FramePolicy

BRIEF_NS: Final = 1_000_000
"""A batch that takes no longer goes at once and stands in nobody's way: event loops keep time in milliseconds."""


class Crossing:
    """All lanes of a server."""

    def __init__(self) -> None:
        self._lanes: set[Lane] = set()
        self.is_watched = False
        """Whether some stream of frames with a deadline is open."""
        self.owed_ns = 0
        """What frames owe to those whom they kept waiting, nanoseconds of the machine."""
        self._asked = 0

    def join(self, *, computes: bool) -> "Lane":
        """A model's lane. `computes`: its batches use the cores until they end, and wait for nobody; others go freely,
        or a model that asks another one would wait for itself."""
        lane = Lane(self, computes=computes)
        self._lanes.add(lane)
        return lane

    # -- for lanes -------------------------------------------------------------------------------------------------

    def leave(self, lane: "Lane") -> None:
        """A model is gone."""
        self._lanes.discard(lane)
        self.settle_streams()
        for other in self._lanes:
            if other.claim is not None:  # it may have been behind this one
                other.wake()

    def settle_streams(self) -> None:
        """Streams have come or gone."""
        self.is_watched = any(lane.has_streams for lane in self._lanes)
        if not self.is_watched:
            self.owed_ns = 0
            for lane in self._lanes:
                if lane.claim is not None:
                    lane.claim = None
                    lane.wake()

    def block_ns(self) -> int:
        """How long a batch may stand in frames' way."""
        return block_ns([slack_ns for lane in self._lanes for slack_ns in lane.slacks_ns()])

    def order(self) -> int:
        """The next place in line."""
        self._asked += 1
        return self._asked

    def claims(self, but: "Lane") -> list[Claim]:
        """What other models want to start."""
        return [lane.claim for lane in self._lanes if lane is not but and lane.claim is not None]

    def running(self, but: "Lane | None") -> list[Underway]:
        """What all models run, or all but one."""
        return [one for lane in self._lanes if lane is not but for one in lane.running.values()]

    def choose(self, now_ns: int) -> None:
        """Wakes the next one that may go; its start wakes the one after it."""
        waiting = sorted(
            (lane for lane in self._lanes if lane.claim is not None), key=lambda lane: rank(lane.claim or _NOBODY)
        )
        for lane in waiting:
            if isinstance(lane.look(now_ns), Run):
                lane.wake()
                return

    def pay(self, run_ns: int, *, is_due: bool) -> None:
        """Keeps account of what frames took while others waited, and of what these had."""
        if not is_due:
            self.owed_ns = max(0, self.owed_ns - run_ns)
        elif any(lane.claim is not None and not lane.claim.due_ns for lane in self._lanes):
            self.owed_ns += owed_ns(run_ns)

    def check_integrity(self) -> None:
        """Asserts that nobody waits when there is nothing to wait for (for tests and simulations)."""
        assert self.is_watched or all(lane.claim is None for lane in self._lanes)
        assert self.owed_ns >= 0


class Lane:
    """One model's place at the crossing. Its loop calls `ask`, `began`, `ended` and `settle`; its streams the rest."""

    def __init__(self, crossing: Crossing, *, computes: bool) -> None:
        self._crossing = crossing
        self._computes = computes
        self.wake: Callable[[], Any] = lambda: None
        """Called when it may go; the loop puts itself here."""
        self.claim: Claim | None = None
        """What it waits to start."""
        self.running: dict[int, Underway] = {}
        """By instance."""
        self._began_ns: dict[int, int] = {}
        self._rows: Sequence[int] = ()
        self._estimate_ns: Callable[[int], int] = _unknown
        self._streams: set[Stream] = set()
        """Those whose frames have a deadline."""
        self._frame_ns = 0

    # -- streams ---------------------------------------------------------------------------------------------------

    def open(self, stream: Stream) -> None:
        """A stream begins; if its frames have no deadline, it asks nothing of anybody."""
        if stream.options.deadline_ns:
            self._streams.add(stream)
            self._crossing.settle_streams()

    def close(self, stream: Stream) -> None:
        """It ends."""
        self._streams.discard(stream)
        self._crossing.settle_streams()

    def frames_take(self, run_ns: int) -> None:
        """What a frame takes once it has started."""
        self._frame_ns = run_ns

    @property
    def has_streams(self) -> bool:
        """Whether frames are to be on time."""
        return bool(self._streams)

    def slacks_ns(self) -> list[int]:
        """What the frames of each stream have to spare."""
        return [
            slack_ns(
                stream.options.deadline_ns,
                self._frame_ns,
                stream.interval_ns if stream.options.policy is FramePolicy.LATEST else 0,
            )
            for stream in self._streams
        ]

    # -- the loop --------------------------------------------------------------------------------------------------

    @property
    def is_watched(self) -> bool:
        """Whether to ask before a batch starts."""
        return self._computes and self._crossing.is_watched

    @property
    def is_waiting(self) -> bool:
        """Whether it has something to start, and others go first."""
        return self.claim is not None

    def ask(self, rows: Sequence[int], estimate_ns: Callable[[int], int], due_ns: int, now_ns: int) -> Run | Wait:
        """How many of these requests may start now; or when to ask again, unless `wake` is called before."""
        if estimate_ns(sum(rows)) <= BRIEF_NS:
            return Run(len(rows))
        order = self._crossing.order() if self.claim is None else self.claim.order
        self._rows, self._estimate_ns = rows, estimate_ns
        self.claim = Claim(due_ns, estimate_ns(rows[0]), order)
        return self.look(now_ns)

    def look(self, now_ns: int) -> Run | Wait:
        """The same for what it waits to start."""
        assert self.claim is not None
        crossing = self._crossing
        return decide(
            self._rows,
            self.claim,
            self._estimate_ns,
            crossing.claims(self),
            crossing.running(self if self.claim.due_ns else None),
            block_ns=crossing.block_ns(),
            owed_ns=crossing.owed_ns,
            now_ns=now_ns,
        )

    def began(self, instance: int, rows: int, estimate_ns: Callable[[int], int], now_ns: int) -> None:
        """A batch that was asked for starts."""
        if self.claim is None:  # it was brief
            return
        is_due = bool(self.claim.due_ns)
        run_ns = estimate_ns(rows)
        self.claim = None
        self.running[instance] = Underway(now_ns + run_ns, now_ns + GIVEN_UP_RUNS * run_ns, is_due)
        self._began_ns[instance] = now_ns
        if is_due:
            self.frames_take(run_ns)
        else:
            self._crossing.pay(run_ns, is_due=False)
        self._crossing.choose(now_ns)

    def ended(self, instance: int, now_ns: int) -> None:
        """A batch is over, whether it had been asked for or not."""
        one = self.running.pop(instance, None)
        if one is not None:
            took_ns = now_ns - self._began_ns.pop(instance)
            if one.is_due:
                self._crossing.pay(took_ns, is_due=True)
            self._crossing.choose(now_ns)

    def settle(self, now_ns: int, *, is_asking: bool) -> None:
        """The loop has looked at its queue: gives up its place in line if it wants none."""
        if self.claim is not None and not is_asking:
            self.claim = None
            self._crossing.choose(now_ns)

    def leave(self) -> None:
        """The model is gone, and nothing of it runs."""
        self.claim = None
        self._streams.clear()
        self._crossing.leave(self)


_NOBODY: Final = Claim(0, 0, 0)


def _unknown(_rows: int) -> int:
    return 0
