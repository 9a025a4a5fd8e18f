"""Requests share a run along axes of the model's own, if they agree in all that has none."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from farthing.types.batch_axes import SHARED_BYTES_MAX, BatchAxes

AXES = BatchAxes(inputs={"sound": 0, "state": 1}, outputs={"y": 0, "next": 1})
ORDER = ("sound", "state", "rate")


def inputs(rows: int = 1, width: int = 4, rate: Any = 16, state_rows: int | None = None) -> dict[str, np.ndarray]:
    return {
        "sound": np.zeros((rows, width), np.float32),
        "state": np.zeros((2, rows if state_rows is None else state_rows, 3), np.float32),
        "rate": np.array(rate, np.int64),
    }


@given(st.integers(1, 9), st.integers(1, 5), st.integers(-3, 3))
def test_rows_are_counted_along_the_axes_and_told_apart_by_all_else(rows: int, width: int, rate: int) -> None:
    one = AXES.group(inputs(rows, width, rate), ORDER)
    assert one[0] == rows
    assert one[1] is not None
    assert AXES.group(dict(reversed(inputs(1, width, rate).items())), ORDER) == (1, one[1]), "in whatever order"
    assert AXES.group(inputs(rows, width + 1, rate), ORDER)[1] != one[1]
    assert AXES.group(inputs(rows, width, rate + 1), ORDER)[1] != one[1]


def test_what_cannot_be_put_beside_others_runs_alone() -> None:
    alone = (1, None)
    assert AXES.group(inputs(2, state_rows=3), ORDER) == alone, "the inputs do not agree how many rows there are"
    assert AXES.group(inputs(0), ORDER) == alone, "no rows"
    assert AXES.group({**inputs(), "rate": np.zeros(SHARED_BYTES_MAX, np.int64)}, ORDER) == alone, "too much to compare"
    assert AXES.group({**inputs(), "rate": np.array(b"16", object)}, ORDER) == alone, "text"
    assert AXES.group({"rate": np.array(16)}, ORDER) == alone, "nothing has rows"


def test_an_input_that_is_left_out_tells_requests_apart() -> None:
    without = {name: array for name, array in inputs().items() if name != "rate"}
    rows, signature = AXES.group(without, ORDER)
    assert rows == 1
    assert signature not in (None, AXES.group(inputs(), ORDER)[1])


def test_outputs_that_nobody_needs_have_no_axes() -> None:
    assert AXES.of(()) == AXES
    assert AXES.of(("next",)) == BatchAxes(inputs=AXES.inputs, outputs={"next": 1})
