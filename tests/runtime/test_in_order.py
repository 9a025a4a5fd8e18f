"""`preserve_ordering`: answers come in the order of arrival, whatever overtakes whom behind the door."""

import asyncio
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.shop import Shop

from farthing.runtime.in_order import InOrder
from farthing.runtime.runtime import Runtime
from farthing.types.errors import Overloaded
from farthing.types.requests import InferRequest

NONE: Any = None


@given(st.data(), st.integers(1, 8))
def test_in_any_order_of_answers_and_departures_the_others_are_told_in_theirs(data: st.DataObject, count: int) -> None:
    behind: list[Callable[[Any], None]] = []
    withdrawn: list[int] = []

    def submit(request: Any, rows: int, signature: Any, arrival_ns: int, done: Any) -> Callable[[], None]:
        behind.append(done)
        return lambda: withdrawn.append(rows)

    order = InOrder(submit)
    told: list[int] = []
    leaves = [order(NONE, number, None, 0, told.append) for number in range(count)]  # type: ignore[arg-type]
    gone = set()
    for number in data.draw(st.permutations(range(count))):
        if data.draw(st.booleans()):
            gone.add(number)
            leaves[number]()
        else:
            behind[number](number)
        assert told == sorted(told)
    assert told == [number for number in range(count) if number not in gone]
    assert sorted(withdrawn) == sorted(gone)


def test_who_is_refused_holds_nobody_up() -> None:
    def refuse(*_: Any) -> Any:
        raise Overloaded("full")

    order = InOrder(refuse)
    with pytest.raises(Overloaded):
        order(NONE, 1, None, 0, NONE)
    assert not order._line


SLEEPS = """
    import time
    from farthing import Tensor

    class Sleeps:
        inputs = [Tensor("x", "FP32", [-1, 1])]
        outputs = [Tensor("y", "FP32", [-1, 1])]
        max_batch_size = 1

        def infer(self, inputs, requests):
            time.sleep(float(inputs["x"][0, 0]))
            return {"y": inputs["x"]}
"""


async def answered(runtime: Runtime, *values: float) -> list[float]:
    told: list[float] = []

    async def one(value: float) -> None:
        answer = await runtime.infer(InferRequest(model_name="net", inputs={"x": np.full((1, 1), value, np.float32)}))
        told.append(round(float(answer.outputs["y"][0, 0]), 3))

    await asyncio.gather(*(one(value) for value in values))
    return told


async def test_a_quick_run_waits_for_a_slow_one_that_came_before(shop: Shop) -> None:
    (shop.folder / "net" / "1").mkdir(parents=True)
    (shop.folder / "net" / "1" / "model.py").write_text(dedent(SLEEPS))
    shop.configure(
        "net",
        "dynamic_batching { preserve_ordering: true } max_batch_size: 1 "
        "instance_group { count: 2 kind: KIND_CPU } response_cache { enable: true }",
    )
    async with shop.open() as runtime:
        await answered(runtime, 0.001)  # now in the cache, which overtakes too
        assert await answered(runtime, 0.08, 0, 0.001) == [0.08, 0, 0.001]
