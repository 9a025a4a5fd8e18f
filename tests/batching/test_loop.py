"""The loop around the batcher: examples one can follow, and the life of a busy model in virtual time."""

import asyncio
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
from tests.fakes import Answered, FakeExecutable, VirtualLoop, make_loop, make_waiter

from farthing.batching.batcher import Limits
from farthing.batching.loop import WAIT_NS_MAX, BatchLoop
from farthing.batching.queue import ENDED, FIXED_SHAPES, SIGNATURE_ALONE, Policy, Queue, Waiter
from farthing.engines.contract import Answer, Batch, MemberAnswer
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.types.errors import DeadlineExceeded, EngineFailed, FarthingError, InvalidInput, Overloaded, Unavailable
from farthing.types.models import ModelSpec
from farthing.types.requests import InferResponse
from farthing.types.tensors import TensorSpec

MS = 1_000_000


class Client:
    """Sends requests into a loop and keeps what comes back."""

    def __init__(self, loop: BatchLoop, virtual: VirtualLoop) -> None:
        self.loop = loop
        self.virtual = virtual
        self.answers: dict[int, Answered] = {}
        self.times_ms: dict[int, float] = {}
        self.sent = 0

    def send(self, value: float = 0.0, **settings: object) -> Waiter:
        number = self.sent
        self.sent += 1
        now = self.virtual.clock.now_ns()

        def done(answer: Answered) -> None:
            assert number not in self.answers, "answered twice"
            self.answers[number] = answer
            self.times_ms[number] = (self.virtual.clock.now_ns() - now) / MS

        waiter = make_waiter(value, arrival_ns=now, done=done, **settings)  # type: ignore[arg-type]
        self.loop.submit(waiter)
        return waiter


def client(executable: FakeExecutable | None = None, **settings: object) -> tuple[Client, FakeExecutable, Queue]:
    fake = executable or FakeExecutable(lambda rows: 10 * MS)
    loop, virtual, queue = make_loop(fake, **settings)  # type: ignore[arg-type]
    return Client(loop, virtual), fake, queue


def learn(loop: BatchLoop, cost_ns: Callable[[int], int], rows_max: int = 64) -> None:
    rows = 1
    while rows <= rows_max:
        for _ in range(4):
            loop.times.observe(rows, cost_ns(rows))
        rows *= 2


# -- one request, a few ----------------------------------------------------------------------------------------------


def test_a_lone_request_is_answered_after_one_run_and_told_where_its_time_went() -> None:
    one, fake, _ = client()
    one.send(21)
    one.virtual.run()
    answer = one.answers[0]
    assert isinstance(answer, InferResponse)
    assert answer.outputs["y"].tolist() == [[42]]
    assert (answer.timing.queue_ns, answer.timing.compute_ns) == (0, 10 * MS)
    assert (answer.timing.batch_rows, answer.timing.batch_requests) == (1, 1)
    assert one.times_ms[0] == 10
    assert fake.batches == [1]


def test_lone_requests_one_after_the_other_are_never_delayed() -> None:
    one, _, _ = client()
    for number in range(50):
        one.send()
        one.virtual.run()
        assert one.times_ms[number] == 10


def test_those_who_come_while_a_batch_runs_leave_together_after_it() -> None:
    one, fake, _ = client()
    learn(one.loop, lambda rows: 10 * MS)
    one.send(0)
    one.virtual.step()
    for value in (1, 2, 3):
        one.send(value)
    one.virtual.run()
    assert fake.batches == [1, 3]
    assert [float(one.answers[n].outputs["y"][0, 0]) for n in range(4)] == [0, 2, 4, 6]  # type: ignore[union-attr]


def test_requests_of_different_shapes_never_share_a_run() -> None:
    one, fake, _ = client()
    learn(one.loop, lambda rows: 10 * MS)
    one.send()
    one.virtual.step()
    for signature in ("a", "b", "a", "b", SIGNATURE_ALONE, SIGNATURE_ALONE):
        one.send(signature=signature)
    one.virtual.run()
    assert len(one.answers) == 7
    assert sum(fake.batches) == 7
    assert max(fake.batches) <= 2


