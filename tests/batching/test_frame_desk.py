"""Streams of frames beside ordinary requests in virtual time: seeded simulations of a model and its company."""

import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from tests.fakes import Answered, FakeExecutable, VirtualLoop, make_loop, make_waiter

from farthing.batching.batcher import Limits
from farthing.batching.frames import Kind, Stream
from farthing.batching.loop import BatchLoop
from farthing.batching.queue import FIXED_SHAPES, Policy, Queue
from farthing.engines.contract import Answer, Batch
from farthing.types.errors import EngineFailed, Unavailable
from farthing.types.frames import DropReason, FrameOptions, FrameOutcome, FramePolicy
from farthing.types.requests import InferRequest, InferResponse

MS = 1_000_000
LATEST = FramePolicy.LATEST
ALL = FramePolicy.ALL


@dataclass
class Camera:
    """Sends a frame every so often, and notes what became of each."""

    loop: BatchLoop
    virtual: VirtualLoop
    options: FrameOptions
    every_ns: int
    priority: int = 0
    sent: int = 0
    fates: dict[int, str] = field(default_factory=dict)
    latencies_ns: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stream: Stream = self.loop.frames.open(self.options)

    def start(self, frames: int) -> None:
        self.left = frames
        self.shoot()

    def shoot(self) -> None:
        if not self.left:
            return
        self.left -= 1
        self.sent += 1
        number, arrival_ns = self.sent, self.virtual.clock.now_ns()
        self.loop.frames.counts.received += 1
        value = np.full((1, 1), number, np.float32)

        def done(outcome: FrameOutcome) -> None:
            assert number not in self.fates, "told twice"
            if isinstance(outcome, InferResponse):
                assert outcome.outputs["y"].tolist() == [[2.0 * number]], "somebody else's frame"
                latency_ns = self.virtual.clock.now_ns() - arrival_ns
                self.latencies_ns.append(latency_ns)
                deadline_ns = self.options.deadline_ns
                self.fates[number] = "late answer" if 0 < deadline_ns < latency_ns else "on time"
            else:
                self.fates[number] = outcome.value if isinstance(outcome, DropReason) else type(outcome).__name__

        self.loop.frames.offer(
            self.stream,
            Kind(FIXED_SHAPES, 1, self.priority),
            InferRequest(model_name="fake", inputs={"x": value}, priority=self.priority),
            {"x": value},
            arrival_ns,
            arrival_ns + self.options.deadline_ns if self.options.deadline_ns else 0,
            done,
        )
        self.loop.frames.frames.check_integrity()
        self.virtual.at(arrival_ns + self.every_ns, self.shoot)

    @property
    def told(self) -> Counter[str]:
        return Counter(self.fates.values())


class Others:
    """Clients that ask again as soon as they are answered."""

    def __init__(self, loop: BatchLoop, virtual: VirtualLoop, clients: int) -> None:
        self.loop, self.virtual = loop, virtual
        self.answers = 0
        self.is_going = True
        for _ in range(clients):
            self.ask()

    def ask(self) -> None:
        def done(answer: Answered) -> None:
            self.answers += 1
            if self.is_going:
                self.virtual.call_soon(self.ask)

        self.loop.submit(make_waiter(1, arrival_ns=self.virtual.clock.now_ns(), signature=FIXED_SHAPES, done=done))


def a_model(
    fixed_ms: float = 10, row_ms: float = 10, rows_max: int = 8, **more: object
) -> tuple[BatchLoop, VirtualLoop]:
    loop, virtual, _ = make_loop(
        FakeExecutable(),
        rows_max=rows_max,
        cost_ns=lambda rows: int((fixed_ms + row_ms * rows) * MS),
        **more,  # type: ignore[arg-type]
    )
    for rows in (1, 2, 4, 8):
        for _ in range(3):
            loop._times_for(FIXED_SHAPES).observe(rows, int((fixed_ms + row_ms * rows) * MS))
    return loop, virtual


def options(policy: FramePolicy, deadline_ms: float = 0, waiting_max: int = 32) -> FrameOptions:
    return FrameOptions(policy=policy, deadline_ns=int(deadline_ms * MS), waiting_max=waiting_max)


def test_a_camera_alone_is_served_frame_by_frame() -> None:
    loop, virtual = a_model()
    camera = Camera(loop, virtual, options(LATEST, 100), 40 * MS)
    camera.start(250)
    virtual.run()
    assert camera.told == {"on time": 250}


def test_where_frames_come_too_fast_the_latest_wins_and_is_fresh() -> None:
    loop, virtual = a_model(fixed_ms=40, row_ms=5)
    camera = Camera(loop, virtual, options(LATEST, 100), 10 * MS)
    camera.start(500)
    virtual.run()
    told = camera.told
    assert told["superseded"] > 300
    assert told["on time"] > 100
    assert set(told) == {"superseded", "on time"}
    assert max(camera.latencies_ns) <= 56 * MS, "never older than one frame when its run begins"


