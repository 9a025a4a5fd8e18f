"""Sequences over HTTP as it is on the wire: statuses, words, headers, and clients who vanish."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.models import running_sum, save
from tests.serving import Live, Reply, eventually, infer_json, serving

from farthing.config.server import AdmissionLimits

CONFIG = """
max_batch_size: 4
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 1 }
  control_input [ { name: "start" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
                  { name: "id" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 } ] } ]
  state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ 1 ] } ]
}
"""


@pytest.fixture
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A model with one slot, and a queue of two."""
    folder = tmp_path_factory.mktemp("repository")
    save(folder / "sum", running_sum())
    (folder / "sum" / "config.pbtxt").write_text(CONFIG)
    with serving(folder, admission=AdmissionLimits(queue_requests_max=2)) as server:
        yield server


def add(live: Live, x: float, **parameters: Any) -> Reply:
    return live.infer("sum", [[x]], parameters=parameters)


def total(reply: Reply) -> float:
    assert reply.status == 200, reply.body
    [output] = reply.json["outputs"]
    assert output["name"] == "y"
    return float(output["data"][0])


def send_only(live: Live, **parameters: Any) -> Any:
    """A connection whose request is sent and whose answer is not read."""
    body = infer_json([[1]], parameters=parameters)
    head = f"POST /v2/models/sum/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
    return live.connect().send(head.encode() + body)


def waiting(live: Live) -> float:
    return live.metric("nv_inference_pending_request_count", model="sum")


def test_a_sequence_from_start_to_end(live: Live) -> None:
    assert total(add(live, 1, sequence_id=7, sequence_start=True)) == 1
    assert total(add(live, 2, sequence_id=7)) == 3
    assert live.metric("farthing_sequences_active", model="sum") == 1
    assert total(add(live, 3, sequence_id=7, sequence_end=True)) == 6
    assert live.metric("farthing_sequences_active", model="sum") == 0
    refused = add(live, 4, sequence_id=7)
    assert refused.status == 400
    assert refused.error.startswith(
        "inference request for sequence 7 to model 'sum' must specify the START flag on the first request of the "
        "sequence"
    )


@pytest.mark.parametrize("parameters", [{}, {"sequence_id": 0}, {"sequence_id": "", "sequence_start": True}])
def test_without_an_id_there_is_no_sequence(live: Live, parameters: dict[str, Any]) -> None:
    refused = add(live, 1, **parameters)
    assert refused.status == 400
    assert "must specify a non-zero or non-empty correlation ID" in refused.error


def test_beyond_slots_and_queue_the_answer_says_when_to_come_back(live: Live) -> None:
    add(live, 1, sequence_id=1, sequence_start=True)
    second, third = (send_only(live, sequence_id=n, sequence_start=True, sequence_end=True) for n in (2, 3))
    eventually(lambda: waiting(live) == 2)
    assert live.metric("farthing_sequences_backlog", model="sum") == 2
    refused = add(live, 1, sequence_id=4, sequence_start=True)
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) >= 1
    third.socket.close()
    eventually(lambda: waiting(live) == 1)
    assert total(add(live, 1, sequence_id=1, sequence_end=True)) == 2
    assert total(second.read_reply()) == 1
    eventually(lambda: waiting(live) == 0)
    assert live.metric("farthing_sequences_backlog", model="sum") == 0
