"""Log and trace settings over HTTP: told, changed together or not at all, closed where control is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving import Live, serving, small_repository

from farthing.config.server import ModelControl

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture
def live(repository: Path) -> Iterator[Live]:
    with serving(repository, model_control=ModelControl.EXPLICIT, load_models=("echo",)) as live:
        yield live
        live.post("/v2/logging", json.dumps({"log_info": False, "log_warning": True, "log_error": True}).encode(), JSON)


def told(live: Live, path: str) -> Any:
    answer = live.get(path)
    assert answer.status == 200
    return json.loads(answer.body)


def changed(live: Live, path: str, **settings: Any) -> tuple[int, Any]:
    answer = live.post(path, json.dumps(settings).encode(), JSON)
    return answer.status, json.loads(answer.body)


def test_log_settings_are_told_and_changed_and_null_leaves_one_alone(live: Live) -> None:
    before = told(live, "/v2/logging")
    assert set(before) == {"log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"}
    status, after = changed(live, "/v2/logging", log_verbose_level=1, log_info=not before["log_info"], log_error=None)
    assert status == 200
    assert after == {**before, "log_verbose_level": 1, "log_info": not before["log_info"]} == told(live, "/v2/logging")
    assert changed(live, "/v2/logging", log_verbose_level=0)[0] == 200


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [
        ({"log_verbose_level": 1, "log_info": "yes"}, 400, "log_info"),
        ({"log_verbose_level": 1, "log_everything": True}, 400, "log_everything"),
        ({"log_verbose_level": 1, "log_error": 1.5}, 400, "float"),
        ({"log_verbose_level": 1, "log_file": "/tmp/x"}, 501, "log_file"),
    ],
)
def test_a_change_with_a_mistake_changes_nothing(live: Live, settings: Any, status: int, words: str) -> None:
    before = told(live, "/v2/logging")
    found, answer = changed(live, "/v2/logging", **settings)
    assert (found, words in answer["error"]) == (status, True)
    assert told(live, "/v2/logging") == before


def test_trace_settings_are_told_and_changed_as_strings(live: Live) -> None:
    before = told(live, "/v2/trace/setting")
    assert before == {
        "trace_level": ["OFF"],
        "trace_rate": "1000",
        "trace_count": "-1",
        "trace_file": "",
        "log_frequency": "0",
        "trace_mode": "opentelemetry",
    }
    assert told(live, "/v2/models/echo/trace/setting") == before
    assert changed(live, "/v2/trace/setting", trace_rate="7", trace_count="3") == (
        200,
        {**before, "trace_rate": "7", "trace_count": "3"},
    )
    assert changed(live, "/v2/trace/setting", trace_rate=None, trace_count=["-1"]) == (200, before)


def test_a_model_has_trace_settings_of_its_own_and_null_gives_it_the_servers_again(live: Live) -> None:
    path = "/v2/models/echo/trace/setting"
    before = told(live, path)
    assert changed(live, path, trace_rate="7", log_frequency="5") == (
        200,
        {**before, "trace_rate": "7", "log_frequency": "5"},
    )
    assert told(live, "/v2/trace/setting") == before
    assert changed(live, "/v2/trace/setting", log_frequency="9")[0] == 200
    assert told(live, path)["log_frequency"] == "5"
    assert changed(live, path, trace_rate=None, log_frequency=None) == (200, {**before, "log_frequency": "9"})
    assert changed(live, "/v2/trace/setting", log_frequency=None) == (200, before)


@pytest.mark.parametrize(
    ("path", "settings", "status"),
    [
        ("/v2/trace/setting", {"trace_rate": 7}, 400),
        ("/v2/trace/setting", {"trace_rate": "0"}, 400),
        ("/v2/trace/setting", {"trace_everything": "1"}, 400),
        ("/v2/trace/setting", {"trace_level": {"a": 1}}, 400),
        ("/v2/models/echo/trace/setting", {"trace_level": ["TIMESTAMPS"]}, 501),
        ("/v2/models/ghost/trace/setting", {}, 404),
    ],
)
def test_what_is_no_trace_setting_is_said(live: Live, path: str, settings: Any, status: int) -> None:
    before = told(live, "/v2/trace/setting")
    assert changed(live, path, **settings)[0] == status
    assert told(live, "/v2/trace/setting") == before


def test_changing_is_closed_unless_models_are_controlled_by_clients(repository: Path) -> None:
    with serving(repository) as live:
        for path, settings in (("/v2/logging", {"log_info": True}), ("/v2/trace/setting", {"trace_rate": "7"})):
            assert told(live, path)
            status, answer = changed(live, path, **settings)
            assert (status, "closed" in answer["error"]) == (403, True)


def test_tritons_client_works_unchanged(live: Live) -> None:
    client = pytest.importorskip("tritonclient.http").InferenceServerClient(live.netloc)
    assert client.get_log_settings()["log_error"] is True
    assert client.update_log_settings({"log_verbose_level": 2})["log_verbose_level"] == 2
    assert client.update_log_settings({"log_verbose_level": 0})["log_verbose_level"] == 0
    assert client.get_trace_settings("echo")["trace_level"] == ["OFF"]
    assert client.update_trace_settings(settings={"trace_rate": "5"})["trace_rate"] == "5"
    assert {"trace", "logging"} <= set(client.get_server_metadata()["extensions"])
    client.close()