def test_a_short_run_happens_on_the_event_loop_once_it_is_known_to_be_short() -> None:
    one, _, _ = client(FakeExecutable(lambda rows: 5_000), is_inline=True)
    one.send()
    one.virtual.step()
    assert one.loop.running(), "of unknown length: not here"
    one.virtual.run()
    one.send()
    one.virtual.step()
    assert len(one.answers) == 2


@pytest.mark.parametrize("datatype", ["BYTES", "FP32"])
def test_a_run_whose_length_the_shape_does_not_tell_never_happens_on_the_event_loop(datatype: str) -> None:
    # Texts of any length have one shape; requests to a model without batches have one signature, whatever their shape.
    fake = FakeExecutable(lambda rows: 5_000)
    fake.inputs = (TensorSpec(name="x", datatype=datatype, shape=(-1, 1)),)
    one, _, _ = client(fake, is_inline=True, rows_max=8 if datatype == "BYTES" else 0)
    for _ in range(5):
        one.send()
        one.virtual.step()
        assert one.loop.running()
        one.virtual.run()


def test_a_long_backlog_of_short_runs_lets_the_event_loop_breathe() -> None:
    one, _, _ = client(FakeExecutable(lambda rows: 50_000), is_inline=True, rows_max=0)
    one.loop._has_batch_axis = False
    learn(one.loop, lambda rows: 50_000, rows_max=1)
    fake_spec = one.loop._executable
    assert fake_spec.can_run_on_event_loop
    one.loop._run_inline_ns_max = 60_000
    for _ in range(100):
        one.send(signature=SIGNATURE_ALONE)
    one.virtual.step()
    assert 0 < len(one.answers) < 60
    one.virtual.run()
    assert len(one.answers) == 100


# -- those who do not want to wait -----------------------------------------------------------------------------------


def test_a_withdrawn_request_is_neither_run_nor_answered() -> None:
    one, fake, _ = client()
    one.send()
    one.virtual.step()
    one.loop.cancel(one.send())
    one.virtual.run()
    assert fake.batches == [1]
    assert list(one.answers) == [0]
    assert one.loop.statistics.failures[FailureReason.CANCELED] == 1


def test_a_running_request_that_is_withdrawn_is_not_answered() -> None:
    one, _, _ = client()
    waiter = one.send()
    one.virtual.step()
    one.loop.cancel(waiter)
    one.loop.cancel(waiter)
    one.virtual.run()
    assert not one.answers
    assert one.loop.statistics.failures[FailureReason.CANCELED] == 1
    assert one.loop.statistics.success_count == 0


def test_a_deadline_ends_the_wait_behind_a_hung_engine() -> None:
    one, _, _ = client(cost_ns=lambda rows: None)
    one.send()
    one.virtual.step()
    one.send(timeout_us=3000)
    one.virtual.run()
    assert isinstance(one.answers[1], DeadlineExceeded)
    assert one.times_ms[1] == 3
    assert 0 not in one.answers
    [running] = one.loop.running()
    assert running.what == "model `fake` version 1"


def test_a_deadline_that_cannot_be_met_is_refused_at_the_door() -> None:
    one, _, _ = client()
    learn(one.loop, lambda rows: 10 * MS, rows_max=1)
    for _ in range(5):
        one.send()
    one.virtual.step()
    with pytest.raises(DeadlineExceeded, match="would start this request in about") as refused:
        one.send(timeout_us=1000)
    assert refused.value.retry_after_s
    one.virtual.run()
    assert len(one.answers) == 5


def test_a_timeout_without_force_refuses_nobody() -> None:
    policy = Policy(may_override=False)
    one, _, _ = client(queue=Queue(model="fake", requests_max=99, policy=policy))
    learn(one.loop, lambda rows: 10 * MS, rows_max=1)
    for _ in range(9):
        one.send(timeout_us=1)
    one.virtual.run()
    assert all(isinstance(answer, InferResponse) for answer in one.answers.values())


