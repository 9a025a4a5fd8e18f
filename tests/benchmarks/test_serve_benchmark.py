"""The benchmark's own sums: what it sends, what it accepts as an answer, what it counts and what it calls met."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.bench.servers import ANSWER, answering

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a file of benchmarks/ as the scripts there see each other, and forgets it afterwards."""
    names = {file.stem for file in BENCHMARKS.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def cell(load: Load, **changes: Any) -> Any:
    figures: dict[str, Any] = {
        "server": "farthing",
        "model": "mlp",
        "wire": "json",
        "connections": 64,
        "round": 1,
        "rate": 30_000.0,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "cpu_us": 29.0,
        "memory_mb": 50.0,
        "start_s": 0.3,
        "errors": 0,
        "generator_share": 0.4,
        "strangers_cores": 0.0,
        "calibration_ms": 1.5,
    }
    return load("report").Cell(**(figures | changes))


def model(load: Load) -> Any:
    row, answer = {"x": np.array([[0.1, 0.25]], np.float32)}, {"y": np.array([[1.5, -2.0]], np.float32)}
    return load("models").Model(name="m", file=Path("m.onnx"), row=row, answer=answer, tolerance=1e-5)


def test_a_json_request_carries_the_row_in_the_fewest_digits(load: Load) -> None:
    request = load("wire").encode(model(load), "json")
    assert json.loads(request.body) == {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 0.25]}]
    }


