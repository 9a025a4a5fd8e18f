"""The client's streams, against a real server."""

from pathlib import Path

import numpy as np
import pytest
from tests.serving import Gate, eventually, serving, small_repository

from farthing.client import Client
from farthing.types.errors import InvalidInput, NotFound, Unavailable


def test_frames_are_answered_in_order_and_accounted_for(tmp_path: Path) -> None:
    with (
        serving(small_repository(tmp_path)) as live,
        Client(live.url) as client,
        client.frames("echo", policy="all", deadline_ms=5000, queue_max=100) as stream,
    ):
        for number in range(50):
            stream.send({"x": np.array([[number, 1]], np.float32)}, request_id=str(number))
        stream.send({"y": np.zeros((1, 2), np.float32)})
        stream.end()
        *answers, wrong = list(stream)
        assert [answer.frame for answer in answers] == list(range(1, 51))
        assert [answer["y"][0, 0] for answer in answers] == list(range(50))
        assert all(answer.is_on_time and answer.status == "ok" for answer in answers)
        assert (wrong.status, wrong.frame) == ("error", 51)
        assert "'y'" in wrong.reason
        assert (stream.summary["received"], stream.summary["on_time"], stream.summary["failed"]) == (51, 50, 1)


def test_a_dropped_frame_says_why(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    with serving(gate.path) as live, Client(live.url) as client, client.frames("gate") as stream:
        for number in range(1, 4):
            stream.send({"x": np.array([[number]], np.float32)})
            eventually(lambda: gate.seen() == [1])
        gate.open()
        stream.end()
        answers = list(stream)
        assert [answer.status for answer in answers] == ["ok", "dropped", "ok"]
        assert (answers[1].reason, dict(answers[1])) == ("superseded", {})


def test_what_refuses_a_stream_is_raised(tmp_path: Path) -> None:
    with serving(small_repository(tmp_path)) as live, Client(live.url) as client:
        with pytest.raises(NotFound):
            client.frames("nobody")
        with pytest.raises(InvalidInput):
            client.frames("echo", queue_max=1000)
        url = live.url
    with pytest.raises(Unavailable), Client(url) as client:
        client.frames("echo")