def test_where_all_are_kept_those_without_hope_are_dropped_before_they_run() -> None:
    loop, virtual = a_model(fixed_ms=40, row_ms=5, rows_max=0)
    camera = Camera(loop, virtual, options(ALL, 200), 20 * MS)
    camera.start(500)
    virtual.run()
    told = camera.told
    assert told["late"] > 200
    assert set(told) == {"late", "on time"}
    assert told["on time"] >= 500 * 20 // 45 - 20, "and no run is wasted"


def test_all_frames_of_a_backlog_share_batches() -> None:
    loop, virtual = a_model(fixed_ms=40, row_ms=5)
    camera = Camera(loop, virtual, options(ALL, 1000), 12 * MS)
    camera.start(500)
    virtual.run()
    assert camera.told == {"on time": 500}
    assert max(loop._executable.batches) > 1  # type: ignore[attr-defined]


def test_a_queue_of_other_requests_does_not_make_frames_stale() -> None:
    """Twenty clients in a closed loop wait 130 ms for their turn; a frame in its place is at most 40 ms old then."""
    loop, virtual = a_model(fixed_ms=10, row_ms=10)
    others = Others(loop, virtual, 20)
    camera = Camera(loop, virtual, options(LATEST, 100), 40 * MS)
    camera.start(250)
    virtual.at(virtual.clock.now_ns() + 10_000 * MS, lambda: setattr(others, "is_going", False))
    virtual.run()
    told = camera.told
    assert sum(told.values()) == 250
    assert told["on time"] > 40, "one place in twenty-one"
    assert told["late"] <= 1, "the last one, which nothing newer replaces"
    assert not told["late answer"]
    assert max(camera.latencies_ns) <= 100 * MS
    assert others.answers > 500


def test_a_fast_stream_does_not_starve_a_slow_one() -> None:
    loop, virtual = a_model(fixed_ms=30, row_ms=0, rows_max=0)
    fast = Camera(loop, virtual, options(ALL, 150, 256), 10 * MS)
    slow = Camera(loop, virtual, options(LATEST, 150), 100 * MS)
    fast.start(1000)
    slow.start(100)
    virtual.run()
    assert slow.told == {"on time": 100}
    assert fast.told["on time"] > 200


def test_streams_of_equal_rate_get_equal_shares() -> None:
    loop, virtual = a_model(fixed_ms=30, row_ms=0, rows_max=0)
    cameras = [Camera(loop, virtual, options(LATEST), 30 * MS) for _ in range(4)]
    for camera in cameras:
        camera.start(400)
    virtual.run(until_ns=virtual.clock.now_ns() + 9_000 * MS)
    answered = [camera.told["on time"] for camera in cameras]
    assert max(answered) - min(answered) <= 2
    assert sum(answered) > 280


def test_a_model_that_was_slow_for_a_moment_is_tried_again() -> None:
    loop, virtual = a_model(fixed_ms=10, row_ms=0, rows_max=0)
    for _ in range(200):
        loop._times_for(None).observe(1, 500 * MS)
    assert loop.expected_ns(None, 1) > 100 * MS
    camera = Camera(loop, virtual, options(LATEST, 100), 40 * MS)
    kind = Kind(None, 1, 0)
    assert kind.signature is None
    camera.start(0)
    told: Counter[str] = Counter()

    def shoot() -> None:
        value = np.ones((1, 1), np.float32)
        arrival_ns = virtual.clock.now_ns()
        loop.frames.offer(
            camera.stream,
            kind,
            InferRequest(model_name="fake", inputs={"x": value}),
            {"x": value},
            arrival_ns,
            arrival_ns + 100 * MS,
            lambda outcome: told.update([type(outcome).__name__]),
        )

    start_ns = virtual.clock.now_ns()
    for at in range(200):
        virtual.at(start_ns + at * 40 * MS, shoot)
    virtual.run()
    assert told["InferResponse"] > 100
    assert sum(told.values()) == 200


def test_a_full_queue_drops_frames_at_once() -> None:
    loop, virtual = a_model(queue=Queue(model="fake", requests_max=2), fixed_ms=50)
    Others(loop, virtual, 1)
    virtual.run(until_ns=virtual.clock.now_ns() + MS)
    done: list[FrameOutcome] = []
    for _ in range(2):
        loop.submit(make_waiter(1, arrival_ns=virtual.clock.now_ns(), signature=FIXED_SHAPES, done=lambda answer: None))
    camera = Camera(loop, virtual, options(LATEST), 1000 * MS)
    camera.start(1)
    assert camera.told == {"overload": 1}
    assert not done


