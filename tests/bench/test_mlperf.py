"""MLPerf's own LoadGen against servers whose delays are known, and a model in process. Each run is as short as it may be."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.bench.servers import ANSWER, answering
from tests.bench.test_drivers import message
from tests.language import talking, write_tiny_model
from tests.models import identity, save
from tests.runtime.shop import times
from tests.serving import serving, small_repository

from farthing.bench.endpoint import Endpoint, model_inputs, open_target, parse_endpoint
from farthing.bench.in_process import InProcess
from farthing.bench.inputs import inputs_from_file
from farthing.bench.load import Work
from farthing.bench.mlperf import Asked, Scenario, check_asked, read_summary, run_loadgen
from farthing.bench.prompts import conversations, parse_lengths
from farthing.bench.targets import parse_targets
from farthing.bench.workload import chat_work, infer_work
from farthing.config.server import Address
from farthing.types.errors import InvalidSetting

ONE = Work(wire="http", chains=[[message(str(number))] for number in range(4)], order=range(4))
(SOON,) = parse_targets("p90<20s")


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
    assert judged.result in ("VALID", "INVALID")
    assert "QPS w/ loadgen overhead" in (asked["logs"] / "mlperf_log_summary.txt").read_text()
    assert "mlperf_log_detail.txt" in judged.files


def test_a_known_distribution_is_recovered_through_loadgen(asked):
    """Every fifth answer takes ten times as long: that is p90, and not p50."""
    with answering(lambda number: (0.02 if number % 5 == 0 else 0.002, ANSWER)) as port:
        _, judged = run(at(port), ONE, {**asked, "rate": 300.0}, scenario=Scenario.SERVER, targets=(SOON,))
    assert judged.pairs["p90 latency"].loadgen >= judged.pairs["p90 latency"].farthing >= 0.02
    assert judged.pairs["p50 latency"].loadgen >= judged.pairs["p50 latency"].farthing >= 0.002
    assert judged.result == "VALID", "90 of 100 in good time"


def test_offline_asks_for_all_at_once_and_keeps_to_its_connections(asked):
    counting, numbers = counted(lambda _number: (0.002, ANSWER))
    with answering(counting) as port:
        measured, judged = run(at(port), ONE, asked, expected=600.0, scenario=Scenario.OFFLINE, connections=4)
    assert measured.figures.answered == len(numbers) >= 300
    assert judged.pairs.keys() == {"samples/s"}
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
    assert accuracy_log(asked) == {0: [3.0], 1: [6.0], 2: [15.0]}
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
        measured, judged = run(host, work, asked, 2000.0, scenario=scenario, rate=500.0, targets=(SOON,))
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


def test_over_grpc_loadgen_asks_our_server_and_logs_what_it_answers(asked, tmp_path):
    with serving(small_repository(tmp_path / "r"), grpc=Address("127.0.0.1", 0)) as live:
        live.run(live.server.listen_grpc())
        endpoint = parse_endpoint(f"127.0.0.1:{live.server.grpc.port}", "grpc")
        inputs = [{"x": np.array([[value, -value]], np.float32)} for value in (1, 2, 5)]
        work = infer_work(endpoint, {"echo": inputs}, {"echo": 1.0}, is_json=False)
        measured, judged = run(endpoint, work, asked, 2000.0, scenario=Scenario.OFFLINE, duration_s=0.2)
        answered = live.metric("nv_inference_request_success", model="echo")
        run(endpoint, work, asked, scenario=Scenario.OFFLINE, is_accuracy=True)
        wrong = infer_work(endpoint, {"nobody": inputs}, {"nobody": 1.0}, is_json=False)
        refused, _ = run(endpoint, wrong, asked, scenario=Scenario.OFFLINE, is_accuracy=True)
    assert measured.figures.answered == answered >= 500
    assert judged.pairs["samples/s"].loadgen > 0
    assert refused.figures.errors == {"gRPC status 5": 3}
    assert "nobody" in refused.figures.samples["gRPC status 5"]


def test_accuracy_over_grpc_has_the_outputs_bytes(asked, tmp_path):
    with serving(small_repository(tmp_path / "r"), grpc=Address("127.0.0.1", 0)) as live:
        live.run(live.server.listen_grpc())
        endpoint = parse_endpoint(f"127.0.0.1:{live.server.grpc.port}", "grpc")
        inputs = [{"x": np.array([[value, -value]], np.float32)} for value in (1, 2, 5)]
        work = infer_work(endpoint, {"echo": inputs}, {"echo": 1.0}, is_json=False)
        run(endpoint, work, asked, scenario=Scenario.OFFLINE, is_accuracy=True)
    assert accuracy_log(asked) == {0: [1.0, -1.0], 1: [2.0, -2.0], 2: [5.0, -5.0]}


def test_a_sound_goes_through_loadgen_and_the_server_as_it_is(asked, tmp_path):
    """The model gives back what it takes, and LoadGen logs it: the samples of the file."""
    soundfile = pytest.importorskip("soundfile")
    wave = np.linspace(-1, 1, 320, dtype=np.float32)
    soundfile.write(tmp_path / "s.wav", wave, 16_000, subtype="FLOAT")
    save(tmp_path / "r" / "same", identity(shape=("any", "any")))
    with serving(tmp_path / "r") as live:
        endpoint = parse_endpoint(live.url, "http")
        inputs = inputs_from_file(tmp_path / "s.wav", model_inputs(endpoint, "same"))
        work = infer_work(endpoint, {"same": inputs}, {"same": 1.0}, is_json=False)
        run(endpoint, work, asked, scenario=Scenario.OFFLINE, is_accuracy=True)
    assert accuracy_log(asked) == {0: wave.tolist()}


@pytest.mark.parametrize("scenario", [Scenario.SINGLE_STREAM, Scenario.SERVER, Scenario.OFFLINE])
def test_loadgen_is_told_of_first_tokens_and_how_many_there_were(asked, tmp_path, scenario):
    targets = parse_targets("ttft p99<10s,tpot p99<5s")
    with talking(write_tiny_model(tmp_path / "tiny")) as live:
        endpoint = parse_endpoint(live.url, "openai")
        chains = conversations(8, parse_lengths("6"), parse_lengths("5"), turns=1, prefix_tokens=0, prefixes=1, seed=0)
        work = chat_work(endpoint, "tiny", chains, {"ignore_eos": True})
        measured, judged = run(
            endpoint, work, asked, 20.0, scenario=scenario, duration_s=0.3, rate=30.0, targets=targets, is_text=True
        )
    found = measured.figures
    assert found.answered > 3
    assert not found.errors
    assert found.ttft.least > 0
    assert judged.pairs["tokens/s"].loadgen > 0
    if scenario is not Scenario.OFFLINE:
        first = judged.pairs["p50 TTFT"]
        assert first.loadgen is not None


def accuracy_log(asked):
    logged = json.loads((asked["logs"] / "mlperf_log_accuracy.json").read_text())
    return {one["qsl_idx"]: np.frombuffer(bytes.fromhex(one["data"]), np.float32).tolist() for one in logged}


def test_text_is_asked_for_what_loadgen_can_measure_of_it(asked):
    text = {**asked, "is_text": True, "rate": 5.0}
    with pytest.raises(InvalidSetting, match="SingleStream, Server and Offline"):
        check_asked(Asked(**{**text, "scenario": Scenario.MULTI_STREAM}))
    with pytest.raises(InvalidSetting, match="a rate and the latency"):
        check_asked(Asked(**{**text, "scenario": Scenario.SERVER, "targets": (SOON,)}))
    check_asked(Asked(**{**text, "scenario": Scenario.SERVER, "targets": parse_targets("ttft p99<1s,tpot p99<1s")}))
