"""Well-formed calls with anything in them: messages, metadata and streams. Every one gets a status that fits, and the
server goes on. Frames and bytes that are no messages are tried in test_http2 and test_grpc."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.models import identity, save
from tests.server.test_grpc import Client, grpc_serving, infer_message
from tests.serving import Live, eventually, small_repository

from farthing.config.server import ModelControl
from farthing.protocols.kserve_grpc import message_class

QUIET = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HONEST = {
    "OK",
    "INVALID_ARGUMENT",
    "ALREADY_EXISTS",
    "NOT_FOUND",
    "UNAVAILABLE",
    "UNIMPLEMENTED",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
}
"""What a client's mistake may be answered with; never INTERNAL or UNKNOWN, which are ours."""

ECHO = infer_message([[1.0, 2.0]])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Client]]:
    folder = small_repository(tmp_path_factory.mktemp("repository"))
    save(folder / "text", identity("BYTES"))
    names = ("echo", "simple", "text")
    with grpc_serving(folder, model_control=ModelControl.EXPLICIT, load_models=names) as pair:
        yield pair


def is_well(both: tuple[Live, Client]) -> bool:
    live, client = both
    answer = client.raw("ModelInfer")(ECHO.SerializeToString(), timeout=20)
    server = live.server
    assert server is not None
    eventually(lambda: live.on_loop(lambda: server._admission.bytes) == 0)
    return bool(message_class("ModelInferResponse").FromString(answer).raw_output_contents == ECHO.raw_input_contents)


NAMES = st.sampled_from(["x", "y", "INPUT0", "INPUT1", "", "ghost", "\N{SNOWMAN}"]) | st.text(max_size=8)
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1) | st.sampled_from([-1, 0, 1, 2, 16, 1 << 31, 1 << 62])
PARAMETERS = st.dictionaries(
    st.sampled_from(
        [
            "sequence_id",
            "sequence_start",
            "sequence_end",
            "priority",
            "timeout",
            "classification",
            "binary_data_output",
            "shared_memory_region",
            "shared_memory_offset",
            "shared_memory_byte_size",
            "triton_enable_empty_final_response",
            "triton_x",
            "headers",
            "own",
        ]
    ),
    st.one_of(
        st.just({}),
        st.booleans().map(lambda value: {"bool_param": value}),
        NUMBERS.map(lambda value: {"int64_param": value}),
        st.integers(0, (1 << 64) - 1).map(lambda value: {"uint64_param": value}),
        st.floats().map(lambda value: {"double_param": value}),
        st.text(max_size=8).map(lambda value: {"string_param": value}),
    ),
    max_size=3,
)
CONTENTS = st.one_of(
    st.just({}),
    st.lists(st.floats(width=32), max_size=3).map(lambda values: {"fp32_contents": values}),
    st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=20).map(lambda values: {"int_contents": values}),
    st.lists(st.binary(max_size=4), max_size=3).map(lambda values: {"bytes_contents": values}),
    st.lists(st.booleans(), max_size=3).map(lambda values: {"bool_contents": values}),
)
INPUTS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "datatype": st.sampled_from(["FP32", "INT32", "BYTES", "FP16", "BOOL", "", "FP31"]),
        "shape": st.lists(NUMBERS, max_size=4),
        "contents": CONTENTS,
        "parameters": PARAMETERS,
    }
)
OUTPUTS = st.fixed_dictionaries({"name": NAMES, "parameters": PARAMETERS})
REQUESTS = st.fixed_dictionaries(
    {
        "model_name": st.sampled_from(["echo", "simple", "text", "ghost", "mlp", ""]),
        "model_version": st.sampled_from(["", "1", "2", "-1", "x", "9" * 30]),
        "id": st.text(max_size=8),
        "parameters": PARAMETERS,
        "inputs": st.lists(INPUTS, max_size=3),
        "outputs": st.lists(OUTPUTS, max_size=2),
        "raw_input_contents": st.lists(st.binary(max_size=20), max_size=3),
    }
)


def message(fields: dict[str, Any]) -> Any:
    return message_class("ModelInferRequest")(**fields)


def status(call: Any) -> str:
    name: str = call.code().name
    return name


@QUIET
@given(REQUESTS)
def test_any_inference_message_has_an_honest_status(both: tuple[Live, Client], fields: dict[str, Any]) -> None:
    _, client = both
    asked = message(fields)
    call = client.raw("ModelInfer").future(asked.SerializeToString(), timeout=20)
    assert status(call) in HONEST, (asked, call.details())
    assert is_well(both)