def test_frames_of_a_closed_stream_are_withdrawn() -> None:
    loop, virtual = a_model()
    camera = Camera(loop, virtual, options(ALL), MS)
    camera.start(5)
    virtual.run(until_ns=virtual.clock.now_ns() + 6 * MS)
    loop.frames.withdraw(camera.stream)
    loop.frames.close(camera.stream)
    virtual.run()
    assert camera.fates == {}
    assert loop.frames.counts.dropped[DropReason.GONE] == 5
    assert loop.is_empty
    assert loop.frames.counts.streams_open == 0


def test_an_unloading_model_answers_every_frame() -> None:
    loop, virtual = a_model(rows_max=0)
    camera = Camera(loop, virtual, options(ALL), MS)
    camera.start(20)
    virtual.run(until_ns=virtual.clock.now_ns() + 10 * MS)
    empty: list[bool] = []
    loop.when_empty(lambda: empty.append(True))
    virtual.run()
    assert empty == [True]
    assert len(camera.fates) == 20
    assert set(camera.told) == {"on time", "Unavailable"}


class Day:
    """A seeded simulation: streams of all kinds, other load, failing engines, queue policies, clients who leave."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        rows_max = chance.choice([0, 4, 16])
        levels = chance.choice([0, 3])
        timeout_ns = chance.choice([0, 0, 30 * MS])
        fixed_ms, row_ms = chance.choice([0.05, 2, 20]), chance.choice([0.1, 3])
        delay_ns = chance.choice([None, None, 20 * MS])
        self.loop, self.virtual, self.queue = make_loop(
            FakeExecutable(answer=self.answer, is_pure=chance.random() < 0.5),
            rows_max=rows_max,
            instances=chance.choice([1, 2]),
            limits=Limits(rows_max=rows_max, delay_ns_max=delay_ns if rows_max else None),
            queue=Queue(
                model="fake",
                requests_max=chance.choice([3, 50, 500]),
                levels=levels,
                level_default=2 if levels else 0,
                policy=Policy(timeout_ns=timeout_ns),
            ),
            cost_ns=lambda rows: int((fixed_ms + row_ms * rows) * MS * chance.uniform(0.8, 2)) + 1,
            is_inline=chance.random() < 0.3,
        )
        self.signature = FIXED_SHAPES if rows_max else None
        self.cameras = [
            Camera(
                self.loop,
                self.virtual,
                options(chance.choice(list(FramePolicy)), chance.choice([0, 15, 60, 300]), chance.choice([1, 5, 40])),
                int(chance.choice([2, 10, 40]) * MS),
                priority=chance.randint(0, 3),
            )
            for _ in range(chance.randint(1, 6))
        ]
        self.asked = self.told = 0

    def answer(self, batch: Batch) -> Answer:
        if self.chance.random() < 0.02:
            raise EngineFailed("bad luck")
        return {"y": batch.inputs["x"] * 2}

    def ask(self) -> None:
        def done(answer: Answered) -> None:
            self.told += 1

        self.asked += 1
        waiter = make_waiter(1, arrival_ns=self.virtual.clock.now_ns(), signature=self.signature, done=done)
        try:
            self.loop.submit(waiter)
        except Unavailable:
            self.told += 1

    def run(self) -> None:
        start_ns = self.virtual.clock.now_ns()
        for camera in self.cameras:
            self.virtual.at(start_ns + self.chance.randrange(50) * MS, camera.start, 100)
        for _ in range(self.chance.choice([0, 300])):
            self.virtual.at(start_ns + self.chance.randrange(2000) * MS, self.ask)
        leaving = self.cameras[0] if self.chance.random() < 0.5 else None
        if leaving is not None:
            self.virtual.at(start_ns + 150 * MS, self.leave, leaving)
        while self.virtual.step():
            self.loop.frames.frames.check_integrity()
            self.queue.check_integrity()
        assert self.told == self.asked
        assert self.loop.is_empty
        counts = self.loop.frames.counts
        ended = counts.on_time + counts.late + counts.failed + sum(counts.dropped.values())
        assert counts.received == ended
        assert sum(counts.buckets) == counts.on_time + counts.late
        for camera in self.cameras:
            if camera is not leaving:
                assert sorted(camera.fates) == list(range(1, camera.sent + 1)), "each frame told once"
        told = sum((camera.told for camera in self.cameras), Counter[str]())
        assert told["superseded"] == counts.dropped["superseded"]
        assert sum(told.values()) + counts.dropped["gone"] == counts.received

    def leave(self, camera: Camera) -> None:
        camera.left = 0
        self.loop.frames.withdraw(camera.stream)
        self.loop.frames.close(camera.stream)


@pytest.mark.parametrize("seed", range(40))
def test_every_frame_and_every_request_is_answered_once(seed: int) -> None:
    Day(seed).run()
