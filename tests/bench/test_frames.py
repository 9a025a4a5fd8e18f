"""Streams of frames against a real server: what it says became of them is what is counted."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from tests.bench.servers import ANSWER, answering
from tests.bench.test_drivers import message
from tests.bench.test_figures import records
from tests.serving import Gate, serving, small_repository

from farthing.bench import records as noted
from farthing.bench.endpoint import Endpoint, parse_endpoint
from farthing.bench.figures import figures
from farthing.bench.frame_driver import FrameDriver
from farthing.bench.frame_load import FramesAsked, frame_load, frame_plan
from farthing.bench.frames import FramePlan, frame_figures
from farthing.bench.load import Work
from farthing.bench.measure import Measured, measure
from farthing.bench.mlperf import constant_stream
from farthing.bench.targets import parse_targets
from farthing.bench.workload import frame_work
from farthing.cli.bench import command

PAIR = [{"x": np.array([[1, 2]], np.float32)}, {"x": np.array([[3, 4]], np.float32)}]


def asked(**changes):
    said = {
        "model": "echo", "rate": 200.0, "deadline_s": 10.0, "policy": "all", "duration_s": 0.25, "timeout_s": 20.0,
        "connections_max": 16,
    }  # fmt: skip
    return FramesAsked(**{**said, **changes})


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with serving(small_repository(tmp_path_factory.mktemp("r"))) as server:
        yield server


def test_every_frame_of_every_stream_is_accounted_for_as_the_server_says(live):
    endpoint, wanted = parse_endpoint(live.url, "http"), asked()
    plan = frame_plan(wanted, endpoint)
    assert plan.is_told
    work, load, label = frame_load(wanted, plan, 3, frame_work(PAIR), PAIR)
    before = live.metric("nv_inference_request_success", model="echo")
    run = measure(endpoint, work, load, label=label, at=3, warm_up_s=None)
    found = run.figures.frames
    assert (found.sent, found.streams, found.by, found.problem) == (3 * 50, 3, "server", "")
    assert found.on_time + found.late + found.failed + sum(found.dropped.values()) == found.sent
    answered = found.on_time + found.late
    assert live.metric("nv_inference_request_success", model="echo") - before == answered == run.figures.answered > 0
    assert found.seen_in_time <= answered


def test_cameras_are_not_in_step_and_frames_leave_when_they_are_due(live):
    endpoint, wanted = parse_endpoint(live.url, "http"), asked(duration_s=0.1, rate=100.0)
    work, load, _ = frame_load(wanted, frame_plan(wanted, endpoint), 2, frame_work(PAIR), PAIR)
    found = FrameDriver(endpoint, work, load).run()
    at_ms = np.round((found.intended_ns - found.started_ns) / 1e6, 3).tolist()
    assert at_ms == [5.0 * number for number in range(20)]
    assert np.all(found.sent_ns >= found.intended_ns)
    assert found.request.tolist()[:4] == [0, 1, 1, 0], "each camera begins elsewhere in the row"


def test_frames_that_the_server_drops_are_no_errors(tmp_path):
    """The gate holds the first frame until the last one has superseded all between."""
    gate = Gate(tmp_path / "gate")
    with serving(gate.path) as held:
        endpoint, wanted = (
            parse_endpoint(held.url, "http"),
            asked(model="gate", policy="latest", rate=50.0, duration_s=0.2),
        )
        plan = FramePlan(model="gate", rate=50.0, deadline_s=10.0, policy="latest", is_told=True)
        frames = [{"x": np.array([[1]], np.float32)}]
        work, load, _ = frame_load(wanted, plan, 1, frame_work(frames), frames)

        class Opening(FrameDriver):
            def _send(self, stream):
                super()._send(stream)
                gate.open()

        found = Opening(endpoint, work, load).run()
    assert found.status.tolist() == [200, *[noted.SUPERSEDED] * 8, 200]
    told = figures(found, duration_s=0.2, warm_up_s=None, frames=plan)
    assert told.errors == {}
    assert (told.frames.dropped["superseded"], told.frames.on_time, told.frames.problem) == (8, 2, "")


def test_a_server_without_streams_gets_plain_requests_at_the_same_times():
    with answering(lambda _number: (0.0, ANSWER)) as port:
        endpoint, wanted = Endpoint(kind="http", host="127.0.0.1", port=port), asked()
        plan = frame_plan(wanted, endpoint)
        assert not plan.is_told
        plain = Work(wire="http", chains=[[message()]], order=[0])
        work, load, _ = frame_load(wanted, plan, 2, plain, [])
        run = measure(endpoint, work, load, label="", at=2, warm_up_s=None)
    found = run.figures.frames
    assert (found.sent, found.by, found.failed) == (100, "farthing", 0)
    assert found.on_time == found.seen_in_time
    assert any("no streams of frames" in note for note in run.notes)


def test_a_summary_that_says_otherwise_is_told():
    plan = FramePlan(model="m", rate=100.0, deadline_s=0.01, policy="all", is_told=True)
    summary = {
        "received": 9,
        "on_time": 9,
        "late": 0,
        "failed": 0,
        "dropped": dict.fromkeys(("superseded", "late", "overload"), 0),
    }
    told = records([0.005] * 10, on_time=np.ones(10, np.bool_), summaries=[summary])
    assert "the server's summary says" in frame_figures(told, plan).problem


@pytest.mark.parametrize(("lost", "frames", "result"), [(0, 700, "VALID"), (0, 60, "UNSURE"), (80, 700, "INVALID")])
def test_a_constant_stream_is_judged_by_the_frames_that_were_not_in_time(lost, frames, result):
    status = np.where(np.arange(frames) % 8 < lost / 10, noted.SUPERSEDED, 200)
    plan = FramePlan(model="m", rate=100.0, deadline_s=0.033, policy="latest", is_told=True)
    taken = records([0.005] * frames, gap_s=0.01, status=status, on_time=status == 200)
    told = figures(taken, duration_s=60, warm_up_s=None, frames=plan)
    (target,) = parse_targets("p99<33ms")
    measured = Measured(label="", load=1, figures=told, server=None, notes=(), is_interrupted=False)
    assert constant_stream(measured, target).result == result


def test_the_command_shows_what_became_of_frames(live, tmp_path):
    report = tmp_path / "r.json"
    words = [
        live.url,
        "-m",
        "echo",
        "--frames",
        "100",
        "--deadline",
        "5000",
        "-c",
        "1,2",
        "-d",
        "0.3",
        "--json",
        str(report),
    ]
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    assert "superseded" in done.output
    one, two = [run["figures"]["frames"] for run in json.loads(report.read_text())["runs"]]
    assert (one["sent"], two["sent"], two["deadline_s"]) == (30, 60, 5.0)
    words = [live.url, "-m", "echo", "--mlperf", "constant-stream", "--rate", "50", "-d", "0.3", "--json", str(report)]
    CliRunner().invoke(command, words, catch_exceptions=False)
    told = json.loads(report.read_text())
    assert told["mlperf"]["result"] == "UNSURE", "15 frames support no p99"
    assert told["runs"][0]["figures"]["frames"]["by"] == "server"
