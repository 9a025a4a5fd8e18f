"""Which frames run and which are dropped: the rules one by one, then properties over random histories."""

from collections import Counter
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from farthing.batching.batcher import Run, Wait
from farthing.batching.frames import RIDING, TIMER_NS, WAITING, Frame, Frames, Kind, Stream, on_time
from farthing.types.frames import DropReason, FrameOptions, FramePolicy
from farthing.types.requests import InferRequest

MS = 1_000_000
KIND = Kind(signature="fixed", rows=1, priority=0)
LATEST = FrameOptions()
ALL = FrameOptions(policy=FramePolicy.ALL, waiting_max=3)
ENDLESS = FrameOptions(policy=FramePolicy.ALL, waiting_max=256)


def a_frame(stream: Stream, at_ms: int = 0, deadline_ms: int = 0, kind: Kind = KIND) -> Frame:
    request = InferRequest(model_name="m", inputs={})
    return Frame(stream, kind, request, {}, at_ms * MS, deadline_ms * MS, lambda outcome: None)


def test_a_newer_frame_takes_the_place_of_one_that_waits() -> None:
    frames, stream = Frames(), Stream(LATEST)
    old, new = a_frame(stream, 0), a_frame(stream, 40)
    assert frames.add(old) is None
    assert frames.add(new) == (old, DropReason.SUPERSEDED)
    assert frames.next(KIND, 9) == [new]


def test_a_newer_frame_of_another_shape_does_too() -> None:
    frames, stream = Frames(), Stream(LATEST)
    other = Kind(signature="tall", rows=1, priority=0)
    old = a_frame(stream, 0)
    frames.add(old)
    assert frames.add(a_frame(stream, 40, kind=other)) == (old, DropReason.SUPERSEDED)
    assert frames.kinds() == [other]


def test_all_frames_wait_in_order_up_to_a_bound() -> None:
    frames, stream = Frames(), Stream(ALL)
    kept = [a_frame(stream, at) for at in range(3)]
    assert [frames.add(frame) for frame in kept] == [None] * 3
    one_more = a_frame(stream, 3)
    assert frames.add(one_more) == (one_more, DropReason.OVERLOAD)
    assert frames.next(KIND, 9) == kept


def test_a_frame_is_late_when_it_would_end_after_its_deadline() -> None:
    frames, stream = Frames(), Stream(ALL)
    frame, patient = a_frame(stream, 0, deadline_ms=100), a_frame(stream, 0)
    frames.add(frame)
    frames.add(patient)
    assert frames.late(KIND, 80 * MS, 20 * MS) == []
    assert frames.late(KIND, 80 * MS + 1, 20 * MS) == [frame]
    assert frames.late(KIND, 10**12, 0) == []
    assert frames.next(KIND, 9) == [patient]


def test_even_streams_go_by_deadline_and_each_in_its_own_order() -> None:
    frames = Frames()
    urgent, patient = Stream(ENDLESS), Stream(ENDLESS)
    p = [a_frame(patient, 0, 500), a_frame(patient, 1, 10)]
    u = [a_frame(urgent, 2, 100), a_frame(urgent, 3, 200)]
    for frame in (*p, *u):
        frames.add(frame)
    assert frames.next(KIND, 9) == [u[0], p[0], p[1], u[1]]


def test_a_stream_that_had_nothing_to_run_has_not_saved_up() -> None:
    frames = Frames()
    busy, fresh = Stream(ENDLESS), Stream(ENDLESS)
    for at in range(100):
        frames.add(a_frame(busy, at))
    for _ in range(50):
        frames.take(frames.next(KIND, 1)[0])
    for at in range(10):
        frames.add(a_frame(fresh, 200 + at))
    for _ in range(20):
        frames.take(frames.next(KIND, 1)[0])
    assert fresh.waiting in (0, 1)


def test_a_fast_stream_delays_a_slow_one_by_one_frame_at_most() -> None:
    frames = Frames()
    slow = Stream(LATEST)
    fast = [Stream(ENDLESS) for _ in range(3)]
    for stream in fast:
        for at in range(50):
            frames.add(a_frame(stream, at))
    for turn in range(10):
        mine = a_frame(slow, 100 + turn)
        frames.add(mine)
        before = 0
        while (first := frames.next(KIND, 1)[0]) is not mine:
            frames.take(first)
            before += 1
        frames.take(mine)
        assert before <= len(fast)


