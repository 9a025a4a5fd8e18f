"""A video's model and others on one machine, in virtual time: who runs when, and what each of them gets of it."""

from collections.abc import Callable

import pytest
from tests.batching.test_frame_desk import ALL, LATEST, MS, Camera, Others, options
from tests.fakes import FakeExecutable, VirtualLoop, make_loop

from farthing.batching.batcher import Run, Wait
from farthing.batching.crossing import Crossing, Lane
from farthing.batching.loop import BatchLoop
from farthing.batching.queue import FIXED_SHAPES


class House:
    """Models that meet at one crossing; every batch is noted: whose, from when, until when, how many rows."""

    def __init__(self) -> None:
        self.virtual = VirtualLoop()
        self.crossing = Crossing()
        self.lanes: dict[str, Lane] = {}
        self.ran: list[tuple[str, int, int, int]] = []

    def model(
        self, name: str, fixed_ms: float, row_ms: float, *, computes: bool = True, instances: int = 1
    ) -> BatchLoop:
        def cost_ns(rows: int) -> int:
            now_ns, took_ns = self.virtual.clock.now_ns(), int((fixed_ms + row_ms * rows) * MS)
            self.ran.append((name, now_ns, now_ns + took_ns, rows))
            self.crossing.check_integrity()
            return took_ns

        lane = self.lanes[name] = self.crossing.join(computes=computes)
        loop, _, _ = make_loop(
            FakeExecutable(), rows_max=16, cost_ns=cost_ns, virtual=self.virtual, lane=lane, instances=instances
        )
        for rows in (1, 2, 4, 8, 16):
            for _ in range(3):
                loop._times_for(FIXED_SHAPES).observe(rows, int((fixed_ms + row_ms * rows) * MS))
        return loop

    def run(self, ms: float) -> None:
        self.virtual.run(until_ns=self.virtual.clock.now_ns() + int(ms * MS))

    def busy_ms(self, name: str, since_ns: int = 0) -> float:
        return sum(end - max(start, since_ns) for who, start, end, _ in self.ran if who == name and end > since_ns) / MS

    def overlaps(self, one: str, other: str) -> int:
        """Pairs of batches that ran at the same time."""
        mine = [(start, end) for who, start, end, _ in self.ran if who == one]
        theirs = [(start, end) for who, start, end, _ in self.ran if who == other]
        return sum(start < until and since < end for start, end in mine for since, until in theirs)


def test_a_video_is_on_time_and_the_others_have_the_rest_of_the_machine() -> None:
    house = House()
    video, other = house.model("video", 0, 20), house.model("other", 2, 4)
    camera = Camera(video, house.virtual, options(LATEST, 100), 40 * MS)
    others = Others(other, house.virtual, 4)
    camera.start(100)
    house.run(4000)
    assert camera.told["on time"] >= 99
    assert max(camera.latencies_ns) <= (20 + 18) * MS, "a batch of four that is under way, and its own run"
    assert house.overlaps("video", "other") == 0
    assert 0.95 * 2000 < house.busy_ms("other") <= 2000 + 18
    others.is_going = False


def test_batches_are_shorter_than_what_a_frame_has_to_spare() -> None:
    house = House()
    video, other = house.model("video", 0, 20), house.model("other", 2, 4)
    camera = Camera(video, house.virtual, options(LATEST, 60), 40 * MS)
    others = Others(other, house.virtual, 16)
    camera.start(100)
    house.run(200)
    house.ran.clear()
    house.run(3700)
    assert max(rows for who, _, _, rows in house.ran if who == "other") == 4, (
        "half of the 40 ms until the next frame comes, or there is to spare"
    )
    assert camera.told["on time"] >= 96
    others.is_going = False


def test_a_video_that_could_fill_the_machine_leaves_a_tenth() -> None:
    house = House()
    video, other = house.model("video", 0, 20), house.model("other", 0, 4)
    cameras = [Camera(video, house.virtual, options(LATEST, 200), 40 * MS) for _ in range(4)]
    others = Others(other, house.virtual, 4)
    for camera in cameras:
        camera.start(100)
    house.run(4000)
    assert house.busy_ms("other") >= 0.095 * 4000
    assert house.busy_ms("video") >= 0.85 * 4000
    assert house.overlaps("video", "other") <= 2, "a frame starts beside another batch only at its last moment"
    others.is_going = False