def test_a_binary_request_is_a_head_and_the_rows_bytes(load: Load) -> None:
    request = load("wire").encode(model(load), "binary")
    head = int(request.headers["Inference-Header-Content-Length"])
    assert json.loads(request.body[:head])["inputs"][0]["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(request.body[head:], "<f4").tolist() == pytest.approx([0.1, 0.25])


@pytest.mark.parametrize("data", [[1.5, -2.0], [[1.5, -2.0]]])
def test_a_right_json_answer_is_right(load: Load, data: list[Any]) -> None:
    document = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": data}]}
    assert model(load).is_right(load("wire").decode({}, json.dumps(document).encode()))


def test_a_right_binary_answer_is_right_and_another_is_not(load: Load) -> None:
    output = {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    head = json.dumps({"outputs": [output]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    for numbers, is_right in (([1.5, -2.0], True), ([1.5, -2.1], False)):
        body = head + np.array(numbers, "<f4").tobytes()
        assert model(load).is_right(load("wire").decode(headers, body)) is is_right


@pytest.mark.parametrize("output", [{"name": "z", "shape": [1, 2]}, {"name": "y", "shape": [2, 1]}])
def test_another_name_or_shape_is_wrong(load: Load, output: dict[str, Any]) -> None:
    document = {"outputs": [output | {"datatype": "FP32", "data": [1.5, -2.0]}]}
    assert not model(load).is_right(load("wire").decode({}, json.dumps(document).encode()))


def test_a_tree_of_processes_is_counted_whole(load: Load) -> None:
    machine = load("machine")
    work = "import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    # A child that works and ends, then a grandchild that stays.
    script = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]);"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE);"
        "print(child.pid, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        assert {parent.pid, grandchild} <= machine.tree(parent.pid)
        assert os.getpid() not in machine.tree(parent.pid)
        assert machine.cpu_s(parent.pid) >= 0.19
        assert 1 < machine.pss_mb(parent.pid) < 500
        parent.communicate("\n", timeout=10)


def test_busy_time_grows_with_work(load: Load) -> None:
    machine = load("machine")
    before, end = machine.busy_s(), time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert machine.busy_s() - before >= 0.15


def test_the_table_shows_median_and_range_and_marks_what_cannot_be_trusted(load: Load) -> None:
    report = load("report")
    cells = [
        cell(load, round=1, rate=1_000.0),
        cell(load, round=2, rate=3_000.0),
        cell(load, round=3, rate=2_000.0, strangers_cores=0.4, errors=2),
    ]
    run = report.Run(
        machine=load("machine").describe(),
        peers={"farthing": {"about": "this", "version": "1"}},
        settings={"rounds": 3, "seconds": 5, "onnxruntime": "1", "is_quick": False},
        engine={},
        cells=cells,
        failures=[],
    )
    assert "| ~2,000 (1,000-3,000) **2 errors**, 1.00 (1.00-1.00) / 2.00 (2.00-2.00) |" in report.markdown(run)


def test_a_run_reads_back_as_it_was_written(load: Load, tmp_path: Path) -> None:
    from dataclasses import asdict

    report = load("report")
    engine = {"minilm": [{8: {"rows_per_s": 100.0, "cpu_us_per_row": 10.0}}]}
    heavy = cell(load, model="minilm", connections=16, rate=50.0, engine_rate=100.0, served_engine_rate=80.0)
    run = report.Run(
        machine=load("machine").describe(),
        peers={"farthing": {"about": "this", "version": "1"}},
        settings={"rounds": 1, "seconds": 5, "onnxruntime": "1", "is_quick": True},
        engine=engine,
        cells=[heavy],
        failures=[],
    )
    file = tmp_path / "run.json"
    file.write_text(json.dumps(asdict(run)))
    assert report.read(file) == run
    assert "| 50.0% (62.5%) |" in report.markdown(report.read(file))
    assert report.summary(run).endswith("| 50.0 |")


def test_targets_are_judged_by_the_same_runs_peers(load: Load) -> None:
    lines = list(
        load("targets").lines(
            [
                cell(load),
                cell(load, server="mlserver", rate=4_000.0, p99_ms=9.0),
                cell(load, server="litserve", rate=1_400.0, p99_ms=1.9),
                cell(load, model="effnet", wire="binary", connections=16, rate=90.0, engine_rate=100.0),
            ]
        )
    )
    assert lines == [
        "- met: mlp:json, c=64: 29.0 CPU-us, target 30",
        "- **missed**: mlp:json, c=64: 7.5 times mlserver's rate, target 8",
        "- met: mlp:json, c=64: p99 2.00 ms, mlserver 9.00 ms, target no worse",
        "- met: mlp:json, c=64: 21.4 times litserve's rate, target 20",
        "- **missed**: mlp:json, c=64: p99 2.00 ms, litserve 1.90 ms, target no worse",
        "- **missed**: effnet:binary, c=16: 90.0% of the engine, target 95%",
        "- met: 0 errors in all of Farthing's runs, target 0",
    ]


def test_the_grpc_request_is_the_message_it_should_be(load: Load) -> None:
    from farthing.protocols.kserve_grpc import message_class

    models = load("models")
    row = np.arange(32, dtype=np.float32).reshape(1, 32)
    model = models.Model(name="mlp", file=Path("mlp.onnx"), row={"x": row}, answer={}, tolerance=0)
    sent = load("grpc_rate").request(model)
    message = message_class("ModelInferRequest").FromString(sent[5:])
    assert int.from_bytes(sent[1:5], "big") == len(sent) - 5
    assert (message.model_name, list(message.inputs[0].shape), message.inputs[0].datatype) == ("mlp", [1, 32], "FP32")
    assert message.raw_input_contents[0] == row.tobytes()


def test_a_table_replaces_what_stood_between_its_marks(load: Load, tmp_path: Path) -> None:
    readme, page = load("readme"), tmp_path / "README.md"
    page.write_text("# A\n<!-- bench-serve -->\nold\n<!-- end of bench-serve -->\nB\n")
    readme.put("bench-serve", "| new \\1 |\n", page)
    assert page.read_text() == "# A\n<!-- bench-serve -->\n| new \\1 |\n<!-- end of bench-serve -->\nB\n"
    with pytest.raises(readme.NoMarks, match="0 pairs"):
        readme.put("bench-llm", "x", page)


def test_the_readme_has_the_marks_that_are_written_between(load: Load) -> None:
    text = load("readme").README.read_text(encoding="utf-8")
    for name in ("bench-serve", "bench-llm"):
        assert text.count(f"<!-- {name} -->\n") == text.count(f"<!-- end of {name} -->\n") == 1


def test_the_readmes_table_says_when_where_and_of_which_code(load: Load) -> None:
    report = load("report")
    cells = [
        cell(load),
        cell(load, wire="binary", cpu_us=26.0, p99_ms=None),
        cell(load, server="rayserve", rate=120.0, errors=2, strangers_cores=0.2),
    ]
    run = report.Run(
        machine={
            "date": "2026-11-30T01:02:03Z",
            "cpu": "EPYC",
            "cores": 2,
            "commit": "abc",
            "uncommitted_changes": False,
        },
        peers={"farthing": {"version": "1"}, "rayserve": {"version": "2"}},
        settings={"rounds": 3, "seconds": 5, "is_quick": False},
        engine={},
        cells=cells,
        failures=["round 1, mlp: gone"],
    )
    told = report.for_readme(run, "f.json")
    assert told.startswith("2026-11-30, EPYC, 2 cores, commit abc: 3 interleaved rounds of 5 s")
    assert "| **farthing 1** | 29.0 / 26.0 | 30,000 / 30,000 | 2.00 | 50.0 | 0.30 | - | - |" in told
    assert told.endswith("Other programs disturbed rayserve. There were errors: rayserve. Failed: round 1, mlp: gone.")


def test_the_load_is_the_benchs_own_loop_and_counts_what_was_answered(load: Load) -> None:
    pytest.importorskip("farthing._bench", reason="the native loop was not built")
    module, core = load("load"), min(os.sched_getaffinity(0))
    asked = load("wire").Request(path="/x", body=b"{}")
    numbers: list[int] = []

    def answer(number: int) -> tuple[float, bytes]:
        numbers.append(number)
        return 0.0, ANSWER

    with answering(answer) as port:
        seen = module.run(port, asked, connections=2, seconds=0.2, core=core)
    assert seen.requests == len(numbers) > 20
    assert seen.errors == 0
    with answering(lambda _number: (0.0, None)) as port, pytest.raises(module.LoadFailed, match="nothing was answered"):
        module.run(port, asked, connections=1, seconds=0.1, core=core)
