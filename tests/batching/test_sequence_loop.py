"""The loop that runs sequences, in virtual time: a model that adds up what each client sent it."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.fakes import Answered, FakeExecutable, VirtualInstances, VirtualLoop

from farthing.batching import sequence_tensors
from farthing.batching.batcher import Limits
from farthing.batching.queue import FIXED_SHAPES
from farthing.batching.sequence import SequenceId, SequenceWaiter
from farthing.batching.sequence_batcher import SequenceRules
from farthing.batching.sequence_loop import SequenceLoop
from farthing.batching.sequence_tensors import Control, SequenceTensors, Signal, State
from farthing.batching.sequences import Sequences
from farthing.engines.contract import Answer, Batch, MemberAnswer
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.types.errors import DeadlineExceeded, EngineFailed, FarthingError, InvalidInput, Overloaded, Unavailable
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, RequestedOutput
from farthing.types.tensors import Tensor, TensorSpec

MS = 1_000_000
S = 1000 * MS

CONTROLS = (
    Control(name="start", signal=Signal.START, datatype="FP32", shape=(1, 1), false=0.0, true=1.0),
    Control(name="end", signal=Signal.END, datatype="BOOL", shape=(1, 1), false=False, true=True),
    Control(name="ready", signal=Signal.READY, datatype="INT32", shape=(1,), false=0, true=1),
    Control(name="id", signal=Signal.ID, datatype="UINT64", shape=(1, 1)),
)
SUM = State(
    input_name="before",
    output_name="after",
    datatype="FP32",
    shape=(1, 1),
    initial=np.array([[100]], np.float32),
)


def add_up(batch: Batch) -> Answer:
    total = batch.inputs["before"] + batch.inputs["x"]
    return {"y": total, "after": total}


class Town:
    """A loop, its clients and what each was told."""

    def __init__(
        self,
        *,
        answer: Callable[[Batch], Answer] = add_up,
        is_direct: bool = False,
        instances: int = 1,
        slots: int = 4,
        rows_max: int = 4,
        requests_max: int = 1000,
        idle_ns: int = S,
        cost_ns: Callable[[int], int | None] = lambda rows: MS,
        is_pure: bool = True,
        is_inline: bool = False,
        delay_ns: int | None = 0,
        **rules: Any,
    ) -> None:
        self.virtual = VirtualLoop()
        self.seen: list[dict[str, Tensor]] = []

        def answered(batch: Batch) -> Answer:
            self.seen.append(dict(batch.inputs))
            return answer(batch)

        executable = FakeExecutable(
            answer=answered, is_pure=is_pure, cost_ns=lambda rows: 1000, clock=self.virtual.clock if is_inline else None
        )
        self.sequences = Sequences(
            model="m", instances=instances, slots=slots, idle_ns=idle_ns, requests_max=requests_max
        )
        self.statistics = ModelStatistics()
        self.loop = SequenceLoop(
            rules=SequenceRules(
                limits=Limits(rows_max=rows_max, delay_ns_max=delay_ns),
                slots=slots,
                idle_ns=idle_ns,
                is_direct=is_direct,
                **rules,
            ),
            tensors=SequenceTensors(controls=CONTROLS, states=(SUM,), has_batch_axis=rows_max > 0),
            sequences=self.sequences,
            spec=ModelSpec(
                name="m",
                version=1,
                platform="fake",
                inputs=executable.inputs,
                outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
                batch_rows_max=rows_max,
            ),
            executable=executable,
            instances=instances,
            statistics=self.statistics,
            scheduler=self.virtual,
            clock=self.virtual.clock,
            run_inline_ns_max=60_000 if is_inline else 0,
            make_instances=partial(VirtualInstances, cost_ns=cost_ns),
        )
        self.answers: dict[int, Answered] = {}
        self.sent = 0

    def send(
        self, sequence_id: SequenceId, flags: str = "", x: float = 1, *, timeout_us: int = 0, outputs: str = ""
    ) -> SequenceWaiter:
        number = self.sent
        self.sent += 1

        def done(answer: Answered) -> None:
            assert number not in self.answers, "answered twice"
            self.answers[number] = answer

        asked = (RequestedOutput(outputs),) if outputs else ()
        waiter = SequenceWaiter(
            InferRequest(model_name="m", inputs={}, timeout_us=timeout_us, outputs=asked),
            {"x": np.full((1, 1), x, np.float32)},
            1,
            FIXED_SHAPES,
            self.virtual.clock.now_ns(),
            done,
            sequence_id=sequence_id,
            is_start="s" in flags,
            is_end="e" in flags,
            is_iterative="i" in flags,
        )
        self.loop.submit(waiter)
        return waiter

    def run(self, ms: float = 100) -> None:
        self.virtual.run(until_ns=self.virtual.clock.now_ns() + int(ms * MS))
        self.sequences.check_integrity()

    def told(self, number: int) -> float:
        answer = self.answers[number]
        assert isinstance(answer, InferResponse), answer
        assert list(answer.outputs) == ["y"], "states are the server's business"
        return float(answer.outputs["y"][0, 0])


@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize("is_inline", [True, False])
def test_each_sequence_adds_up_its_own_and_they_share_runs(is_direct: bool, is_inline: bool) -> None:
    town = Town(is_direct=is_direct, is_inline=is_inline)
    for number in range(4):
        town.send(number + 1, "s", 1)
    town.run()
    for number in range(4):
        town.send(number + 1, "", 10 * (number + 1))
    town.run()
    for number in range(4):
        town.send(number + 1, "e", 0)
    town.run()
    assert [town.told(number) for number in range(12)] == [101] * 4 + [111, 121, 131, 141] * 2
    assert town.statistics.sequences is not None
    assert town.statistics.sequences.active == 0
    assert len(town.seen) < 12
    assert town.statistics.inference_count == 12


def test_controls_say_who_starts_who_ends_and_who_it_is() -> None:
    town = Town()
    town.send(7, "s")
    town.send(8, "se")
    town.run()
    town.send(7)
    town.send(9, "s")
    town.run()
    first, second = town.seen
    assert first["start"].tolist() == [[1], [1]]
    assert first["end"].tolist() == [[False], [True]]
    assert first["ready"].tolist() == [1, 1]
    assert first["id"].tolist() == [[7], [8]]
    assert second["start"].tolist() == [[0], [1]]
    assert [(tensor.dtype.name) for tensor in (first["start"], first["end"], first["ready"], first["id"])] == [
        "float32",
        "bool",
        "int32",
        "uint64",
    ]


def test_direct_gives_each_sequence_its_row_and_pads_slots_that_have_no_request() -> None:
    town = Town(is_direct=True)
    for sequence_id in (5, 6, 7):
        town.send(sequence_id, "s")
    town.run()
    town.send(7, x=4)
    town.send(6, "e", x=3)
    town.run()
    town.send(7)
    town.run()
    town.send(5)
    town.run()
    assert town.seen.pop()["ready"].tolist() == [1], "no padding above the highest slot that has a request"
    assert town.seen[-2]["ready"].tolist() == [0, 1, 1]
    assert town.seen[-2]["id"].tolist() == [[0], [6], [7]]
    assert town.seen[-2]["x"].tolist() == [[0], [3], [4]]
    assert town.seen[-2]["end"].tolist() == [[False], [True], [False]]
    assert town.seen[-1]["ready"].tolist() == [0, 0, 1], "a slot given back is padded while a higher one is held"
    assert town.told(5) == 106
    assert town.statistics.inference_count == 7, "padding is nobody's row"


def test_direct_waits_for_the_share_of_slots_it_was_told_to() -> None:
    town = Town(is_direct=True, fill_min=0.5, fill_delay_ns=20 * MS)
    town.send(1, "s")
    town.run(10)
    assert not town.seen
    town.send(2, "s")
    town.run(0.1)
    assert len(town.seen) == 0
    town.run(2)
    assert len(town.seen) == 1
    town.send(1)
    town.run(19)
    assert len(town.seen) == 1
    town.run(3)
    assert len(town.seen) == 2


def test_sequences_beyond_the_slots_wait_and_are_served_when_others_end() -> None:
    town = Town(slots=1)
    town.send(1, "s")
    town.send(2, "s")
    town.run()
    assert sorted(town.answers) == [0]
    assert town.statistics.sequences is not None
    assert (town.statistics.sequences.active, town.statistics.sequences.backlog) == (1, 1)
    town.send(1, "e")
    town.run()
    assert town.told(1) == 101


def test_beyond_the_backlog_the_answer_is_503_and_when_to_come_back() -> None:
    town = Town(slots=1, requests_max=2)
    for sequence_id in (1, 2, 3):
        town.send(sequence_id, "s")
    with pytest.raises(Overloaded) as full:
        town.send(4, "s")
    assert full.value.http_status == 503
    assert full.value.retry_after_s
    assert town.statistics.failures[FailureReason.REJECTED] == 1


def test_a_sequence_whose_client_vanished_is_ended_and_counted_and_its_slot_goes_on() -> None:
    town = Town(slots=1, idle_ns=50 * MS)
    town.send(1, "s")
    town.send(2, "s")
    town.run(40)
    assert sorted(town.answers) == [0]
    town.run(40)
    assert town.told(1) == 101
    town.run(100)
    assert town.statistics.sequences is not None
    assert town.statistics.sequences.timed_out == 2
    assert town.statistics.sequences.active == 0
    with pytest.raises(InvalidInput, match="must specify the START flag on the first request of the sequence"):
        town.send(1)
    assert town.statistics.failures[FailureReason.INVALID] == 1


def test_a_request_in_time_keeps_its_sequence_alive() -> None:
    town = Town(idle_ns=50 * MS)
    town.send(1, "s")
    for _ in range(10):
        town.run(45)
        town.send(1)
    town.run(1)
    assert town.told(10) == 111


def test_one_that_fails_keeps_the_state_the_last_good_one_left_and_harms_nobody_else() -> None:
    def picky(batch: Batch) -> Answer:
        if (batch.inputs["x"] < 0).any():
            raise EngineFailed("cannot bear it")
        return add_up(batch)

    town = Town(answer=picky, is_direct=True)
    for sequence_id in (1, 2):
        town.send(sequence_id, "s", 1)
    town.run()
    town.send(1, x=-5)
    town.send(2, x=5)
    town.run()
    town.send(1, x=2)
    town.run()
    assert isinstance(town.answers[2], EngineFailed)
    assert town.told(3) == 106
    assert town.told(4) == 103


def test_a_model_that_remembers_is_not_run_again_after_a_failure() -> None:
    def fails(batch: Batch) -> Answer:
        raise EngineFailed("no")

    town = Town(answer=fails, is_pure=False)
    town.send(1, "s")
    town.send(2, "s")
    town.run()
    assert len(town.seen) == 1
    assert all(isinstance(answer, EngineFailed) for answer in town.answers.values())


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"y": np.zeros((1, 1), np.float32)}, "the model gave no output `after`"),
        ({"y": np.zeros((1, 1), np.float32), "after": np.zeros((1, 2), np.float32)}, r"FP32 \[1, 2\]; configured is"),
        ({"y": np.zeros((1, 1), np.float32), "after": np.zeros((1, 1))}, r"FP64 \[1, 1\]; configured is FP32"),
        ({"y": np.zeros((2, 1), np.float32), "after": np.zeros((1, 1), np.float32)}, "but 1 rows went in"),
    ],
)
def test_a_model_that_gives_another_state_than_declared_is_told_so(answer: Answer, told: str) -> None:
    town = Town(answer=lambda batch: answer)
    town.send(1, "s")
    town.run()
    failed = town.answers[0]
    assert isinstance(failed, EngineFailed)
    with pytest.raises(EngineFailed, match=told):
        raise failed


def test_a_state_that_grows_without_end_meets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_tensors, "STATE_BYTES_MAX", 3)
    town = Town()
    town.send(1, "s")
    town.run()
    failed = town.answers[0]
    assert isinstance(failed, EngineFailed)
    assert failed.message == "state `after` has grown to 4 bytes; the limit is 3"


def test_members_that_answer_for_themselves_keep_their_own_states() -> None:
    def each(batch: Batch) -> Answer:
        total = batch.inputs["before"] + batch.inputs["x"]
        return [
            EngineFailed("not you")
            if x < 0
            else MemberAnswer({"y": total[row : row + 1], "after": total[row : row + 1]})
            for row, x in enumerate(batch.inputs["x"][:, 0])
        ]

    town = Town(answer=each, is_pure=False)
    for sequence_id in (1, 2):
        town.send(sequence_id, "s")
    town.run()
    town.send(1, x=-1)
    town.send(2, x=1)
    town.run()
    town.send(1, x=1)
    town.run()
    assert isinstance(town.answers[2], EngineFailed)
    assert (town.told(3), town.told(4)) == (102, 102)


def until(limit: float) -> Callable[[Batch], Answer]:
    """Adds up run by run, and answers when the sum is large enough."""

    def answer(batch: Batch) -> Answer:
        after = batch.inputs["before"] + batch.inputs["x"]
        return [
            MemberAnswer({"y": after[row : row + 1], "after": after[row : row + 1]}, {}, bool(after[row, 0] < limit))
            for row in range(len(after))
        ]

    return answer


def test_a_request_runs_until_its_model_answers_and_others_join_it_meanwhile() -> None:
    town = Town(answer=until(105), is_pure=False, is_iterative=True)
    town.send(1, "si", 1)
    town.run(2.5)
    town.send(2, "si", 3)
    town.send(3, "si", 50)
    town.run()
    assert [town.told(number) for number in range(3)] == [105, 106, 150]
    assert max(len(inputs["x"]) for inputs in town.seen) == 3, "they shared runs"
    starts = [
        int(inputs["id"][row, 0]) for inputs in town.seen for row in range(len(inputs["x"])) if inputs["start"][row]
    ]
    assert starts == [1, 2, 3], "in the first run of each"
    assert town.statistics.execution_count == len(town.seen)
    assert town.statistics.inference_count == 3
    assert town.sequences.sequences == 0


def test_one_that_runs_again_ends_between_its_runs_when_its_client_leaves_or_its_time_is_over() -> None:
    town = Town(answer=until(1e9), is_pure=False, is_iterative=True, slots=1)
    left, late = town.send(1, "si"), town.send(2, "si", timeout_us=20_000)
    town.run(5)
    assert left.runs > 2
    town.loop.cancel(left)
    town.run(5)
    assert late.runs > 0, "the slot went on"
    town.run()
    assert isinstance(town.answers[1], DeadlineExceeded)
    assert 0 not in town.answers
    assert town.sequences.sequences == 0
    assert town.loop.is_empty


def test_only_requests_of_iterative_sequences_run_again() -> None:
    town = Town(answer=until(1e9), is_pure=False)
    town.send(1, "s")
    town.run()
    assert "not configured to handle such a flag" in str(town.answers[0])


def test_a_client_that_leaves_before_its_start_ran_takes_its_sequence_along() -> None:
    town = Town(slots=1)
    town.send(1, "s")
    town.run()
    start = town.send(2, "s")
    town.send(2)
    town.loop.cancel(start)
    town.run()
    assert 1 not in town.answers
    assert isinstance(town.answers[2], InvalidInput)


def test_a_client_that_leaves_while_its_request_runs_leaves_the_state_it_made() -> None:
    town = Town()
    town.send(1, "s")
    town.run()
    gone = town.send(1, x=10)
    town.run(0.5)
    town.loop.cancel(gone)
    town.run()
    town.send(1, x=1)
    town.run()
    assert 1 not in town.answers
    assert town.told(2) == 112


def test_a_requests_own_timeout_counts_while_its_sequence_waits_for_a_slot() -> None:
    town = Town(slots=1)
    town.send(1, "s")
    town.run(5)
    town.send(2, "s", timeout_us=10_000)
    town.send(2)
    town.run(20)
    first, second = town.answers[1], town.answers[2]
    assert isinstance(first, DeadlineExceeded)
    assert isinstance(second, DeadlineExceeded)
    assert second.message.startswith("timeout of the corresponding sequence has been expired")


def test_outputs_nobody_asked_for_are_left_out_and_the_state_still_goes_on() -> None:
    town = Town()
    town.send(1, "s", outputs="y")
    town.run()
    town.send(1, outputs="y")
    town.run()
    assert town.told(1) == 102


def test_unloading_answers_who_waits_for_a_slot_and_leaves_nothing() -> None:
    town = Town(slots=1)
    told: list[bool] = []
    town.send(1, "s")
    town.send(2, "s")
    town.run(20)
    town.loop.when_empty(lambda: told.append(True))
    with pytest.raises(Unavailable, match="being unloaded"):
        town.send(1)
    town.loop.fail_all(Unavailable("unloaded"))
    town.run()
    assert isinstance(town.answers[1], Unavailable)
    assert told == [True]
    assert town.sequences.sequences == 0


class Life:
    """A seeded simulation: many clients, engines that fail, clients who leave, start over or fall silent."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.is_direct = chance.random() < 0.5
        rows_max = chance.choice([0, 1, 4, 16])
        self.town = Town(
            answer=self.answer,
            is_direct=self.is_direct,
            instances=chance.choice([1, 2, 3]),
            slots=(rows_max or 1) if self.is_direct else chance.choice([1, 5, 40]),
            rows_max=rows_max,
            requests_max=chance.choice([10, 200]),
            idle_ns=chance.choice([20, 200]) * MS,
            cost_ns=lambda rows: int(chance.uniform(0.1, 2) * MS),
            is_pure=chance.random() < 0.5,
            delay_ns=chance.choice([None, 0, 3 * MS]),
        )
        self.sums: dict[int, float] = {}  # what each client's sequence holds, as the client sees it
        self.checked = 0

    def answer(self, batch: Batch) -> Answer:
        if self.chance.random() < 0.05:
            raise EngineFailed("bad luck")
        ready = batch.inputs["ready"].astype(bool)
        before = batch.inputs["before"][:, 0]
        is_start = batch.inputs["start"][:, 0] > 0
        assert (before[is_start | ~ready] == 100).all(), "whoever starts has the initial state, and so has padding"
        return add_up(batch)

    def client(self, sequence_id: int) -> None:
        """One step of a client who sends its next request when it has the answer to the last."""
        chance = self.chance
        is_start = sequence_id not in self.sums or chance.random() < 0.1
        is_end = chance.random() < 0.2
        x = float(chance.randrange(1, 50))
        before = 100.0 if is_start else self.sums[sequence_id]
        number = self.town.sent

        def again(answer: Answered) -> None:
            self.town.answers[number] = answer
            if isinstance(answer, InferResponse):
                self.sums[sequence_id] = before + x
                assert answer.outputs["y"].tolist() == [[before + x]], "somebody else's state"
                self.checked += 1
                if is_end:
                    del self.sums[sequence_id]
            elif isinstance(answer, InvalidInput) or is_end:
                self.sums.pop(sequence_id, None)
            elif is_start:
                self.sums[sequence_id] = 100.0
            self.later(sequence_id)

        try:
            waiter = self.town.send(sequence_id, "s" * is_start + "e" * is_end, x)
        except FarthingError as error:
            self.sums.pop(sequence_id, None) if isinstance(error, InvalidInput) else None
            self.later(sequence_id)
            return
        waiter.done = again
        if chance.random() < 0.03:  # leaves, and never comes back under this id
            self.town.virtual.call_later(chance.random() / 1000, self.town.loop.cancel, waiter)

    def later(self, sequence_id: int) -> None:
        pause_s = self.chance.choice([0.0, 0.001, 0.005, 0.03])
        if self.town.sent < 1500:
            self.town.virtual.call_later(pause_s, self.client, sequence_id)


@pytest.mark.parametrize("seed", range(24))
def test_whatever_happens_each_sequence_sees_its_own_state_and_nobody_waits_for_ever(seed: int) -> None:
    life = Life(seed)
    for sequence_id in range(1, life.chance.choice([3, 30, 80])):
        life.later(sequence_id)
    for turn in range(200_000):
        if turn % 50 == 0:
            life.town.sequences.check_integrity()
        if not life.town.virtual.step():
            break
    town = life.town
    town.sequences.check_integrity()
    assert town.sequences.requests == town.sequences.sequences == 0
    assert town.loop.is_empty
    assert life.checked > 5
