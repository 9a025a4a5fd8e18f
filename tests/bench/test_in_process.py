"""A model in process, in closed and open loops: what it answers, refuses and leaves behind."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.models import save, tiny_mlp
from tests.runtime.shop import times

from farthing.bench import records as noted
from farthing.bench.arrivals import OpenLoad, arrivals
from farthing.bench.endpoint import open_target
from farthing.bench.figures import figures
from farthing.bench.in_process import InProcess
from farthing.bench.in_process_driver import InProcessDriver
from farthing.bench.inputs import random_inputs
from farthing.bench.load import Load, Message, Work
from farthing.bench.measure import check_answers, measure
from farthing.bench.workload import infer_work
from farthing.types.errors import EngineFailed, InvalidSetting, LoadFailed
from farthing.types.requests import InferRequest


@pytest.fixture
def host(tmp_path: Path) -> Iterator[InProcess]:
    save(tmp_path / "mlp", tiny_mlp())
    found = open_target(str(tmp_path), "http")
    assert isinstance(found, InProcess)
    yield found
    found.close()


def work_of(host: InProcess) -> Work:
    return infer_work(host, {"mlp": random_inputs(host.inputs("mlp"), {}, 0)}, {"mlp": 1.0}, is_json=False)


def test_a_closed_loop_keeps_as_many_under_way_as_asked(host):
    counted = host._runtime.resolve("mlp").statistics
    found = InProcessDriver(host, work_of(host), Load(connections=8, duration_s=30, requests_max=400)).run()
    assert len(found) == 400
    assert found.is_answered.all()
    assert np.bincount(found.request).tolist() == [25] * 16, "requests are sent in turn"
    assert counted.snapshot("mlp", "1").inference_count == 400, "the runtime answered each once"
    events = sorted([(int(at), 1) for at in found.sent_ns] + [(int(at), -1) for at in found.end_ns])
    assert np.cumsum([step for _, step in events]).max() == 8
    assert np.all(found.latency_s > 0)


def test_an_open_loop_sends_every_request_at_its_time_or_says_how_late(host):
    when = arrivals(OpenLoad(rate=400), 0.5, 1)
    found = InProcessDriver(host, work_of(host), Load(connections=64, duration_s=0.5, arrivals_s=when)).run()
    assert len(found) == len(when)
    np.testing.assert_allclose((found.intended_ns - found.started_ns) / 1e9, when, atol=1e-6)
    assert np.all(found.sent_ns >= found.intended_ns)
    assert np.all(found.latency_s >= found.service_s)
    assert np.all(found.lag_s >= 0)


def test_what_the_runtime_refuses_is_an_error_with_its_words(host):
    wrong = InferRequest(model_name="mlp", inputs={"x": np.zeros((1, 3), np.float32)})
    work = Work(wire="process", chains=[[Message(data=b"", request=wrong)]], order=[0])
    found = InProcessDriver(host, work, Load(connections=2, duration_s=10, requests_max=6)).run()
    assert found.status.tolist() == [400] * 6
    assert figures(found, duration_s=10, warm_up_s=0).errors == {"HTTP 400": 6}
    with pytest.raises(EngineFailed, match=r"in process does not answer .* HTTP 400: .*x"):
        check_answers(host, work, timeout_s=5)


def test_what_takes_too_long_is_withdrawn(host, monkeypatch):
    withdrawn = []
    monkeypatch.setattr(host, "submit", lambda _request, _done: lambda: withdrawn.append(1))
    found = InProcessDriver(host, work_of(host), Load(connections=3, duration_s=0.1, timeout_s=0.15)).run()
    assert found.status.tolist() == [noted.TIMEOUT] * 3
    assert len(withdrawn) == 3


def test_a_load_that_is_stopped_abandons_what_is_under_way(host, monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(host, "submit", lambda _request, _done: asked.set() or (lambda: None))
    driver = InProcessDriver(host, work_of(host), Load(connections=2, duration_s=60))
    stopper = threading.Thread(target=lambda: asked.wait(10) and driver.stop())
    stopper.start()
    found = driver.run()
    stopper.join()
    assert found.status.tolist() == [noted.ABANDONED] * 2


def test_a_measured_load_tells_what_this_process_spent(host):
    run = measure(
        host, work_of(host), Load(connections=4, duration_s=30, requests_max=200), label="4", at=4, warm_up_s=0
    )
    assert run.figures.answered == 200
    assert run.server is not None
    assert run.server.memory_bytes > 10_000_000


def test_a_model_that_cannot_be_loaded_says_why(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(LoadFailed, match="broken"):
        open_target(str(tmp_path / "broken.onnx"), "http")
    with pytest.raises(InvalidSetting, match="in process"):
        open_target(str(tmp_path / "broken.onnx"), "grpc")


def test_models_are_told_by_name(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name, times(2))
    host = open_target(str(tmp_path), "http")
    assert isinstance(host, InProcess)
    try:
        assert host.models() == ["a", "b"]
        assert [spec.name for spec in host.inputs("a")] == ["x"]
    finally:
        host.close()
