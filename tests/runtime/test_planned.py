"""A plan beside a model is carried out where it holds, and stands back where it does not."""

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from tests.optimizer.test_plan import plan_for
from tests.runtime.shop import Shop, ask, times

from farthing.config.server import ModelControl
from farthing.optimizer.plan import Companion, Plan, Together, digest, folder_of, write_plan

pytest.importorskip("openvino", reason="the plan here asks for a second engine")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "models")


def planned(shop: Shop, **more: object) -> Path:
    path = shop.put("double", 2)
    write_plan(path, replace(plan_for(path), **{"engine": "openvino", "instances": 2, "rows": 4, **more}), None)
    return path


def served(shop: Shop) -> tuple[float, str, int]:
    """What twice 21 is, and by which engine and how many instances."""

    async def look() -> tuple[float, str, int]:
        async with shop.open() as runtime:
            config = runtime.resolve("double", "").config
            return await ask(runtime, "double", value=21), config.backend, config.instance_group[0].count

    return asyncio.run(look())


def test_a_plan_that_holds_is_carried_out(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    planned(shop)
    with caplog.at_level(logging.INFO):
        assert served(shop) == (42, "openvino", 2)
    assert "runs as planned: openvino f32, 2 x 1 threads, 3.0 times cheaper" in caplog.text


def test_a_plan_may_bring_its_own_file(shop: Shop, tmp_path: Path) -> None:
    path = shop.put("double", 2)
    other = tmp_path / "better.onnx"
    other.write_bytes(times(3))  # so that it can be told apart; a search would never have let it pass
    write_plan(path, replace(plan_for(path), artefact="model.onnx"), other)
    assert served(shop)[0] == 63


def test_what_is_configured_stands_before_a_plan(shop: Shop) -> None:
    planned(shop)
    shop.configure("double", "instance_group [ { count: 1 } ]")
    assert served(shop) == (42, "onnxruntime", 1)


def test_a_stale_plan_is_said_to_be_and_not_used(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    path = planned(shop)
    path.write_bytes(times(2) + b"")
    path.write_bytes(times(4))
    assert served(shop) == (84, "onnxruntime", 1)
    assert "is stale: the model has changed since" in caplog.text


@pytest.mark.parametrize("text", ["", "format = 1", "\x00"])
def test_a_plan_that_cannot_be_read_costs_nothing_but_a_warning(
    shop: Shop, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    path = planned(shop)
    (folder_of(path) / "plan.toml").write_text(text)
    assert served(shop)[1] == "onnxruntime"
    assert "is no plan" in caplog.text


def test_a_plan_is_no_model_of_a_repository(shop: Shop) -> None:
    path = planned(shop)
    alone = shop.folder / "triple.onnx"
    alone.write_bytes(times(3))
    write_plan(alone, plan_for(alone), None)

    async def names() -> list[str]:
        async with shop.open() as runtime:
            return [status.name for status in runtime.index()]

    assert asyncio.run(names()) == ["double"]
    assert isinstance(plan_for(path), Plan)
    assert np.isfinite(plan_for(path).times_cheaper)


async def test_a_plan_is_looked_at_again_when_instances_change_live(shop: Shop) -> None:
    planned(shop)
    async with shop.open(ModelControl.EXPLICIT, load_models=("*",)) as runtime:
        for group, told in (("", ("openvino", 2)), ("instance_group [ { count: 3 } ]", ("onnxruntime", 3))) * 2:
            shop.configure("double", group)
            await runtime.load("double")
            config = runtime.resolve("double").config
            assert (config.backend, config.instance_group[0].count) == told
            assert await ask(runtime, "double", value=21) == 42
        shop.configure("double", "instance_group [ { count: 4 } ]")
        before = runtime.resolve("double")
        await runtime.load("double")
        assert runtime.resolve("double") is before, "without a plan before and after, instances come and go"


def test_a_plan_for_company_is_carried_out_beside_it_alone(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    other = shop.put("triple", 3)
    companion = Companion(place="../../triple/1/model.onnx", bytes=other.stat().st_size, sha256=digest(other))
    path = planned(shop, together=Together(others=(companion,), alone_rows_per_s=900, share=0.5, memory_bytes=1 << 20))
    assert (path.parent / companion.place).resolve() == other.resolve()
    with caplog.at_level(logging.INFO):
        assert served(shop) == (42, "openvino", 2)
    assert "model `double` is planned to share this machine with ../../triple/1/model.onnx" in caplog.text
    other.write_bytes(times(5))
    assert served(shop) == (42, "onnxruntime", 1)
    assert "it shares the machine with ../../triple/1/model.onnx, which has changed since" in caplog.text
    assert f"`farthing optimize {path} --remeasure` mends that" in caplog.text