def test_models_without_frames_take_turns_while_there_is_a_video() -> None:
    house = House()
    video, one, two = house.model("video", 0, 20), house.model("one", 0, 10), house.model("two", 0, 10)
    camera = Camera(video, house.virtual, options(LATEST, 60), 40 * MS)
    companies = [Others(one, house.virtual, 8), Others(two, house.virtual, 8)]
    camera.start(200)
    house.run(8000)
    assert camera.told["on time"] >= 195
    assert house.busy_ms("one") == pytest.approx(house.busy_ms("two"), rel=0.1)
    assert house.busy_ms("one") + house.busy_ms("two") >= 0.9 * 4000
    for company in companies:
        company.is_going = False


def test_the_earliest_deadline_goes_first_across_models() -> None:
    house = House()
    slow, quick = house.model("slow", 0, 30), house.model("quick", 0, 10)
    patient = Camera(slow, house.virtual, options(ALL, 300), 100 * MS)
    urgent = Camera(quick, house.virtual, options(ALL, 80), 25 * MS)
    patient.start(40)
    urgent.start(160)
    house.run(4500)
    assert patient.told == {"on time": 40}
    assert urgent.told == {"on time": 160}
    assert house.overlaps("slow", "quick") == 0


@pytest.mark.parametrize("deadline_ms", [0, 100])
def test_nobody_is_asked_when_no_frame_is_due_and_everyone_runs_side_by_side(
    deadline_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House()
    video, other = house.model("video", 0, 20), house.model("other", 0, 4)
    asked: list[int] = []
    ask: Callable[..., Run | Wait] = Lane.ask
    monkeypatch.setattr(Lane, "ask", lambda lane, *more: asked.append(1) or ask(lane, *more))  # type: ignore[func-returns-value]
    camera = Camera(video, house.virtual, options(LATEST, deadline_ms), 40 * MS)
    others = Others(other, house.virtual, 4)
    camera.start(20)
    house.run(1000)
    assert bool(asked) == bool(deadline_ms)
    video.frames.close(camera.stream)
    asked.clear()
    seen = len(house.ran)
    house.run(200)
    assert not asked
    assert len(house.ran) > seen
    others.is_going = False


def test_what_waits_goes_on_when_the_last_stream_closes() -> None:
    house = House()
    video, other = house.model("video", 0, 50), house.model("other", 0, 4)
    camera = Camera(video, house.virtual, options(LATEST, 100), 40 * MS)
    camera.start(1)
    house.run(1)
    others = Others(other, house.virtual, 1)
    house.run(5)
    assert not house.busy_ms("other")
    video.frames.withdraw(camera.stream)
    video.frames.close(camera.stream)
    house.run(5)
    assert house.busy_ms("other")
    assert house.lanes["other"].claim is None
    others.is_going = False


def test_a_model_that_waits_for_others_neither_waits_here_nor_holds_anybody_up() -> None:
    house = House()
    asker, other = house.model("asker", 0, 50, computes=False), house.model("other", 0, 4)
    camera = Camera(asker, house.virtual, options(LATEST, 100), 60 * MS)
    others = Others(other, house.virtual, 2)
    camera.start(20)
    house.run(1300)
    assert camera.told == {"on time": 20}
    assert house.busy_ms("other") >= 0.95 * 1300
    assert house.crossing.is_watched
    others.is_going = False


def test_a_model_that_hangs_does_not_stop_the_others() -> None:
    house = House()
    video, other = house.model("video", 0, 20), house.model("other", 0, 4)
    camera = Camera(video, house.virtual, options(LATEST, 100), 40 * MS)
    camera.start(3)
    house.run(1)
    video._threads.run = lambda job: None  # type: ignore[method-assign]
    others = Others(other, house.virtual, 2)
    house.run(100)
    before = house.busy_ms("other")
    house.run(1000)
    assert house.busy_ms("other") - before >= 750
    others.is_going = False


def test_an_unloaded_model_leaves_no_trace() -> None:
    house = House()
    video, other = house.model("video", 0, 20), house.model("other", 0, 4)
    camera = Camera(video, house.virtual, options(LATEST, 100), 40 * MS)
    others = Others(other, house.virtual, 2)
    camera.start(10)
    house.run(100)
    others.is_going = False
    gone: list[str] = []
    for name, loop in (("video", video), ("other", other)):
        loop.when_empty(lambda name=name: gone.append(name))  # type: ignore[misc]
    house.run(1000)
    assert sorted(gone) == ["other", "video"]
    assert not house.crossing.is_watched
    assert not house.crossing._lanes