def test_a_queue_that_would_take_half_a_minute_takes_nobody_more() -> None:
    one, _, _ = client(rows_max=2)
    for rows in (1, 2):
        for _ in range(4):
            one.loop.times.observe(rows, WAIT_NS_MAX)
    for _ in range(3):
        one.send()
    with pytest.raises(Overloaded) as refused:
        one.send()
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s > 30


def test_a_full_queue_says_when_to_come_back() -> None:
    one, _, _ = client(queue=Queue(model="fake", requests_max=2))
    learn(one.loop, lambda rows: 100 * MS, rows_max=1)
    one.send()
    one.send()
    with pytest.raises(Overloaded) as refused:
        one.send()
    assert refused.value.retry_after_s == pytest.approx(0.2)
    assert one.loop.statistics.failures[FailureReason.REJECTED] == 1


# -- bad engines -----------------------------------------------------------------------------------------------------


def test_an_engine_that_answers_too_few_fails_the_batch_and_the_loop_lives_on() -> None:
    answers: list[Answer] = [[MemberAnswer({"y": np.zeros(1)})], []]
    fake = FakeExecutable(lambda rows: 10 * MS, is_pure=False, answer=lambda batch: answers.pop(0))
    one, _, _ = client(fake)
    for _ in range(3):
        one.send()
        one.virtual.step()
    one.virtual.run()
    assert isinstance(one.answers[0], InferResponse)
    assert isinstance(one.answers[1], EngineFailed)
    assert len(one.answers) == 3


def test_a_client_whose_answer_cannot_be_handed_over_costs_nobody_else_theirs() -> None:
    one, _, _ = client()
    learn(one.loop, lambda rows: 10 * MS)

    def broken(answer: Answered) -> None:
        raise RuntimeError("this client's connection is odd")

    one.send()
    one.virtual.step()
    one.loop.submit(make_waiter(arrival_ns=one.virtual.clock.now_ns(), done=broken))
    one.send()
    one.virtual.run()
    assert len(one.answers) == 2


# -- the end ---------------------------------------------------------------------------------------------------------


def test_a_closing_loop_finishes_what_it_has_and_takes_nothing_new() -> None:
    one, fake, _ = client()
    empty: list[float] = []
    one.send()
    one.virtual.step()
    one.send()
    one.loop.when_empty(lambda: empty.append(one.virtual.clock.now_ns()))
    with pytest.raises(Unavailable, match="is being unloaded"):
        one.send()
    one.virtual.run()
    assert len(one.answers) == 2
    assert len(empty) == 1
    assert one.loop.close()
    assert fake.is_closed


def test_an_idle_loop_is_empty_at_once() -> None:
    one, _, _ = client()
    empty: list[int] = []
    one.loop.when_empty(lambda: empty.append(1))
    one.virtual.run()
    assert empty == [1]


@pytest.mark.parametrize("how", ["cancel", "expire", "fail"])
def test_a_closing_loop_is_empty_when_the_last_who_waits_goes_away(how: str) -> None:
    # Nothing runs: no end of a batch will tell.
    limits = Limits(rows_max=8, delay_ns_max=10_000 * MS)
    one, _, _ = client(limits=limits)
    waiter = one.send(timeout_us=5000)
    one.virtual.step()
    empty: list[float] = []
    one.loop.when_empty(lambda: empty.append(one.virtual.clock.now_ns()))
    if how == "cancel":
        one.loop.cancel(waiter)
    elif how == "fail":
        one.loop.fail_all(Unavailable("the drain ran out of time"))
    one.virtual.run(until_ns=one.virtual.clock.now_ns() + 10 * MS)
    assert len(empty) == 1


def test_a_drain_that_runs_out_of_time_answers_those_inside_a_hung_engine_too() -> None:
    one, fake, _ = client(cost_ns=lambda rows: None)
    one.send()
    one.virtual.step()
    one.send()
    one.loop.fail_all(Unavailable("unloaded"))
    assert all(isinstance(answer, Unavailable) for answer in one.answers.values())
    assert len(one.answers) == 2
    assert not one.loop.close(), "the engine is still inside a call"
    assert not fake.is_closed


# -- the best rate of a model ----------------------------------------------------------------------------------------