def test_a_batch_is_cut_to_what_its_frames_bear() -> None:
    def cost(rows: int) -> int:
        return rows * 10 * MS

    assert on_time(Run(4), [1] * 4, [0, 0, 0, 0], cost, 0) == Run(4)
    assert on_time(Run(4), [1] * 4, [25 * MS, 0, 0, 0], cost, 0) == Run(2)
    assert on_time(Run(4), [1] * 4, [0, 0, 25 * MS, 0], cost, 0) == Run(2), "it leads the next batch"
    assert on_time(Run(4), [1] * 4, [5 * MS, 0, 0, 0], cost, 0) == Run(1)


def test_no_wait_for_company_makes_a_frame_late() -> None:
    def cost(rows: int) -> int:
        return 10 * MS

    assert on_time(Wait(30 * MS), [1], [0], cost, 0) == Wait(30 * MS)
    assert on_time(Wait(30 * MS), [1], [100 * MS], cost, 0) == Wait(30 * MS)
    assert on_time(Wait(30 * MS), [1], [35 * MS], cost, 0) == Wait(25 * MS - TIMER_NS)
    assert on_time(Wait(30 * MS), [1, 1], [0, 10 * MS], cost, 0) == Run(2)


moves = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 2), st.sampled_from([0, 5, 30, 100])),
        st.tuples(st.just("take"), st.integers(1, 4)),
        st.tuples(st.just("late"), st.integers(0, 20)),
        st.tuples(st.just("close"), st.integers(0, 3)),
        st.tuples(st.just("pass"), st.integers(1, 30)),
    ),
    max_size=80,
)


@given(moves)
@example([("add", 2, 0, 0)] * 3 + [("add", 2, 0, 5), ("late", 6)])  # the last is refused, and waits no more
@settings(max_examples=150, deadline=None)
def test_every_frame_ends_once_in_order_and_no_stream_falls_behind(history: list[tuple[Any, ...]]) -> None:
    frames = Frames()
    kinds = [Kind(signature=name, rows=1, priority=0) for name in "abc"]
    streams = [Stream(LATEST), Stream(LATEST), Stream(ALL), Stream(ENDLESS)]
    now_ms = 0
    fates: Counter[int] = Counter()
    added: list[Frame] = []
    for move, *args in history:
        if move == "add":
            frame = a_frame(streams[args[0]], now_ms, now_ms + args[2] if args[2] else 0, kinds[args[1]])
            added.append(frame)
            dropped = frames.add(frame)
            if dropped is not None:
                fates[id(dropped[0])] += 1
        elif move == "take":
            for kind in kinds:
                chosen = frames.next(kind, args[0])
                assert len(chosen) == min(args[0], frames.waiting(kind))
                rivals = [stream.turn for stream in streams if stream.waiting]
                for frame in chosen:
                    assert frame.state == WAITING
                    mine = [f for f in added if f.stream is frame.stream and f.kind == kind and f.state == WAITING]
                    assert mine[0] is frame, "a stream's frames of one kind run in order"
                    frames.take(frame)
                    assert frame.state == RIDING
                    fates[id(frame)] += 1
                if args[0] == 1 and chosen and frames.streams(kind) + 1 == len(rivals):
                    assert chosen[0].stream.turn - 1 == min(rivals), "who had fewest is next"
        elif move == "late":
            for kind in kinds:
                late = frames.late(kind, now_ms * MS, args[0] * MS)
                fates.update(map(id, late))
                for frame in late:
                    assert frame.deadline_ns < (now_ms + args[0]) * MS
                left = [f for f in added if f.state == WAITING and f.kind == kind and f.deadline_ns]
                assert all(f.deadline_ns >= (now_ms + args[0]) * MS for f in left)
        elif move == "close":
            fates.update(map(id, frames.remove(streams[args[0]])))
            assert streams[args[0]].waiting == 0
        else:
            now_ms += args[0]
        frames.check_integrity()
    assert all(count == 1 for count in fates.values())
    assert len(added) - len(fates) == sum(frames.waiting(kind) for kind in frames.kinds())
