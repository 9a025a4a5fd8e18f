"""The loop around the batcher: examples one can follow, and the life of a busy model in virtual time."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest
from tests.fakes import Answered, FakeExecutable, VirtualLoop, make_loop, make_waiter

from farthing.batching.batcher import Limits
from farthing.batching.forecast import SIGNATURES_MAX, WAIT_NS_MAX
from farthing.batching.loop import BatchLoop
from farthing.batching.queue import FIXED_SHAPES, SIGNATURE_ALONE, Policy, Queue, Waiter
from farthing.engines.contract import Answer, Batch, MemberAnswer
from farthing.telemetry.clock import ManualClock
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.types.errors import DeadlineExceeded, EngineFailed, Overloaded, Unavailable
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


def test_a_new_shape_begins_with_the_size_that_was_best_for_the_last_one() -> None:
    one, fake, _ = client()
    learn(one.loop, lambda rows: 10 * MS)
    for signature in ("known", "new", "new", "new"):
        one.send(signature=FIXED_SHAPES if signature == "known" else signature)
        one.virtual.step()
    one.virtual.run()
    assert fake.batches == [1, 3]


def test_the_shapes_whose_times_are_remembered_are_bounded() -> None:
    one, _, _ = client()
    for length in range(3 * SIGNATURES_MAX):
        one.send(signature=("x", length))
        one.virtual.run()
    assert len(one.loop.forecast.by_signature) == SIGNATURES_MAX
    assert len(one.answers) == 3 * SIGNATURES_MAX


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
    assert running.doing == "has been running one batch"


def test_requests_that_wait_while_nothing_runs_are_seen_by_the_watchdog() -> None:
    one, _, _ = client(limits=Limits(rows_max=8, delay_ns_max=60_000 * MS))
    assert not one.loop.running()
    arrival_ns = one.send().arrival_ns
    one.virtual.step()
    [waiting] = one.loop.running()
    assert (waiting.started_ns, waiting.doing) == (arrival_ns, "has had requests waiting and none running")
    one.virtual.run()
    assert not one.loop.running()


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


class Interrupted(ManualClock):
    """That of a thread which the machine puts aside for so long wherever it looks at the clock."""

    def __init__(self, lost_ns: int) -> None:
        super().__init__()
        self.lost_ns = lost_ns

    def now_ns(self) -> int:
        return self.advance(ns=self.lost_ns)


@pytest.mark.parametrize("lost_ms", [0, 1, 3, 50])
def test_a_loop_that_the_machine_puts_aside_at_any_moment_still_answers(lost_ms: int) -> None:
    one, _, _ = client(virtual=VirtualLoop(Interrupted(lost_ms * MS)), is_inline=True)
    for value in range(20):
        one.send(value)
        one.virtual.run()
    assert [float(one.answers[n].outputs["y"][0, 0]) for n in range(20)] == [2 * n for n in range(20)]  # type: ignore[union-attr]


class OneInstanceDown(FakeExecutable):
    """Instance 1 answers at once that it is being restarted, as a Python model's does."""

    def execute(self, batch: Batch, instance: int) -> Answer:
        if instance == 1:
            raise Unavailable("the model's process is being restarted", retry_after_s=5)
        return super().execute(batch, instance)


def test_an_instance_that_is_down_draws_no_work_while_another_is_up() -> None:
    wire, _, _ = client(OneInstanceDown(is_pure=False), instances=2, cost_ns=lambda rows: MS, rows_max=0)
    for _ in range(50):
        wire.send(1.0, signature=SIGNATURE_ALONE)
        wire.virtual.run(until_ns=wire.virtual.clock.now_ns() + 2 * MS)
    failed = [answer for answer in wire.answers.values() if isinstance(answer, Unavailable)]
    assert len(wire.answers) == 50
    assert len(failed) == 1


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


def test_while_many_wait_two_batches_go_together_and_run_one_after_the_other() -> None:
    who, executable, _ = client(FakeExecutable(lambda rows: 10 * MS * rows))
    who.loop.times.observe_hand_over(MS // 4)  # worth saving, and no reason for larger batches
    learn(who.loop, executable.cost_ns)
    for _ in range(8):
        who.send()
    who.virtual.run()
    assert executable.batches == [1] * 8
    assert list(who.times_ms.values()) == [20, 20, 40, 40, 60, 60, 70, 80]