@QUIET
@given(st.lists(REQUESTS, max_size=4), st.booleans())
def test_any_messages_of_a_stream_are_answered_one_by_one(
    both: tuple[Live, Client], requests: list[dict[str, Any]], is_strict: bool
) -> None:
    _, client = both
    metadata = [("triton_grpc_error", "true")] if is_strict else []
    messages = [message(fields).SerializeToString() for fields in requests]
    call = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
        iter(messages), timeout=20, metadata=metadata
    )
    ended = "OK"
    answers = 0
    try:
        for _ in call:
            answers += 1
    except grpc.RpcError as error:
        ended = error.code().name
    if is_strict:
        assert ended in HONEST
    else:
        assert (ended, answers) == ("OK", len(messages))
    assert is_well(both)


KEYS = st.sampled_from(
    [
        "traceparent",
        "tracestate",
        "authorization",
        "x-api-key",
        "triton_grpc_error",
        "triton-grpc-protocol-key",
        "content-length",
        "x-anything",
        "a-bin",
    ]
)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@QUIET
@given(st.lists(st.tuples(KEYS, VALUES), max_size=5))
def test_any_metadata_is_survived(both: tuple[Live, Client], metadata: list[tuple[str, str]]) -> None:
    _, client = both
    sent = [(key, value.encode() if key.endswith("-bin") else value) for key, value in metadata]
    call = client.raw("ModelInfer").future(ECHO.SerializeToString(), timeout=20, metadata=sent)
    # A content-length that is not the body's makes a request malformed; grpcio tells RST_STREAM as it sees fit.
    is_wrong = any(key == "content-length" for key, _ in metadata)
    assert status(call) in HONEST | ({"INTERNAL", "UNKNOWN", "CANCELLED"} if is_wrong else set())
    assert is_well(both)


SETTINGS = st.dictionaries(
    st.sampled_from(["trace_level", "trace_rate", "trace_count", "log_frequency", "trace_file", "trace_mode", "other"]),
    st.fixed_dictionaries(
        {"value": st.lists(st.sampled_from(["OFF", "TIMESTAMPS", "1", "-1", "0", "", "x"]), max_size=2)}
    ),
    max_size=3,
)


@QUIET
@given(SETTINGS, st.sampled_from(["", "echo", "ghost"]))
def test_any_trace_settings_are_answered(both: tuple[Live, Client], wanted: dict[str, Any], model: str) -> None:
    _, client = both
    asked = message_class("TraceSettingRequest")(settings=wanted, model_name=model)
    assert status(client.raw("TraceSetting").future(asked.SerializeToString(), timeout=20)) in HONEST
    reset = {name: {"value": []} for name in ("trace_level", "trace_rate", "trace_count", "log_frequency")}
    for name in ("echo", ""):
        client.ask("TraceSetting", settings=reset, model_name=name)


LOADS = st.dictionaries(
    st.sampled_from(["config", "file:1/model.onnx", "file:../x", "unload_dependents", "other"]),
    st.one_of(
        st.just({}),
        st.booleans().map(lambda value: {"bool_param": value}),
        st.binary(max_size=8).map(lambda value: {"bytes_param": value}),
        st.sampled_from(["", "{}", "[]", '{"max_batch_size": -1}', '{"name": "other"}', "{"]).map(
            lambda value: {"string_param": value}
        ),
    ),
    max_size=2,
)


@QUIET
@given(LOADS, st.sampled_from(["RepositoryModelLoad", "RepositoryModelUnload"]))
def test_any_load_of_a_model_that_is_not_there_is_answered(
    both: tuple[Live, Client], parameters: dict[str, Any], rpc: str
) -> None:
    _, client = both
    asked = message_class(f"{rpc}Request")(model_name="ghost", parameters=parameters)
    call = client.raw(rpc).future(asked.SerializeToString(), timeout=20)
    assert status(call) in HONEST | {"PERMISSION_DENIED"}, call.details()


def test_calls_that_end_at_any_moment_leave_nothing_behind(both: tuple[Live, Client]) -> None:
    _, client = both
    calls = [client.begin([[1.0, 2.0]], "echo") for _ in range(200)]
    cancels = [
        threading.Thread(target=lambda part=part: [call.cancel() for call in part])
        for part in (calls[::2], calls[1::3])
    ]
    for thread in cancels:
        thread.start()
    for thread in cancels:
        thread.join()
    assert {status(call) for call in calls} <= {"OK", "CANCELLED"}
    assert is_well(both)
