"""Language models over `ModelStreamInfer`: text as it is made, several generations side by side."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tests.language import talking
from tests.server.test_grpc import ANY_PORT, Client
from tests.server.test_grpc_streams import Talk, is_final
from tests.serving import Live

from farthing.protocols.kserve_grpc import message_class


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Client]]:
    with talking(tmp_path_factory.mktemp("models"), grpc=ANY_PORT) as live:
        assert live.server is not None
        live.run(live.server.listen_grpc())
        with grpc.insecure_channel(str(live.server.grpc)) as channel:
            yield live, Client(channel)


def prompt(text: str, id: str = "", **parameters: Any) -> Any:
    data = text.encode()
    message = message_class("ModelInferRequest")(
        model_name="tiny",
        id=id,
        inputs=[{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
        raw_input_contents=[len(data).to_bytes(4, "little") + data],
    )
    fields: dict[type, str] = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in {"max_tokens": 8, "temperature": 0, "ignore_eos": True, **parameters}.items():
        setattr(message.parameters[name], fields[type(value)], value)
    return message


def text_of(answers: list[Any]) -> str:
    assert not [answer.error_message for answer in answers if answer.error_message]
    raws = [raw for answer in answers for raw in answer.infer_response.raw_output_contents]
    return b"".join(raw[4:] for raw in raws).decode()


def whole(live: Live, text: str) -> str:
    body = {"text_input": text, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    said: str = live.post("/v2/models/tiny/generate", json.dumps(body).encode()).json["text_output"]
    return said


def test_text_comes_as_it_is_made_and_is_that_of_http(talkative: tuple[Live, Client]) -> None:
    live, client = talkative
    answers = Talk(client).put(prompt("hello", id="7")).end().rest()
    assert text_of(answers) == whole(live, "hello")
    assert len(answers) > 1
    assert [is_final(answer) for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert {answer.infer_response.id for answer in answers} == {"7"}


def test_generations_of_one_stream_run_side_by_side(talkative: tuple[Live, Client]) -> None:
    live, client = talkative
    answers = Talk(client).put(*(prompt(f"text {i}", id=str(i)) for i in range(4))).end().rest()
    for i in range(4):
        assert text_of([a for a in answers if a.infer_response.id == str(i)]) == whole(live, f"text {i}")


def test_an_empty_answer_ends_a_generation_for_clients_that_ask(talkative: tuple[Live, Client]) -> None:
    answers = Talk(talkative[1]).put(prompt("x", triton_enable_empty_final_response=True)).end().rest()
    assert [is_final(answer) for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert not answers[-1].infer_response.outputs
    assert answers[-2].infer_response.outputs


def test_a_client_may_want_its_text_in_one_piece(talkative: tuple[Live, Client]) -> None:
    live, client = talkative
    message = prompt("hello")
    message.inputs.add(name="stream", datatype="BOOL", shape=[1])
    message.raw_input_contents.append(b"\0")
    (answer,) = Talk(client).put(message).end().rest()
    assert text_of([answer]) == whole(live, "hello")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.raw_input_contents.__setitem__(0, b"\1\0\0\0\xff"), "not UTF-8"),
        (
            lambda m: m.inputs.add(name="other", datatype="BYTES", shape=[0]) or m.raw_input_contents.append(b""),
            "other",
        ),
        (lambda m: setattr(m.parameters["temperature"], "double_param", 9.0), "temperature"),
    ],
)
def test_what_a_language_model_cannot_take_is_said(
    talkative: tuple[Live, Client], change: Callable[[Any], None], text: str
) -> None:
    message = prompt("hello")
    change(message)
    first, second = Talk(talkative[1]).put(message, prompt("hello", stop="\0", max_tokens=1)).end().rest()
    assert text in first.error_message
    assert not second.error_message
