"""Load and unload messages, and the clients whose field numbers differ."""

from typing import Any

import pytest

from farthing.protocols.kserve_grpc import asked_load, asked_unload, check_repository_name, message_class, parse_message
from farthing.types.errors import InvalidInput, Unsupported


def load_message(**parameters: dict[str, Any]) -> Any:
    return message_class("RepositoryModelLoadRequest")(model_name="m", parameters=parameters)


def test_a_load_brings_its_configuration_and_files_as_bytes() -> None:
    asked = asked_load(
        load_message(**{"config": {"string_param": "{}"}, "file:1/model.onnx": {"bytes_param": b"\xff"}})
    )
    assert asked.config == "{}"
    assert asked.files == {"1/model.onnx": b"\xff"}


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"config": {"bytes_param": b"{}"}}, "parameters.config"),
        ({"config": {}}, "parameters.config: the parameter has no value"),
        ({"file:1/m": {"bytes_param": b""}}, "must bring their configuration"),
        ({"config": {"string_param": "{}"}, "file:../m": {"bytes_param": b""}}, "not a path inside"),
        ({"other": {"bool_param": True}}, "takes no such parameter"),
    ],
)
def test_other_load_parameters_are_refused(parameters: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        asked_load(load_message(**parameters))


def test_an_unload_may_name_dependents_and_nothing_else() -> None:
    kind = message_class("RepositoryModelUnloadRequest")
    assert asked_unload(kind(parameters={"unload_dependents": {"bool_param": True}})).unload_dependents
    assert not asked_unload(kind()).unload_dependents
    with pytest.raises(InvalidInput, match="expected true or false"):
        asked_unload(kind(parameters={"unload_dependents": {"int64_param": 1}}))


def test_a_client_made_from_kserve_s_proto_is_told_what_is_wrong() -> None:
    theirs = b"\x0a\x05mymod"  # KServe: model_name = 1; Triton: repository_name = 1
    for kind in ("RepositoryModelLoadRequest", "RepositoryModelUnloadRequest"):
        with pytest.raises(InvalidInput, match="repository_name is 'mymod'") as refused:
            check_repository_name(parse_message(message_class(kind), theirs))
        assert "KServe" in refused.value.hint


def test_naming_a_repository_is_not_supported() -> None:
    with pytest.raises(Unsupported, match="naming a repository"):
        check_repository_name(message_class("RepositoryModelLoadRequest")(repository_name="r", model_name="m"))
    with pytest.raises(Unsupported, match="naming a repository"):
        check_repository_name(message_class("RepositoryIndexRequest")(repository_name="r"))
    check_repository_name(message_class("RepositoryModelLoadRequest")(model_name="m"))