CURVES: dict[str, Callable[[int], float]] = {
    "fixed cost": lambda rows: 10.0,
    "linear cost": lambda rows: 10.0 * rows,
    "MiniLM": lambda rows: 2.83 + 3.27 * rows,  # 6.1 ms for 1, 29 ms for 8 on two cores
    "EfficientNet": lambda rows: 5.1 + 5.9 * (rows - 1),  # 5.1 ms for 1, 46.4 ms for 8: batching costs
    "tiny": lambda rows: 0.005 + 0.0002 * rows,
    "falls off a cache": lambda rows: 4 + 0.2 * rows + (0.5 * (rows - 16) if rows > 16 else 0),
}


def closed_loop_rate(curve: str, clients: int, *, return_ns: int, seconds: float = 4.0, seed: int = 0) -> float:
    """Rows a second that so many clients reach, who send again `return_ns` after their answer, more or less."""
    chance = random.Random(seed)

    def cost_ns(rows: int) -> int:
        return int(CURVES[curve](rows) * MS * (1 + 0.01 * chance.random()))

    is_tiny = CURVES[curve](1) < 0.06
    loop, virtual, _ = make_loop(FakeExecutable(cost_ns), rows_max=1024, cost_ns=cost_ns, is_inline=is_tiny)
    seconds = seconds if not is_tiny else 0.05
    began = virtual.clock.now_ns()
    counted_from, end = began + int(0.4e9 * seconds), began + int(1e9 * seconds)
    answered = 0

    def send() -> None:
        loop.submit(make_waiter(arrival_ns=virtual.clock.now_ns(), done=done))

    def done(answer: Answered) -> None:
        nonlocal answered
        now = virtual.clock.now_ns()
        answered += now >= counted_from
        virtual.at(now + int(return_ns * chance.uniform(0.5, 1.5)), send)

    for _ in range(clients):
        virtual.at(began + chance.randrange(MS), send)
    virtual.run(until_ns=end)
    return answered / ((end - counted_from) / 1e9)


@pytest.mark.parametrize("clients", [2, 8, 16, 64])
@pytest.mark.parametrize("curve", CURVES)
def test_a_busy_model_reaches_95_percent_of_its_best_rate(curve: str, clients: int) -> None:
    # What so many clients can reach is the best of the curve up to as many rows, the way back and forth included.
    return_ns = 100_000 if CURVES[curve](1) > 1 else 1_000
    best = max(1e3 * rows / (CURVES[curve](rows) + return_ns / MS) for rows in range(1, clients + 1))
    if curve == "tiny":
        best = max(1e3 * rows / CURVES[curve](rows) for rows in range(1, 2))  # never waits: at least its own rate
    assert closed_loop_rate(curve, clients, return_ns=return_ns) >= 0.95 * best


@pytest.mark.parametrize("curve", CURVES)
def test_one_client_is_as_fast_as_the_model(curve: str) -> None:
    return_ns = 1_000
    best = 1e3 / (CURVES[curve](1) * 1.005 + return_ns / MS)
    assert closed_loop_rate(curve, 1, return_ns=return_ns) >= 0.98 * best


# -- a life ----------------------------------------------------------------------------------------------------------


