"""Stand-ins for what is slow or made of chance: an event loop, instances and models, all on a clock that tests turn.

`VirtualLoop` has the few methods of an event loop that batching needs; `FakeExecutable` answers at once, takes as long
as its cost curve says, and can be told to fail, to lie or to hang.
"""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from heapq import heappop, heappush
from typing import Any

import numpy as np

from farthing.batching.batcher import Limits
from farthing.batching.crossing import Lane
from farthing.batching.instances import Job
from farthing.batching.loop import BatchLoop
from farthing.batching.queue import FIXED_SHAPES, Queue, Waiter
from farthing.batching.rate_limiter import Turns
from farthing.batching.run import Ran
from farthing.engines.contract import Answer, Batch
from farthing.telemetry.clock import ManualClock
from farthing.telemetry.statistics import ModelStatistics
from farthing.types.errors import FarthingError
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse
from farthing.types.tensors import Tensor, TensorSpec

Answered = InferResponse | FarthingError


class VirtualTimer:
    """What `call_later` gives."""

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class VirtualLoop:
    """An event loop whose time passes only from one callback to the next."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock(1_000_000_000)
        self._soon: deque[VirtualTimer] = deque()
        self._later: list[tuple[int, int, VirtualTimer]] = []
        self._count = 0

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> VirtualTimer:
        self._soon.append(VirtualTimer(callback, args))
        return self._soon[-1]

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> VirtualTimer:
        return self.at(self.clock.now_ns() + round(delay * 1e9), callback, *args)

    def at(self, due_ns: int, callback: Callable[..., Any], *args: Any) -> VirtualTimer:
        timer = VirtualTimer(callback, args)
        self._count += 1
        heappush(self._later, (due_ns, self._count, timer))
        return timer

    def step(self) -> bool:
        """Makes the next callback, moving the clock to it; False when there is none."""
        while self._soon or self._later:
            if self._soon:
                timer = self._soon.popleft()
            else:
                due_ns, _, timer = heappop(self._later)
                if not timer.is_cancelled:
                    self.clock.advance(ns=max(0, due_ns - self.clock.now_ns()))
            if not timer.is_cancelled:
                timer.callback(*timer.args)
                return True
        return False

    def run(self, *, until_ns: int | None = None) -> None:
        """Makes callbacks until none is left, or until that time."""
        while True:
            while self._later and self._later[0][2].is_cancelled:
                heappop(self._later)  # what comes after it may be due later than we run
            if not self._soon and not (self._later and (until_ns is None or self._later[0][0] <= until_ns)):
                break
            self.step()
        if until_ns is not None:
            self.clock.advance(ns=max(0, until_ns - self.clock.now_ns()))


class FakeExecutable:
    """`y` = 2 `x`, in as many nanoseconds of virtual time as `cost_ns` says for the rows."""

    platform = "fake"
    batch_axis: bool | None = True
    batch_rows_max: int | None = None

    def __init__(
        self,
        cost_ns: Callable[[int], int] = lambda rows: 1_000_000,
        *,
        clock: ManualClock | None = None,
        is_pure: bool = True,
        can_run_on_event_loop: bool = True,
        answer: Callable[[Batch], Answer] | None = None,
    ) -> None:
        self.cost_ns = cost_ns
        self.is_pure = is_pure
        self.can_run_on_event_loop = can_run_on_event_loop
        self.inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 1)),)
        self.outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),)
        self.clock = clock
        """Advanced by each run on the event loop, which stands still meanwhile."""
        self.answer = answer or (lambda batch: {"y": batch.inputs["x"] * 2})
        self.batches: list[int] = []
        """Rows of each run so far."""
        self.is_closed = False

    def execute(self, batch: Batch, instance: int) -> Answer:
        assert not self.is_closed
        rows = sum(member.rows for member in batch.members)
        self.batches.append(rows)
        if self.clock is not None:
            self.clock.advance(ns=self.cost_ns(rows))
        return self.answer(batch)

    def health(self) -> str:
        return ""

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


class VirtualInstances:
    """Instances that take virtual time: each batch is handed back when its cost has passed."""

    def __init__(
        self,
        name: str,
        execute: Callable[[Job], Ran],
        hand_back: Callable[[Job, Ran], None],
        scheduler: VirtualLoop,
        cost_ns: Callable[[int], int | None],
    ) -> None:
        self._execute = execute
        self._hand_back = hand_back
        self._loop = scheduler
        self._ahead: dict[int, Job] = {}
        self._cost_ns = cost_ns
        self.busy: set[int] = set()

    def run(self, job: Job) -> None:
        if job.instance in self.busy:
            assert job.instance not in self._ahead, "an instance has one batch ahead at most"
            self._ahead[job.instance] = job
            return
        self.busy.add(job.instance)
        self._begin(job)

    def _begin(self, job: Job) -> None:
        now_ns = self._loop.clock.now_ns()
        cost_ns = self._cost_ns(job.rows)
        if cost_ns is not None:  # None: hangs
            self._loop.at(now_ns + cost_ns, self._end, job, now_ns, cost_ns)

    def _end(self, job: Job, started_ns: int, cost_ns: int) -> None:
        following = self._ahead.pop(job.instance, None)
        if following is None:
            self.busy.discard(job.instance)
        ran = self._execute(job)
        if following is not None:
            self._begin(following)
        self._hand_back(job, Ran(ran.results, started_ns, 0, cost_ns, 0))

    def retire(self, instance: int) -> None:
        assert instance not in self.busy, "only one that runs nothing"

    def close(self, timeout_s: float) -> bool:
        return not self.busy


def make_loop(
    executable: FakeExecutable,
    *,
    rows_max: int = 64,
    instances: int = 1,
    limits: Limits | None = None,
    queue: Queue | None = None,
    cost_ns: Callable[[int], int | None] | None = None,
    is_inline: bool = False,
    virtual: VirtualLoop | None = None,
    turns: Turns | None = None,
    lane: Lane | None = None,
) -> tuple[BatchLoop, VirtualLoop, Queue]:
    """A batch loop in virtual time; runs go to the instances unless `is_inline`."""
    virtual = virtual or VirtualLoop()
    waiting = queue or Queue(model="fake", requests_max=8192)
    if is_inline:
        executable.clock = virtual.clock
    spec = ModelSpec(
        name="fake",
        version=1,
        platform="fake",
        inputs=executable.inputs,
        outputs=executable.outputs,
        batch_rows_max=rows_max,
    )
    loop = BatchLoop(
        spec=spec,
        executable=executable,
        instances=instances,
        limits=limits or Limits(rows_max=rows_max),
        queue=waiting,
        statistics=ModelStatistics(),
        scheduler=virtual,
        clock=virtual.clock,
        run_inline_ns_max=60_000 if is_inline else 0,
        make_instances=partial(VirtualInstances, cost_ns=cost_ns or executable.cost_ns),
        turns=turns,
        lane=lane,
    )
    return loop, virtual, waiting


def make_waiter(
    value: float | Tensor = 0.0,
    *,
    rows: int = 1,
    arrival_ns: int = 0,
    signature: Any = FIXED_SHAPES,
    priority: int = 0,
    timeout_us: int = 0,
    done: Callable[[Answered], None] = lambda answer: None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Waiter:
    """A request of `rows` rows that all hold `value`."""
    tensors = dict(inputs) if inputs is not None else {"x": np.full((rows, 1), value, np.float32)}
    request = InferRequest(model_name="fake", inputs=tensors, priority=priority, timeout_us=timeout_us)
    return Waiter(request, request.inputs, rows, signature, arrival_ns, done)
