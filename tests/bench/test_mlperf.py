"""MLPerf's own LoadGen against servers whose delays are known, and a model in process. Each run is as short as it may be."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.bench.servers import ANSWER, answering
from tests.bench.test_drivers import message
from tests.models import save
from tests.runtime.shop import times

from farthing.bench.endpoint import Endpoint, open_target
from farthing.bench.figures import figures
from farthing.bench.in_process import InProcess
from farthing.bench.load import Work
from farthing.bench.measure import Measured
from farthing.bench.mlperf import Asked, Scenario, check_asked, constant_stream, read_summary, run_loadgen
from farthing.bench.sut import Notes
from farthing.bench.targets import parse_targets
from farthing.bench.workload import infer_work
from farthing.types.errors import InvalidSetting

ONE = Work(wire="http", chains=[[message(str(number))] for number in range(4)], order=range(4))
(IN_A_SECOND,) = parse_targets("p90<1s")


@pytest.fixture
def asked(tmp_path: Path) -> dict:
    return {
        "scenario": Scenario.SINGLE_STREAM, "is_accuracy": False, "duration_s": 0.5, "timeout_s": 10.0,
        "connections": 8, "rate": None, "targets": (), "config": None, "model": "m", "logs": tmp_path / "r.mlperf",
        "seed": 1,
    }  # fmt: skip


def run(endpoint, work, asked, expected=100.0, **changes):
    pytest.importorskip("mlperf_loadgen", reason="pip install farthing[mlperf]")
    wanted = Asked(**{**asked, **changes})
    return run_loadgen(endpoint, work, wanted, expected_rate=expected, on_progress=lambda _seconds, _progress: None)


def at(port: int) -> Endpoint:
    return Endpoint(kind="http", host="127.0.0.1", port=port)


def counted(answer):
    """The same answers, and how many were asked for."""
    numbers = []

    def counting(number):
        numbers.append(number)
        return answer(number)

    return counting, numbers


def test_single_stream_measures_a_known_delay_and_both_clocks_agree(asked):
    counting, numbers = counted(lambda _number: (0.005, ANSWER))
    with answering(counting) as port:
        measured, judged = run(at(port), ONE, asked)
    assert measured.figures.answered == len(numbers) >= 64
    median = judged.pairs["p50 latency"]
    assert median.loadgen >= median.farthing >= 0.005, "LoadGen's interval holds ours, and ours the server's"
    assert median.farthing == pytest.approx(median.loadgen, rel=0.1)
    assert judged.result in ("VALID", "INVALID")
    assert "QPS w/ loadgen overhead" in (asked["logs"] / "mlperf_log_summary.txt").read_text()
    assert "mlperf_log_detail.txt" in judged.files


def test_a_known_distribution_is_recovered_through_loadgen(asked):
    """Every fifth answer takes ten times as long: that is p90, and not p50."""
    with answering(lambda number: (0.02 if number % 5 == 0 else 0.002, ANSWER)) as port:
        _, judged = run(at(port), ONE, {**asked, "rate": 300.0}, scenario=Scenario.SERVER, targets=(IN_A_SECOND,))
    assert judged.pairs["p90 latency"].loadgen >= 0.02 > judged.pairs["p50 latency"].loadgen >= 0.002
    assert judged.pairs["samples/s"].farthing == pytest.approx(judged.pairs["samples/s"].loadgen, rel=0.1)
    assert judged.result == "VALID", "90 of 100 within a second"


def test_offline_asks_for_all_at_once_and_keeps_to_its_connections(asked):
    counting, numbers = counted(lambda _number: (0.002, ANSWER))
    with answering(counting) as port:
        measured, judged = run(at(port), ONE, asked, expected=600.0, scenario=Scenario.OFFLINE, connections=4)
    assert measured.figures.answered == len(numbers) >= 300
    assert judged.pairs.keys() == {"samples/s"}
    assert judged.pairs["samples/s"].farthing == pytest.approx(judged.pairs["samples/s"].loadgen, rel=0.1)
    assert judged.pairs["samples/s"].loadgen <= 4 / 0.002


def test_a_query_of_multi_stream_ends_with_its_last_sample(asked):
    with answering(lambda number: (0.03 if number % 8 == 7 else 0.0, ANSWER)) as port:
        measured, judged = run(at(port), ONE, asked, expected=300.0, scenario=Scenario.MULTI_STREAM)
    assert measured.figures.latency.least >= 0.03
    assert judged.pairs["p50 latency"].loadgen >= 0.03


def test_what_fails_is_answered_to_loadgen_and_not_believed(asked):
    refused = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"
    with answering(lambda number: (0.001, None if number % 7 == 0 else refused if number % 2 else ANSWER)) as port:
        measured, judged = run(at(port), ONE, asked, duration_s=0.2)
    assert measured.figures.errors["HTTP 503"] > 5
    assert measured.figures.samples["HTTP 503"] == "busy"
    assert any("closed" in kind or "reset" in kind for kind in measured.figures.errors)
    assert not judged.is_valid
    assert "LoadGen counts as answered" in judged.problems[0]


def test_accuracy_logs_each_input_once_with_the_models_outputs(asked, tmp_path):
    save(tmp_path / "triple", times(3))
    host = open_target(str(tmp_path), "http")
    assert isinstance(host, InProcess)
    inputs = [{"x": np.full((1, 1), value, np.float32)} for value in (1, 2, 5)]
    try:
        work = infer_work(host, {"triple": inputs}, {"triple": 1.0}, is_json=False)
        _, judged = run(host, work, asked, scenario=Scenario.OFFLINE, is_accuracy=True)
    finally:
        host.close()
    logged = json.loads((asked["logs"] / "mlperf_log_accuracy.json").read_text())
    found = {one["qsl_idx"]: np.frombuffer(bytes.fromhex(one["data"]), np.float32).tolist() for one in logged}
    assert found == {0: [3.0], 1: [6.0], 2: [15.0]}
    assert judged.result == ""
    assert judged.is_valid


@pytest.mark.parametrize("scenario", [Scenario.SINGLE_STREAM, Scenario.SERVER])
def test_a_model_in_process_is_asked_too(asked, tmp_path, scenario):
    save(tmp_path / "triple", times(3))
    host = open_target(str(tmp_path), "http")
    assert isinstance(host, InProcess)
    try:
        inputs = [{"x": np.ones((1, 1), np.float32)}]
        work = infer_work(host, {"triple": inputs}, {"triple": 1.0}, is_json=False)
        measured, judged = run(host, work, asked, 2000.0, scenario=scenario, rate=500.0, targets=(IN_A_SECOND,))
        answered = host._runtime.statistics("triple")[0].inference_count
    finally:
        host.close()
    assert measured.figures.answered == answered > 100
    assert judged.pairs["p50 latency"].loadgen >= judged.pairs["p50 latency"].farthing > 0


def test_a_users_conf_overrides_what_was_asked(asked, tmp_path):
    conf = tmp_path / "user.conf"
    conf.write_text("m.SingleStream.min_duration = 100\nm.SingleStream.max_query_count = 5\n")
    with answering(lambda _number: (0.0, ANSWER)) as port:
        measured, _ = run(at(port), ONE, asked, config=conf)
    assert measured.figures.answered == 5


def test_what_is_missing_is_said_before_anything_runs(asked):
    with pytest.raises(InvalidSetting, match="a rate and the latency"):
        check_asked(Asked(**{**asked, "scenario": Scenario.SERVER, "rate": 10.0}))
    with pytest.raises(InvalidSetting, match="no such file"):
        check_asked(Asked(**{**asked, "config": Path("/nowhere.conf")}))


def test_a_summary_is_read_by_its_names():
    text = (
        "Scenario : Server\n  Min duration satisfied : Yes\n99.00 percentile latency (ns)   : 2218969\n\nNo warnings\n"
    )
    assert read_summary(text) == {
        "Scenario": "Server", "Min duration satisfied": "Yes", "99.00 percentile latency (ns)": "2218969",
    }  # fmt: skip


@pytest.mark.parametrize(("late", "frames", "result"), [(0, 700, "VALID"), (0, 60, "UNSURE"), (80, 700, "INVALID")])
def test_a_constant_stream_is_judged_by_its_latest_frames(late, frames, result):
    notes = Notes()
    for number in range(frames):
        (sample,) = notes.samples([number], [0], 8)
        notes.end(sample, 200)
        sample.issued_ns = sample.sent_ns = number * 10_000_000
        sample.end_ns = sample.issued_ns + (50_000_000 if number < late else 5_000_000)
    records = notes.records(is_by_query=False, has_own_core=False)
    told = figures(records, duration_s=60, warm_up_s=0)
    (target,) = parse_targets("p99<33ms")
    measured = Measured(label="", load=100, figures=told, server=None, notes=(), is_interrupted=False)
    assert constant_stream(measured, target).result == result
