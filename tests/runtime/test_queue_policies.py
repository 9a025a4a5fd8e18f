"""Priority levels and queue policies, row by row as Triton's clients observe them, with a real model held up."""

import asyncio
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from tests.runtime.shop import Shop

from farthing.engines.contract import Batch
from farthing.engines.onnxruntime import OnnxExecutable
from farthing.types.errors import DeadlineExceeded, Overloaded
from farthing.types.requests import InferRequest

LONG_US = 20_000_000
SHORT_US = 10_000
"""Passes while the model is held up (`HELD_S`)."""
HELD_S = 0.04


class Ask(NamedTuple):
    """A request, and what becomes of it."""

    told: str = "ok"
    priority: int = 0
    timeout_us: int = 0


LEVELS = "priority_levels: 3 default_priority_level: 2 "


def policy(**fields: Any) -> str:
    return "default_queue_policy { " + " ".join(f"{name}: {value}" for name, value in fields.items()) + " }"


def level_policy(level: int, **fields: Any) -> str:
    text = " ".join(f"{name}: {value}" for name, value in fields.items())
    return f"priority_queue_policy {{ key: {level} value {{ {text} }} }} "


ROWS: dict[str, tuple[str, list[Ask], list[int]]] = {
    "priority 1 is the most urgent": (LEVELS, [Ask(priority=3), Ask(priority=2), Ask(priority=1)], [2, 1, 0]),
    "0 and beyond the last level are the default level": (
        LEVELS,
        [Ask(priority=3), Ask(priority=0), Ask(priority=9), Ask(priority=2)],
        [1, 2, 3, 0],
    ),
    "each level has a size of its own": (
        LEVELS + level_policy(1, max_queue_size=1) + level_policy(3, max_queue_size=2),
        [Ask(priority=1), Ask("full", 1), Ask(priority=3), Ask(priority=3), Ask("full", 3), Ask(), Ask(), Ask()],
        [0, 5, 6, 7, 2, 3],
    ),
    "a level without a policy has the default one": (
        LEVELS + level_policy(1, max_queue_size=3) + policy(max_queue_size=1),
        [Ask(priority=1), Ask(priority=1), Ask(priority=2), Ask("full", 2), Ask(priority=3), Ask("full", 3)],
        [0, 1, 2, 4],
    ),
    "REJECT answers the late ones": (policy(default_timeout_microseconds=SHORT_US), [Ask("late"), Ask("late")], []),
    "each level has a timeout of its own": (
        LEVELS + level_policy(3, default_timeout_microseconds=SHORT_US),
        [Ask("late", 3), Ask(priority=2), Ask("late", 3), Ask(priority=1)],
        [3, 1],
    ),
    "DELAY serves the late ones after the punctual ones of their level": (
        policy(timeout_action="DELAY", default_timeout_microseconds=LONG_US, allow_timeout_override="true"),
        [Ask(timeout_us=SHORT_US), Ask(), Ask(timeout_us=SHORT_US), Ask()],
        [1, 3, 0, 2],
    ),
    "and before the levels below": (
        LEVELS + level_policy(2, timeout_action="DELAY", default_timeout_microseconds=SHORT_US),
        [Ask(priority=3), Ask(priority=2), Ask(priority=1)],
        [2, 1, 0],
    ),
    "late ones that are DELAYed still fill their level": (
        policy(timeout_action="DELAY", default_timeout_microseconds=SHORT_US, max_queue_size=2),
        [Ask(), Ask(), Ask("full")],
        [0, 1],
    ),
    "without allow_timeout_override a request's timeout has no force": (
        policy(default_timeout_microseconds=LONG_US),
        [Ask(timeout_us=SHORT_US)],
        [0],
    ),
    "with it the shorter one counts": (
        policy(default_timeout_microseconds=LONG_US, allow_timeout_override="true"),
        [Ask("late", timeout_us=SHORT_US), Ask(timeout_us=LONG_US)],
        [1],
    ),
    "a request cannot make it longer": (
        policy(default_timeout_microseconds=SHORT_US, allow_timeout_override="true"),
        [Ask("late", timeout_us=LONG_US)],
        [],
    ),
    "a default timeout of 0 is none, not one of nothing (unlike Triton)": (
        policy(allow_timeout_override="true"),
        [Ask("late", timeout_us=SHORT_US), Ask()],
        [1],
    ),
    "without any policy a request may say its own (unlike Triton)": (
        "",
        [Ask("late", timeout_us=SHORT_US), Ask()],
        [1],
    ),
}


@pytest.mark.usefixtures("threads_only")
@pytest.mark.parametrize("row", ROWS)
async def test_queue_policies(shop: Shop, row: str) -> None:
    block, asks, expected = ROWS[row]
    shop.put("net", 1)
    shop.configure("net", f"max_batch_size: 1 dynamic_batching {{ {block} }}")
    async with shop.open() as runtime:

        def request(value: float, **more: Any) -> InferRequest:
            return InferRequest(model_name="net", inputs={"x": np.full((1, 1), value, np.float32)}, **more)

        order: list[int] = []
        held, free = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        run = OnnxExecutable.execute

        def execute(self: OnnxExecutable, batch: Batch, instance: int) -> Any:
            value = int(batch.inputs["x"][0, 0])
            if value == -1:
                loop.call_soon_threadsafe(held.set)
                asyncio.run_coroutine_threadsafe(free.wait(), loop).result(20)
            else:
                order.append(value)
            return run(self, batch, instance)

        async def outcome(number: int, ask: Ask) -> str:
            try:
                await runtime.infer(request(number, priority=ask.priority, timeout_us=ask.timeout_us))
            except DeadlineExceeded:
                return "late"
            except Overloaded:
                return "full"
            return "ok"

        with mock.patch.object(OnnxExecutable, "execute", execute):
            # Its own timeout passes while it runs, which interrupts nothing.
            blocker = asyncio.create_task(runtime.infer(request(-1, priority=1, timeout_us=SHORT_US)))
            await held.wait()
            outcomes = [asyncio.create_task(outcome(number, ask)) for number, ask in enumerate(asks)]
            await asyncio.sleep(HELD_S)
            free.set()
            await blocker
            assert await asyncio.gather(*outcomes) == [ask.told for ask in asks]
        assert order == expected
