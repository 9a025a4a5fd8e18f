"""The optimizer's benchmark's own sums: operations of a row, and what rounds of two servers say together."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.models import save, tiny_mlp

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a file of benchmarks/optimize as the scripts there see each other, and forgets it afterwards."""
    folders = (BENCHMARKS, BENCHMARKS / "optimize")
    names = {file.stem for folder in folders for file in folder.glob("*.py")} | {"peers", "peers.contract"}
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    for folder in folders:
        monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def test_operations_of_a_row_are_counted_by_the_shapes_it_has(load: Load, tmp_path: Path) -> None:
    count = load("operations").operations
    file = save(tmp_path / "mlp", tiny_mlp()).path
    assert count(file, {"x": np.zeros((1, 32), np.float32)}) == 2 * (32 * 64 + 64 * 8)
    assert count(file, {"x": np.zeros((3, 32), np.float32)}) == 3 * 2 * (32 * 64 + 64 * 8)


def test_what_is_no_network_has_no_operations_to_count(load: Load, tmp_path: Path) -> None:
    assert load("operations").operations(tmp_path / "model.txt", {}) == 0


def test_turns_of_two_servers_are_compared_with_their_neighbours(load: Load) -> None:
    served, seen = load("served"), load("load")

    def turn(rate: float) -> tuple[object, float]:
        cell = seen.Load(
            requests=int(rate * 3), seconds=3, p50_ms=1, p99_ms=2, errors=0, generator_share=0.1, generator_cpu_s=0.3
        )
        return cell, 1.5

    slow = [turn(rate) for rate in (100, 50, 100, 80)]
    fast = [turn(rate) for rate in (500, 260, 490, 400)]
    both = served.compared(slow, fast)
    assert both.times == pytest.approx(5.0, rel=0.02)
    assert both.low < both.times < both.high
    assert both.high / both.low < 1.2  # the bad second minute met both
    assert both.at_a_time.cpu_us == pytest.approx(4 * 1.5 / (330 * 3) * 1e6)
