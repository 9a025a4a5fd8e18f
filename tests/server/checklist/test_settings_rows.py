"""Sections 6.5 and 6.6: log and trace settings, over both protocols."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.checklist.house import House, Said, WireName
from tests.server.test_grpc import grpc_serving
from tests.serving import small_repository

from farthing.config.server import ModelControl
from farthing.protocols.kserve_grpc import message_class


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server whose settings may be changed without harm to other tests."""
    folder = small_repository(tmp_path_factory.mktemp("settings"))
    with grpc_serving(folder, model_control=ModelControl.EXPLICIT, load_models=("*",)) as (live, client):
        yield House(live, client)


def log(house: House, wire: WireName, **settings: Any) -> Said:
    """Changes log settings, and what is told then."""
    if wire == "http":
        return house.http("POST", "/v2/logging", settings)
    kinds: dict[type, str] = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    given = {name: {kinds[type(value)]: value} for name, value in settings.items() if value is not None}
    given |= {name: {} for name, value in settings.items() if value is None}
    answer, said = house.call("LogSettings", settings=given)
    if answer is not None:
        told = {}
        for name, setting in answer.settings.items():
            told[name] = getattr(setting, setting.WhichOneof("parameter_choice"))
        return Said(code="OK", answer=told)
    return said


def trace(house: House, wire: WireName, model: str = "", **settings: Any) -> Said:
    """Changes trace settings, and what is told then; lists as lists, everything else as text."""
    if wire == "http":
        path = f"/v2/models/{model}/trace/setting" if model else "/v2/trace/setting"
        return house.http("POST", path, settings)
    message = message_class("TraceSettingRequest")(model_name=model)
    for name, value in settings.items():
        message.settings[name].value.extend([] if value is None else [value] if isinstance(value, str) else value)
    data = house.client.raw("TraceSetting").future(message.SerializeToString(), timeout=20)
    if data.code().name != "OK":
        return Said(code=data.code().name, text=data.details())
    answer = message_class("TraceSettingResponse").FromString(data.result())
    told = {name: list(one.value) if name == "trace_level" else one.value[0] for name, one in answer.settings.items()}
    return Said(code="OK", answer=told)


LOGS = {"log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"}


def test_s6_5_log_settings_are_told_whole_and_changed_in_part(own: House, wire: WireName) -> None:
    before = log(own, wire).answer
    assert set(before) == LOGS
    after = log(own, wire, log_verbose_level=1, log_error=None).answer
    assert after == {**before, "log_verbose_level": 1}
    assert log(own, wire, log_verbose_level=0).answer == before


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"log_everything": True}, "INVALID_ARGUMENT"),
        ({"log_info": "yes"}, "INVALID_ARGUMENT"),
        ({"log_verbose_level": True}, "INVALID_ARGUMENT"),
        ({"log_file": "/tmp/x"}, "UNIMPLEMENTED"),
        ({"log_format": "default"}, "UNIMPLEMENTED"),
    ],
)
def test_s6_5_a_mistake_changes_nothing(own: House, wire: WireName, settings: Any, code: str) -> None:
    before = log(own, wire).answer
    log(own, wire, **{"log_verbose_level": 1, **settings}).must_be(code)
    assert log(own, wire).answer == before


def test_s6_6_trace_settings_are_texts_and_a_model_has_its_own(own: House, wire: WireName) -> None:
    before = trace(own, wire).answer
    assert before == {
        "trace_file": "",
        "trace_level": ["OFF"],
        "trace_rate": "1000",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_mode": "opentelemetry",
    }
    assert trace(own, wire, "echo", trace_rate="7").answer == {**before, "trace_rate": "7"}
    assert trace(own, wire).answer == before
    assert trace(own, wire, trace_count="9").answer["trace_count"] == "9"
    assert trace(own, wire, "echo").answer == {**before, "trace_rate": "7", "trace_count": "9"}
    assert trace(own, wire, "echo", trace_rate=None).answer == {**before, "trace_count": "9"}
    assert trace(own, wire, trace_count=None).answer == before


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"trace_everything": "1"}, "INVALID_ARGUMENT"),
        ({"trace_rate": "0"}, "INVALID_ARGUMENT"),
        ({"trace_rate": "x"}, "INVALID_ARGUMENT"),
        ({"trace_count": "-2"}, "INVALID_ARGUMENT"),
        ({"trace_level": ["TENSORS"]}, "INVALID_ARGUMENT"),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, "INVALID_ARGUMENT"),
        ({"trace_level": ["TIMESTAMPS"]}, "UNIMPLEMENTED"),  # nowhere to send them
        ({"trace_file": "/tmp/x"}, "UNIMPLEMENTED"),
        ({"trace_mode": "triton"}, "UNIMPLEMENTED"),
    ],
)
def test_s6_6_a_mistake_changes_nothing(own: House, wire: WireName, settings: Any, code: str) -> None:
    for model in ("", "echo"):
        before = trace(own, wire, model).answer
        trace(own, wire, model, log_frequency="5", **settings).must_be(code)
        assert trace(own, wire, model).answer == before


def test_s6_6_an_unknown_model_has_no_trace_settings(own: House, wire: WireName) -> None:
    trace(own, wire, "ghost").must_be("NOT_FOUND")


def test_s6_6_over_http_numbers_come_as_texts(own: House) -> None:
    assert own.http("POST", "/v2/trace/setting", {"trace_rate": 7}).http == 400


def test_s6_5_s6_6_changing_is_closed_like_loading(tmp_path: Path, wire: WireName) -> None:
    with grpc_serving(small_repository(tmp_path)) as (live, client):
        house = House(live, client)
        for said in (log(house, wire, log_info=True), trace(house, wire, trace_rate="7")):
            assert (said.http or said.code) in (403, "PERMISSION_DENIED")
        assert set(log(house, wire).answer) == LOGS
