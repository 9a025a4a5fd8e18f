"""Triton's own load tool runs against Farthing unchanged, and finds the server-side figures it asks for.

The tool is fetched by `benchmarks/perf_analyzer.py`; where that cannot be, these tests say so and are skipped.
"""

import importlib.util
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.models import running_sum, save
from tests.serving import serve_process

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
REQUESTS = 100
"""In each of three windows, at the least."""
WINDOWS = (
    *("--measurement-mode", "count_windows", "--measurement-request-count", str(REQUESTS)),
    *("--stability-percentage", "999"),
)
"""Not `--request-count`: at the end of such a run the tool's threads can miss each other, and it then sleeps for ever
with every request answered (2.60.0, one run in some hundred on a busy machine)."""
START_MAX_S = 30
SERVER_COLUMNS = ("Server Queue", "Server Compute Input", "Server Compute Infer", "Server Compute Output")
STREAMS = 8
SUMS = """
max_batch_size: 8
sequence_batching {
  oldest { max_candidate_sequences: 16 }
  control_input [ { name: "start" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
                  { name: "id" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 } ] } ]
  state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ 1 ] } ]
}
"""

Analyze = Callable[..., tuple[int, list[dict[str, str]], str]]


def _module(name: str) -> Any:
    """A file of benchmarks/, which is no package, under a name that collides with nothing."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def analyze() -> Analyze:
    tool = _module("perf_analyzer")
    try:
        tool.command()
    except tool.NotObtainable as reason:
        pytest.skip(f"perf_analyzer cannot be had here: {reason}")
    run: Analyze = tool.perf_analyzer
    return run


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A live server with the 32-64-8 perceptron: where its HTTP and its gRPC are."""
    folder = tmp_path_factory.mktemp("served")
    model, ready = folder / "mlp.onnx", folder / "ready.json"
    _module("models").build_mlp(model)
    command = [sys.executable, "-c", "from farthing.cli.main import main; main()", "serve", str(model)]
    server = subprocess.Popen(
        [*command, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--ready-file", str(ready)],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_MAX_S
        while not ready.exists():
            assert server.poll() is None, f"the server ended with {server.returncode}"
            assert time.monotonic() < deadline, f"the server was not ready within {START_MAX_S} s"
            time.sleep(0.02)
        yield json.loads(ready.read_text())
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def address(addresses: dict[str, str]) -> str:
    """Where its HTTP is."""
    return addresses["http"]


def counts(address: str, model: str = "mlp") -> dict[str, int]:
    """Requests that succeeded and failed so far, as the server's own statistics say."""
    with urllib.request.urlopen(f"http://{address}/v2/models/{model}/stats", timeout=10) as answer:
        stats = json.load(answer)["model_stats"][0]["inference_stats"]
    return {outcome: stats[outcome]["count"] for outcome in ("success", "fail")}


@pytest.mark.parametrize("wire", ["binary", "json", "grpc"])
def test_it_measures_a_model_with_the_servers_side_filled_in(
    analyze: Analyze, addresses: dict[str, str], wire: str
) -> None:
    address = addresses["http"]
    before = counts(address)
    target = ("-u", address, "--input-tensor-format", wire, "--output-tensor-format", wire)
    if wire == "grpc":
        target = ("-u", addresses["grpc"], "-i", "grpc")
    status, rows, output = analyze(["-m", "mlp", *target, "-b", "1", "--concurrency-range", "4", *WINDOWS])
    assert status == 0, output
    assert "error" not in output.lower(), output
    (row,) = rows
    assert row["Concurrency"] == "4"
    assert float(row["Inferences/Second"]) > 0
    assert all(row[column].isdigit() for column in SERVER_COLUMNS), row
    # Each is whole microseconds, so a part may round to nothing; running the model cannot, nor exceed the whole.
    assert 0 < int(row["Server Compute Infer"]) <= int(row["p99 latency"]), row
    assert sum(int(row[column]) for column in SERVER_COLUMNS) <= 1e6, row
    after = counts(address)
    assert after["success"] - before["success"] >= REQUESTS
    assert after["fail"] == before["fail"]


def test_it_streams_over_grpc(analyze: Analyze, addresses: dict[str, str]) -> None:
    target = ("-u", addresses["grpc"], "-i", "grpc", "--streaming")
    status, rows, output = analyze(["-m", "mlp", *target, "--concurrency-range", "4", *WINDOWS])
    assert status == 0, output
    assert "error" not in output.lower(), output
    (row,) = rows
    assert float(row["Inferences/Second"]) > 0


def test_it_sends_batches_and_finds_the_models_limits(analyze: Analyze, address: str) -> None:
    status, rows, output = analyze(["-m", "mlp", "-u", address, "-b", "8", "--concurrency-range", "2", *WINDOWS])
    assert status == 0, output
    assert float(rows[0]["Inferences/Second"]) > 0


def test_it_says_what_is_wrong_when_the_model_is_not_there(analyze: Analyze, address: str) -> None:
    status, rows, output = analyze(["-m", "nobody", "-u", address])
    assert status != 0
    assert "nobody" in output
    assert rows == []


def test_it_streams_sequences_each_from_its_start_to_its_end(analyze: Analyze, tmp_path: Path) -> None:
    models = tmp_path / "models"
    save(models / "sum", running_sum())
    (models / "sum" / "config.pbtxt").write_text(SUMS)
    with serve_process(tmp_path, models):
        address = json.loads((tmp_path / "ready.json").read_text())["http"]
        streams = ("--concurrency-range", str(STREAMS), "--sequence-length", "10", "--sequence-id-range", "7:1000")
        status, rows, output = analyze(["-m", "sum", "-u", address, *streams, *WINDOWS])
        assert status == 0, output
        assert float(rows[0]["Inferences/Second"]) > 0
        done = counts(address, "sum")
        assert done["success"] >= REQUESTS
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            failures = re.findall(r'nv_inference_request_failure{.*reason="(.*)"} ([1-9].*)', answer.read().decode())
        # A request that failed while it measured would have ended the tool with an error (99). When its time is up it
        # ends each stream from another connection without waiting for the request under way, and then leaves: that
        # request may be cut off (CANCELED), or be passed by its sequence's end, and then it continues none (INVALID).
        assert {reason for reason, _ in failures} <= {"CANCELED", "INVALID"}, failures
        assert sum(float(count) for _, count in failures) <= 2 * STREAMS, failures
