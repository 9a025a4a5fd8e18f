"""Bodies of index, load and unload."""

import base64
import json

import pytest

from farthing.protocols.kserve import parse_index_request, parse_load_request, parse_unload_request
from farthing.types.errors import InvalidInput


def parameters(**values: object) -> bytes:
    return json.dumps({"parameters": values}).encode()


def refused(parse, body, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        parse(body)
    assert caught.value.http_status == 400
    return str(caught.value)


def test_an_empty_body_asks_for_the_usual() -> None:
    for body in (b"", b"{}"):
        assert not parse_index_request(body).ready
        assert parse_load_request(body).config == ""
        assert parse_load_request(body).files == {}
        assert not parse_unload_request(body).unload_dependents


def test_the_index_takes_a_boolean_ready_and_says_so() -> None:
    assert parse_index_request(b'{"ready":true}').ready
    for value in (b"1", b'"true"', b"[]", b"{}"):
        refused(parse_index_request, b'{"ready":' + value + b"}", "ready")


def test_a_quarter_million_brackets_are_about_the_type_of_ready() -> None:
    body = b'{"ready":' + b"[" * 250_000 + b"]" * 250_000 + b"}"
    refused(parse_index_request, body, "Expected `bool`, got `array`.*ready")
    for parse in (parse_load_request, parse_unload_request):
        refused(parse, b'{"parameters":' + body + b"}", "parameters")


def test_a_load_brings_a_configuration_and_files() -> None:
    content = bytes(range(256))
    request = parse_load_request(
        parameters(
            config='{"name":"m"}', **{"file:1/model.onnx": base64.b64encode(content).decode(), "file:1/a/b.bin": ""}
        )
    )
    assert request.config == '{"name":"m"}'
    assert request.files == {"1/model.onnx": content, "1/a/b.bin": b""}


def test_files_need_their_configuration() -> None:
    refused(parse_load_request, parameters(**{"file:1/model.onnx": ""}), "configuration")


@pytest.mark.parametrize("config", ["", "[]", "nonsense", "null", 3, True, '{"a":}'])
def test_a_configuration_is_a_json_object_in_a_string(config) -> None:
    refused(parse_load_request, parameters(config=config), r"parameters\.config")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "../x",
        "1/../../x",
        "1/..",
        "./1",
        "1//x",
        "1/",
        "1\\x",
        "c:/x",
        "1/x\0",
        "1/\n",
        "1/" + "a" * 256,
        "1/" + "ä" * 128,
        "1/x\u202e",
    ],
)
def test_a_path_stays_in_the_models_folder(path) -> None:
    refused(parse_load_request, parameters(config="{}", **{f"file:{path}": ""}), "file:")


def test_a_file_is_base64() -> None:
    for content in ("*", "a", "ä", 3, True):
        refused(parse_load_request, parameters(config="{}", **{"file:1/x": content}), "file:1/x")


def test_other_parameters_are_refused_by_name() -> None:
    refused(parse_load_request, parameters(confg="{}"), r"parameters\.confg")
    refused(parse_unload_request, parameters(unload_dependants=True), r"parameters\.unload_dependants")


def test_unload_dependents_is_a_boolean() -> None:
    assert parse_unload_request(parameters(unload_dependents=True)).unload_dependents
    assert not parse_unload_request(parameters(unload_dependents=False)).unload_dependents
    for value in (1, "true"):
        refused(parse_unload_request, parameters(unload_dependents=value), "unload_dependents")


def test_files_have_a_number() -> None:
    many = {f"file:1/{n}": "" for n in range(1025)}
    refused(parse_load_request, parameters(config="{}", **many), "at most 1024 files")