class Life:
    """A seeded simulation: arrivals, deadlines, priorities, clients who leave, engines that fail, lie, dawdle."""

    def __init__(self, seed: int, events: int) -> None:
        self.chance = chance = random.Random(seed)
        self.events = events
        levels = chance.choice([0, 0, 3])
        timeout_ns = chance.choice([0, 0, 30 * MS])
        self.queue = Queue(
            model="fake",
            requests_max=chance.choice([5, 50, 500]),
            levels=levels,
            level_default=2 if levels else 0,
            policy=Policy(timeout_ns=timeout_ns, may_override=chance.random() < 0.5),
            level_policies={1: Policy(requests_max=10), 3: Policy(timeout_ns=5 * MS, is_delayed=True)}
            if levels
            else {},
        )
        rows_max = chance.choice([0, 4, 32])
        self.rows_max = rows_max
        delay_ns = chance.choice([None, None, 0, 3 * MS])
        preferred = (2, 4) if delay_ns is not None and rows_max else ()
        fixed_ns, row_ns = chance.choice([0, MS, 5 * MS]), chance.choice([10_000, MS])
        self.hung_at_most = chance.choice([0, 1])
        self.instances = chance.choice([1, 2, 3])
        self.is_pure = chance.random() < 0.5
        self.mean_gap_ns = chance.choice([200_000, MS, 4 * MS])

        def cost_ns(rows: int) -> int | None:
            if self.hung_at_most and chance.random() < 0.0005:
                self.hung_at_most = 0
                return None
            return int((fixed_ns + row_ns * rows) * chance.uniform(0.9, 1.5)) + 1

        self.loop, self.virtual, _ = make_loop(
            FakeExecutable(lambda rows: 1, is_pure=self.is_pure, answer=self.answer),
            rows_max=rows_max,
            instances=self.instances,
            limits=Limits(rows_max=rows_max, preferred_rows=preferred, delay_ns_max=delay_ns),
            queue=self.queue,
            cost_ns=cost_ns,
            is_inline=False,
        )
        self.expected: dict[int, Waiter] = {}  # submitted, neither answered nor withdrawn
        self.succeeded = self.failed = self.cancelled = self.refused = self.submitted = 0
        self.wrong: list[str] = []

    def answer(self, batch: Batch) -> Answer:
        dice = self.chance.random()
        x = batch.inputs["x"]
        if dice < 0.01:
            raise EngineFailed("bad luck")
        if dice < 0.02 and self.rows_max:
            return {"y": x[:-1]}
        if dice < 0.025:
            raise MemoryError
        if dice < 0.1 and not self.is_pure:
            answers: list[MemberAnswer | FarthingError] = []
            start = 0
            for member in batch.members:
                answers.append(MemberAnswer({"y": x[start : start + member.rows] * 2}))
                start += member.rows
            if dice < 0.05:
                answers[self.chance.randrange(len(answers))] = InvalidInput("one of you")
            if dice < 0.03:
                answers.pop()
            return answers
        if (x == -1).any():
            raise InvalidInput("poison")
        return {"y": x * 2}

    def arrive(self) -> None:
        chance = self.chance
        self.submitted += 1
        number = self.submitted
        rows = 1 if chance.random() < 0.7 or not self.rows_max else chance.randint(0, min(self.rows_max, 6))
        value = -1 if chance.random() < 0.005 else number

        def done(answer: Answered) -> None:
            if self.expected.pop(number, None) is None:
                self.wrong.append(f"{number} was not waiting for an answer")
            elif isinstance(answer, InferResponse):
                self.succeeded += 1
                if answer.outputs["y"].tolist() != [[np.float32(2 * value)]] * rows:
                    self.wrong.append(f"{number} got somebody else's rows")
            else:
                self.failed += 1
            if chance.random() < 0.02:  # a client that asks again from inside its answer
                self.arrive()

        waiter = make_waiter(
            value,
            rows=rows,
            arrival_ns=self.virtual.clock.now_ns(),
            signature=(chance.choice([FIXED_SHAPES, FIXED_SHAPES, "long"]) if rows and self.rows_max else None),
            priority=chance.randint(0, 4),
            timeout_us=chance.choice([0, 0, 0, 2_000, 20_000]),
            done=done,
        )
        self.expected[number] = waiter
        try:
            self.loop.submit(waiter)
        except (Overloaded, DeadlineExceeded, Unavailable):
            del self.expected[number]
            self.refused += 1
            return
        if chance.random() < 0.1:
            self.virtual.call_later(chance.expovariate(200), self.leave, number)

    def leave(self, number: int) -> None:
        waiter = self.expected.pop(number, None)
        if waiter is not None:
            self.loop.cancel(waiter)
            assert waiter.state == ENDED
            self.cancelled += 1

    def arrivals(self) -> None:
        if self.submitted < self.events:
            self.arrive()
            gap_s = self.chance.expovariate(1) * self.mean_gap_ns / 1e9
            self.virtual.call_later(0 if self.chance.random() < 0.1 else gap_s, self.arrivals)

    def live(self) -> None:
        self.virtual.call_soon(self.arrivals)
        empty: list[int] = []
        steps = 0
        while self.virtual.step():
            steps += 1
            if len(self.queue._levels) == 1 and self.queue.requests > 60 and steps % 16:
                continue  # long lines are looked at now and then
            self.queue.check_integrity()
            assert len(self.loop._idle) + len(self.loop._running) == self.instances
        # A hung engine may have left some behind: the drain answers those.
        self.loop.when_empty(lambda: empty.append(1))
        self.loop.fail_all(Unavailable("the end"))
        self.virtual.run()
        self.check(is_hung=bool(self.loop._running))

    def check(self, *, is_hung: bool) -> None:
        statistics = self.loop.statistics
        assert not self.wrong
        assert not self.expected, "everybody was answered"
        assert self.submitted == self.succeeded + self.failed + self.cancelled + self.refused
        assert statistics.success_count == self.succeeded
        assert statistics.fail_count == self.failed + self.cancelled + self.refused
        assert statistics.failures[FailureReason.CANCELED] == self.cancelled
        assert statistics.pending_requests == statistics.pending_rows == 0
        assert statistics.running_batches == len(self.loop._running)
        assert is_hung or statistics.running_batches == 0
        assert self.queue.requests == self.queue.rows == 0
        assert self.succeeded > 0


