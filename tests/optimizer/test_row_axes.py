"""Axes that count rows are found by trying, used by the plan, and obeyed when it is served."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from tests.models import recurrent
from tests.optimizer.test_plan import plan_for
from tests.runtime.shop import Shop

from farthing.optimizer import Target, optimize
from farthing.optimizer.plan import Plan, read_plan, write_plan
from farthing.types.batch_axes import BatchAxes
from farthing.types.requests import InferRequest, InferResponse

AXES = BatchAxes(inputs={"sound": 0, "state": 1}, outputs={"y": 0, "next": 1})


def samples(count: int = 60, *, has_one_gain: bool = True) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    gain = np.full(count, 0.5, np.float32) if has_one_gain else random.random(count, np.float32)
    return {
        "sound": random.standard_normal((count, 1, 4)).astype(np.float32),
        "state": random.standard_normal((count, 2, 1, 3)).astype(np.float32),
        "gain": gain,
    }


def plan_of(path: Path, data: dict[str, np.ndarray], **target: tuple[str, ...]) -> Plan:
    return optimize(path, Target(**target), data, budget_s=3)  # type: ignore[arg-type]


def put(folder: Path, *, mixes_rows: bool = False) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(recurrent(mixes_rows=mixes_rows))
    return path


def test_axes_are_found_and_timed_and_written_down(tmp_path: Path) -> None:
    path = put(tmp_path)
    plan = plan_of(path, samples())
    assert plan.axes == AXES
    assert "requests may share a run along axis 0 of `sound`, axis 1 of `state`" in plan.notes
    assert any(tried.name.endswith(" 4 rows") and tried.rows_per_s for tried in plan.tried)
    assert read_plan(path) == plan


def test_outputs_that_are_cut_have_no_axis(tmp_path: Path) -> None:
    plan = plan_of(put(tmp_path), samples(), outputs=("next",))
    assert plan.axes == AXES.of(("next",))


def test_rows_that_look_at_each_other_stay_alone(tmp_path: Path) -> None:
    plan = plan_of(put(tmp_path, mixes_rows=True), samples())
    assert plan.axes is None
    assert plan.rows == 1


def test_inputs_that_all_requests_share_must_be_the_same_in_all_data(tmp_path: Path) -> None:
    assert plan_of(put(tmp_path), samples(has_one_gain=False)).axes is None


async def answers(shop: Shop, requests: list[dict[str, np.ndarray]]) -> tuple[list[InferResponse], int, int]:
    """What each is told, all asked at once, how many inferences are counted, and how many runs that took."""
    async with shop.open() as runtime:
        asked = [runtime.infer(InferRequest(model_name="net", inputs=inputs)) for inputs in requests]
        found = await asyncio.gather(*asked)
        statistics = runtime.resolve("net").statistics
        return list(found), statistics.inference_count, statistics.execution_count


def expected(inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    weights = (np.random.default_rng(5).standard_normal((4, 3)) / 2).astype(np.float32)
    following = np.tanh(inputs["sound"] @ weights + inputs["state"]) * inputs["gain"]
    return -following[0], following


def request(random: np.random.Generator, rows: int, gain: float) -> dict[str, np.ndarray]:
    return {
        "sound": random.standard_normal((rows, 4)).astype(np.float32),
        "state": random.standard_normal((2, rows, 3)).astype(np.float32),
        "gain": np.array(gain, np.float32),
    }


def planned_shop(folder: Path, axes: BatchAxes = AXES, configuration: str = "") -> Shop:
    shop = Shop(folder / "models")
    (shop.folder / "net" / "1").mkdir(parents=True)
    path = put(shop.folder / "net" / "1")
    write_plan(path, replace(plan_for(path), rows=8, axes=axes), None)
    if configuration:
        shop.configure("net", configuration)
    return shop


def test_requests_share_runs_and_each_gets_its_own_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    requests = [request(random, int(random.integers(1, 4)), float(random.choice([0.5, 2.0]))) for _ in range(40)]
    found, inferences, runs = asyncio.run(answers(planned_shop(tmp_path), requests))
    for inputs, answer in zip(requests, found, strict=True):
        own, following = expected(inputs)
        np.testing.assert_allclose(answer.outputs["y"], own, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(answer.outputs["next"], following, rtol=1e-5, atol=1e-6)
    assert inferences == len(requests), "one a request, as for every model without a batch dimension"
    assert runs < len(requests) / 2


def test_a_request_that_fits_nobody_runs_alone_and_one_that_is_wrong_harms_nobody(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    requests = [request(random, 1, 0.5) for _ in range(6)]
    requests[2]["state"] = random.standard_normal((2, 1, 3)).astype(np.float32)
    requests[2]["sound"] = random.standard_normal((3, 4)).astype(np.float32)  # which ONNX spreads over the one state
    found, _, _ = asyncio.run(answers(planned_shop(tmp_path), requests))
    for inputs, answer in zip(requests, found, strict=True):
        np.testing.assert_allclose(answer.outputs["y"], expected(inputs)[0], rtol=1e-5, atol=1e-6)


def test_a_configuration_that_forbids_batches_is_obeyed(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    shop = planned_shop(tmp_path, configuration="max_batch_size: 0")
    requests = [request(random, 1, 0.5) for _ in range(12)]
    found, _, runs = asyncio.run(answers(shop, requests))
    assert (len(found), runs) == (12, 12)


@pytest.mark.parametrize(
    "axes",
    [
        BatchAxes(inputs={"sound": 2, "state": 1}, outputs=AXES.outputs),
        BatchAxes(inputs={"sounds": 0}, outputs=AXES.outputs),
        BatchAxes(inputs=AXES.inputs, outputs={"y": 0}),
        BatchAxes(inputs={}, outputs=AXES.outputs),
    ],
)
def test_axes_that_the_model_has_not_are_refused(tmp_path: Path, axes: BatchAxes) -> None:
    async def why() -> str:
        async with planned_shop(tmp_path, axes).open() as runtime:
            return next(line.reason for line in runtime.index())

    assert "an axis it has not, or none" in asyncio.run(why())
