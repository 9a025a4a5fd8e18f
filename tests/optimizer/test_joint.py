"""Two real models on one machine: planned together, measured together, and their plans say so."""

import os
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from tests.models import save, small_convnet, tiny_mlp

from farthing.optimizer import Target, Wanted, optimize_jointly
from farthing.optimizer.machine import memory_available, memory_resident, this_machine
from farthing.optimizer.plan import read_plan, stale
from farthing.types.errors import InvalidInput

RANDOM = np.random.default_rng(0)


@pytest.fixture
def wanted(tmp_path: Path) -> list[Wanted]:
    mlp = {"x": RANDOM.uniform(-1, 1, (60, 32)).astype(np.float32)}
    pictures = {"image": RANDOM.uniform(-1, 1, (60, 3, 16, 16)).astype(np.float32)}
    return [
        Wanted(model=save(tmp_path / "mlp", tiny_mlp()).path, target=Target(), data=mlp),
        Wanted(model=save(tmp_path / "net", small_convnet()).path, target=Target(answer_ms_max=5000.0), data=pictures),
    ]


def test_plans_are_made_together_and_say_so(wanted: list[Wanted]) -> None:
    seen: list[str] = []
    plans = optimize_jointly(
        wanted, budget_s=8, price_usd_per_hour=0.5, on_event=lambda e: seen.append(e.doing or e.found)
    )
    assert [read_plan(one.model) for one in wanted] == plans
    for plan, other in zip(plans, ("../../net/1/model.onnx", "../../mlp/1/model.onnx"), strict=True):
        assert plan.together is not None
        assert [companion.place for companion in plan.together.others] == [other]
        assert plan.together.alone_rows_per_s > 0
        assert any(one.turns and not one.out for one in plan.together.tried)
        assert any("each as planned alone" in one.name for one in plan.together.tried)
    assert sum(plan.together.share for plan in plans) == pytest.approx(1)
    costs = [plan.usd_per_million() * plan.rows_per_s for plan in plans]
    assert sum(costs) * 3600 / 1e6 == pytest.approx(0.5)  # the parts add up to the machine
    assert any(said.startswith("timing together: ") for said in seen)
    assert "timing all as they came, together" in seen

    # Each holds beside the other; without it, or beside another one, it does not.
    mlp, net = (one.model for one in wanted)
    assert stale(plans[0], mlp, this_machine()) == ""
    net.write_bytes(net.read_bytes() + b"\x00")
    assert "shares the machine with ../../net/1/model.onnx, which has changed" in stale(plans[0], mlp, this_machine())
    net.unlink()
    assert "which is not there any more" in stale(plans[0], mlp, this_machine())


def test_memory_that_is_not_there_is_said_with_who_takes_it(wanted: list[Wanted]) -> None:
    with pytest.raises(InvalidInput, match=r"together they take \d+ MiB; available: 0 MiB \(mlp \d+ MiB, net"):
        optimize_jointly(wanted, budget_s=3, memory_bytes_max=-1, is_written=False)


def test_targets_that_company_breaks_are_said(wanted: list[Wanted]) -> None:
    hard = [replace(one, target=Target(answer_ms_max=limit)) for one, limit in zip(wanted, (1e-6, 1e3), strict=True)]
    with pytest.raises(InvalidInput, match="nothing answers within 1e-06 ms"):
        optimize_jointly(hard, budget_s=2, is_written=False)


def test_one_model_or_one_twice_is_not_several(wanted: list[Wanted]) -> None:
    with pytest.raises(InvalidInput, match="two models or more"):
        optimize_jointly(wanted[:1])
    with pytest.raises(InvalidInput, match="named twice"):
        optimize_jointly([wanted[0], wanted[0]])


def test_memory_is_read_where_linux_says_it() -> None:
    assert os.sysconf("SC_PAGE_SIZE") < memory_resident() < memory_available() + (64 << 30)