@pytest.mark.parametrize("seed", range(30))
def test_in_a_life_of_accidents_every_request_is_answered_once_and_with_its_own_rows(seed: int) -> None:
    Life(seed, events=4_000).live()


# -- real threads ----------------------------------------------------------------------------------------------------


def real_loop(fake: FakeExecutable, instances: int = 2) -> BatchLoop:
    spec = ModelSpec(
        name="fake", version=1, platform="fake", inputs=fake.inputs, outputs=fake.outputs, batch_rows_max=16
    )
    return BatchLoop(
        spec=spec,
        executable=fake,
        instances=instances,
        limits=Limits(rows_max=16),
        queue=Queue(model="fake", requests_max=9999),
        statistics=ModelStatistics(),
        scheduler=asyncio.get_running_loop(),
        run_inline_ns_max=0,
    )


async def test_the_same_with_real_threads_on_a_real_event_loop() -> None:
    threads: set[str] = set()

    def answer(batch: Batch) -> Answer:
        threads.add(threading.current_thread().name)
        return {"y": batch.inputs["x"] * 2}

    fake = FakeExecutable(answer=answer)
    loop = real_loop(fake)
    events = asyncio.get_running_loop()

    async def ask(value: int) -> float:
        future: asyncio.Future[Answered] = events.create_future()
        loop.submit(make_waiter(value, arrival_ns=loop._now_ns(), done=future.set_result))
        answer = await future
        assert isinstance(answer, InferResponse)
        return float(answer.outputs["y"][0, 0])

    for _ in range(20):
        assert await asyncio.gather(*(ask(value) for value in range(100))) == [2 * value for value in range(100)]
    assert threads <= {"fake/1#0", "fake/1#1"}
    assert threads
    empty = asyncio.Event()
    loop.when_empty(empty.set)
    await empty.wait()
    assert await events.run_in_executor(None, loop.close)
    assert fake.is_closed
    assert loop.statistics.success_count == 2000


async def test_a_thread_inside_a_hung_engine_is_left_behind() -> None:
    release = threading.Event()
    entered = threading.Event()

    def hang(batch: Batch) -> Answer:
        entered.set()
        release.wait(20)
        return {"y": batch.inputs["x"]}

    fake = FakeExecutable(answer=hang)
    loop = real_loop(fake)
    loop.submit(make_waiter(arrival_ns=loop._now_ns()))
    events = asyncio.get_running_loop()
    assert await events.run_in_executor(None, entered.wait, 20)
    assert not await events.run_in_executor(None, loop.close, 0.01)
    assert not fake.is_closed
    release.set()
    assert await events.run_in_executor(None, loop.close)
    assert fake.is_closed
