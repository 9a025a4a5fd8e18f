"""Every request gets its own rows back, whatever it rode with and whatever the engine does."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import FakeExecutable, make_waiter

from farthing.batching.queue import Waiter
from farthing.batching.run import Ran, as_error, run_batch, run_in_parts
from farthing.engines.contract import Answer, Batch, MemberAnswer
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput
from farthing.types.requests import RequestedOutput
from farthing.types.tensors import NUMPY_DTYPES, Tensor, TensorSpec

OUTPUTS = (
    TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),
    TensorSpec(name="z", datatype="INT64", shape=(-1,)),
)


def both(batch: Batch) -> dict[str, Tensor]:
    x = batch.inputs["x"]
    all_outputs = {"y": x * 2, "z": x[:, 0].astype(np.int64)}
    return {name: all_outputs[name] for name in batch.outputs}


def run(
    waiters: Sequence[Waiter],
    answer: Callable[[Batch], Answer] = both,
    *,
    is_pure: bool = True,
    has_batch_axis: bool = True,
    outputs: tuple[TensorSpec, ...] = OUTPUTS,
) -> Ran:
    executable = FakeExecutable(answer=answer, is_pure=is_pure)
    return run_batch(executable, outputs, waiters, 0, has_batch_axis=has_batch_axis)


def outputs_of(ran: Ran) -> list[Any]:
    for result in ran.results:
        assert not isinstance(result, FarthingError), result
    return [result[0] for result in ran.results]  # type: ignore[index]


def errors_of(ran: Ran) -> list[FarthingError | None]:
    return [result if isinstance(result, FarthingError) else None for result in ran.results]


def wanting(*names: str, value: float = 1) -> Waiter:
    waiter = make_waiter(value)
    waiter.request.outputs = tuple(RequestedOutput(name) for name in names)
    return waiter


DATATYPES = sorted(NUMPY_DTYPES)


@st.composite
def mixes(draw: st.DrawFn) -> tuple[list[int], list[str], list[tuple[int, ...]]]:
    rows = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    tensors = draw(st.lists(st.sampled_from(DATATYPES), min_size=1, max_size=4))
    tails = [tuple(draw(st.lists(st.integers(0, 3), max_size=2))) for _ in tensors]
    return rows, tensors, tails


@given(mixes())
def test_rows_return_to_the_request_that_brought_them(
    mix: tuple[list[int], list[str], list[tuple[int, ...]]],
) -> None:
    rows, datatypes, tails = mix
    names = [f"t{place}" for place in range(len(datatypes))]
    waiters = []
    for number, count in enumerate(rows):
        inputs = {}
        for name, datatype, tail in zip(names, datatypes, tails, strict=True):
            value: Any = b"%d" % number if datatype == "BYTES" else number % 2 if datatype == "BOOL" else number
            inputs[name] = np.full((count, *tail), value, NUMPY_DTYPES[datatype])
        waiters.append(make_waiter(rows=count, inputs=inputs))
    outputs = tuple(
        TensorSpec(name=name, datatype=datatype, shape=(-1, *tail))
        for name, datatype, tail in zip(names, datatypes, tails, strict=True)
    )
    ran = run(waiters, lambda batch: dict(batch.inputs), outputs=outputs)
    for waiter, given_back in zip(waiters, outputs_of(ran), strict=True):
        assert given_back.keys() == waiter.inputs.keys()
        for name, tensor in given_back.items():
            assert tensor.dtype == waiter.inputs[name].dtype
            assert tensor.shape == waiter.inputs[name].shape
            assert (tensor == waiter.inputs[name]).all()


def test_requests_of_different_sizes_get_their_own_rows() -> None:
    ran = run([make_waiter(1, rows=2), make_waiter(5, rows=1), make_waiter(7, rows=3)])
    assert [given["z"].tolist() for given in outputs_of(ran)] == [[1, 1], [5], [7, 7, 7]]


def test_a_lone_request_goes_through_without_a_copy() -> None:
    waiter = make_waiter(3)
    seen: list[Tensor] = []
    run([waiter], lambda batch: seen.append(batch.inputs["x"]) or both(batch))  # type: ignore[func-returns-value]
    assert seen[0] is waiter.inputs["x"]


def test_a_request_without_rows_gets_what_the_model_made_of_nothing() -> None:
    ran = run([make_waiter(rows=0)])
    assert outputs_of(ran)[0]["y"].shape == (0, 1)


def test_a_model_without_a_batch_axis_may_answer_any_shape() -> None:
    ran = run([make_waiter(2)], lambda batch: {"y": np.array(9), "z": np.zeros((5, 5))}, has_batch_axis=False)
    assert outputs_of(ran)[0]["y"] == 9


def test_the_engine_is_asked_only_for_outputs_somebody_wants() -> None:
    asked: list[tuple[str, ...]] = []

    def remember(batch: Batch) -> Answer:
        asked.append(batch.outputs)
        return both(batch)

    run([wanting("z")], remember)
    run([wanting("z"), wanting("y")], remember)
    run([wanting("z"), make_waiter(0)], remember)
    assert asked == [("z",), ("y", "z"), ("y", "z")]


def test_the_poisoned_member_of_a_batch_fails_alone_if_the_model_is_pure() -> None:
    def poisoned(batch: Batch) -> Answer:
        if (batch.inputs["x"] < 0).any():
            raise InvalidInput("a negative number")
        return both(batch)

    ran = run([make_waiter(1), make_waiter(-1), make_waiter(3)], poisoned)
    assert [type(error) for error in errors_of(ran)] == [type(None), InvalidInput, type(None)]
    assert ran.results[2][0]["z"].tolist() == [3]  # type: ignore[index]


def test_a_model_with_side_effects_is_not_run_again() -> None:
    runs: list[int] = []

    def fails(batch: Batch) -> Answer:
        runs.append(len(batch.members))
        raise EngineFailed("once")

    ran = run([make_waiter(), make_waiter()], fails, is_pure=False)
    assert runs == [2]
    assert [str(error) for error in errors_of(ran)] == ["once", "once"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda batch: {"y": batch.inputs["x"]}, "the model gave no output `z`; it gave: y"),
        (lambda batch: {}, "the model gave no output `y`; it gave: none"),
        (lambda batch: {**both(batch), "y": np.zeros((9, 1))}, r"output `y` has shape \[9, 1\], but 2 rows went in"),
        (lambda batch: {**both(batch), "y": np.float32(0)}, r"output `y` has shape \[\]"),
        (lambda batch: {**both(batch), "y": [0, 0]}, "the engine failed: AttributeError"),
        (lambda batch: None, "the engine failed: TypeError"),
        (lambda batch: [MemberAnswer(both(batch))], "the model gave 1 answers to 2 requests"),
        (lambda batch: [MemberAnswer(both(batch))] * 3, "the model gave 3 answers to 2 requests"),
        (lambda batch: [object(), object()], "the engine failed: AttributeError"),
    ],
)
def test_an_engine_that_lies_about_its_outputs_is_found_out(answer: Callable[[Batch], Any], told: str) -> None:
    ran = run([make_waiter(), make_waiter()], answer, is_pure=False)
    for error in errors_of(ran):
        assert isinstance(error, EngineFailed)
        with pytest.raises(EngineFailed, match=told):
            raise error


@pytest.mark.parametrize("rows", [1, 2])
def test_a_lone_request_s_rows_are_counted_too(rows: int) -> None:
    ran = run([make_waiter(rows=rows)], lambda batch: {"y": np.zeros((rows + 1, 1)), "z": np.zeros(rows)})
    assert isinstance(errors_of(ran)[0], EngineFailed)


def test_members_may_be_answered_one_by_one() -> None:
    def one_by_one(batch: Batch) -> Answer:
        return [
            MemberAnswer({"y": np.ones(1), "z": np.ones(1)}, {"mood": "good"}),
            InvalidInput("not this one"),
            MemberAnswer({"y": np.ones(1)}),
        ]

    ran = run([make_waiter(), make_waiter(), make_waiter()], one_by_one, is_pure=False)
    good, refused, partial = ran.results
    assert good[1] == {"mood": "good"}  # type: ignore[index]
    assert isinstance(refused, InvalidInput)
    assert isinstance(partial, EngineFailed), "it lacks an output that was asked for"


def test_a_member_is_only_held_to_the_outputs_it_asked_for() -> None:
    answers = [MemberAnswer({"y": np.ones(1)}), MemberAnswer({"z": np.ones(1)})]
    assert errors_of(run([wanting("y"), wanting("z")], lambda batch: answers, is_pure=False)) == [None, None]


@pytest.mark.parametrize("raised", [ValueError("no"), MemoryError(), SystemExit(3), KeyError("k"), RecursionError()])
def test_whatever_an_engine_raises_becomes_an_answer(raised: BaseException) -> None:
    def raises(batch: Batch) -> Answer:
        raise raised

    for error in errors_of(run([make_waiter(), make_waiter()], raises)):
        assert isinstance(error, EngineFailed)
        assert error.__cause__ is raised
        assert type(raised).__name__ in error.message


def test_an_error_that_has_a_status_keeps_it() -> None:
    error = InvalidInput("as it was")
    assert as_error(error) is error


def test_inputs_that_cannot_be_put_together_are_an_error_of_the_batch_not_of_the_members() -> None:
    odd = make_waiter(inputs={"x": np.zeros((1, 2), np.float32)})
    ran = run([make_waiter(1), odd])
    assert ran.results[0][0]["z"].tolist() == [1]  # type: ignore[index]


def test_bfloat16_and_text_ride_together_too() -> None:
    halves = [make_waiter(inputs={"x": np.full((1, 1), n, ml_dtypes.bfloat16)}) for n in (1, 2)]
    ran = run(halves, lambda batch: {"y": batch.inputs["x"]}, outputs=OUTPUTS[:1])
    assert [float(given["y"][0, 0]) for given in outputs_of(ran)] == [1, 2]


def test_time_is_told_apart_by_where_it_went() -> None:
    ticks = iter([0, 10, 110, 115])
    ran = run_batch(
        FakeExecutable(answer=both), OUTPUTS, [make_waiter()], 0, has_batch_axis=True, now_ns=ticks.__next__
    )
    assert (ran.started_ns, ran.input_ns, ran.compute_ns, ran.output_ns) == (0, 10, 100, 5)


def test_the_machine_s_clock_is_read_by_default() -> None:
    before = time.monotonic_ns()
    assert before <= run([make_waiter()]).started_ns <= time.monotonic_ns()


@pytest.mark.parametrize(
    ("rows", "part_rows", "runs"),
    [([1, 1, 1, 1], 2, [2, 2]), ([1, 1, 1], 2, [2, 1]), ([3, 1], 2, [3, 1]), ([1, 1], 2, [2]), ([2], 1, [2])],
)
def test_what_was_handed_over_together_may_be_computed_in_parts(
    rows: list[int], part_rows: int, runs: list[int]
) -> None:
    seen: list[int] = []

    def answer(batch: Batch) -> Answer:
        seen.append(len(batch.inputs["x"]))
        return both(batch)

    waiters = [make_waiter(number, rows=count) for number, count in enumerate(rows)]
    ran = run_in_parts(FakeExecutable(answer=answer), OUTPUTS, waiters, 0, has_batch_axis=True, part_rows=part_rows)
    assert seen == runs
    assert [out["z"].tolist() for out in outputs_of(ran)] == [[number] * count for number, count in enumerate(rows)]
    assert ran.compute_ns > 0


def test_a_part_that_fails_costs_the_others_nothing() -> None:
    def answer(batch: Batch) -> Answer:
        if 7 in batch.inputs["x"]:
            raise ValueError("seven")
        return both(batch)

    waiters = [make_waiter(value) for value in (1, 2, 7, 3)]
    executable = FakeExecutable(answer=answer, is_pure=False)
    ran = run_in_parts(executable, OUTPUTS, waiters, 0, has_batch_axis=True, part_rows=2)
    assert [error is None for error in errors_of(ran)] == [True, True, False, False]
