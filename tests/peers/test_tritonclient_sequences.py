"""Triton's own clients stream sequences unchanged: over HTTP with numbers and texts as ids, and over gRPC."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from tests.models import running_sum, save
from tests.serving import serve_process

CLIENTS = {"http": pytest.importorskip("tritonclient.http"), "grpc": pytest.importorskip("tritonclient.grpc")}
ClientError = pytest.importorskip("tritonclient.utils").InferenceServerException

CONFIG = """
max_batch_size: 4
sequence_batching {
  %s
  max_sequence_idle_microseconds: 10000000
  control_input [ { name: "start" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
                  { name: "id" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: %s } ] } ]
  state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ 1 ] } ]
}
"""


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("served")
    models = folder / "models"
    for name, strategy, ids in (
        ("direct", "direct { }", "INT64"),
        ("oldest", "oldest { max_candidate_sequences: 8 }", "INT64"),
        ("texts", "oldest { }", "BYTES"),
    ):
        save(models / name, running_sum(id_datatype=ids))
        config = CONFIG % (strategy, "TYPE_STRING" if ids == "BYTES" else "TYPE_INT64")
        (models / name / "config.pbtxt").write_text(config)
    with serve_process(folder, models, grpc=("--grpc", "127.0.0.1:0")):
        yield json.loads((folder / "ready.json").read_text())


class Adder:
    """One of Triton's clients, sending numbers to be added up."""

    def __init__(self, wire: str, address: str) -> None:
        self._module = CLIENTS[wire]
        self._client = self._module.InferenceServerClient(address)

    def add(self, model: str, x: float, **sequence: Any) -> float:
        tensor = self._module.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.full((1, 1), x, np.float32))
        return float(self._client.infer(model, [tensor], **sequence).as_numpy("y")[0, 0])

    def close(self) -> None:
        self._client.close()


@pytest.fixture(params=["http", "grpc"])
def adder(request: pytest.FixtureRequest, addresses: dict[str, str]) -> Iterator[Adder]:
    with closing(Adder(request.param, addresses[request.param])) as client:
        yield client


@pytest.mark.parametrize("model", ["direct", "oldest"])
def test_two_sequences_in_turn_as_in_tritons_example(adder: Adder, model: str) -> None:
    values = [11, 7, 5, 3, 2, 0, 1]
    for at, x in enumerate(values):
        flags = {"sequence_start": at == 0, "sequence_end": at == len(values) - 1}
        assert adder.add(model, x, sequence_id=1000, **flags) == sum(values[: at + 1])
        assert adder.add(model, -x, sequence_id=1001, **flags) == -sum(values[: at + 1])
    told = f"inference request for sequence 1000 to model '{model}' must specify the START flag on the first request"
    with pytest.raises(ClientError, match=told):
        adder.add(model, 1, sequence_id=1000)


def test_texts_are_ids_too_up_to_128_bytes(adder: Adder) -> None:
    for text in ("a", "x" * 128, "ä" * 64):
        assert adder.add("texts", 2, sequence_id=text, sequence_start=True) == 2
    for text in ("a", "x" * 128, "ä" * 64):
        assert adder.add("texts", 3, sequence_id=text, sequence_end=True) == 5
    with pytest.raises(ClientError, match="string correlation ID cannot exceed 128 bytes"):
        adder.add("texts", 1, sequence_id="ä" * 65, sequence_start=True)
    with pytest.raises(ClientError, match="takes the correlation ID as INT64"):
        adder.add("oldest", 1, sequence_id="a", sequence_start=True)


def test_a_request_without_an_id_is_refused(adder: Adder) -> None:
    with pytest.raises(ClientError, match="must specify a non-zero or non-empty correlation ID"):
        adder.add("oldest", 1)


def test_many_clients_at_once_each_have_their_own_sum(addresses: dict[str, str]) -> None:
    """More sequences than there are slots."""

    def client(number: int) -> list[float]:
        with closing(Adder("http", addresses["http"])) as one:
            return [
                one.add("oldest", number, sequence_id=number, sequence_start=at == 0, sequence_end=at == 9)
                for at in range(10)
            ]

    with ThreadPoolExecutor(16) as clients:
        for number, sums in zip(range(1, 33), clients.map(client, range(1, 33)), strict=True):
            assert sums == [number * (at + 1) for at in range(10)]


def test_the_server_says_that_it_can(addresses: dict[str, str]) -> None:
    with closing(CLIENTS["http"].InferenceServerClient(addresses["http"])) as client:
        assert "sequence" in client.get_server_metadata()["extensions"]
        config = client.get_model_config("oldest")["sequence_batching"]
        assert config["oldest"]["max_candidate_sequences"] == 8
        assert config["max_sequence_idle_microseconds"] == 10_000_000
        assert [tensor["name"] for tensor in client.get_model_metadata("oldest")["inputs"]] == ["x"]
