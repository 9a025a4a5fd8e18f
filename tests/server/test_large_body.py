"""Bodies that are received straight into their memory, over real sockets and with clients of every temper."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models import identity, save
from tests.serving import Live, eventually, infer_json, request, serving

from farthing.config.server import AdmissionLimits, HttpLimits
from farthing.server.large_body import ALIGNMENT, HEAD_ROOM_BYTES, LARGE_BYTES, room_for

LIVE = request("GET", "/v2/health/live")
PATH = "/v2/models/wide/infer"
WIDTH = 1024
VALUES = np.arange((LARGE_BYTES // 4 // WIDTH + 1) * WIDTH, dtype=np.float32).reshape(-1, WIDTH)


def repository(folder: Path) -> Path:
    save(folder / "wide", identity(shape=("batch", WIDTH)))
    return folder


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(repository(tmp_path_factory.mktemp("wide"))) as server:
        yield server


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose patience with slow bodies is short."""
    limits = HttpLimits(body_timeout_s=0.15, body_bytes_per_s_min=64 << 20)
    with serving(repository(tmp_path_factory.mktemp("tight")), limits=limits) as server:
        yield server


def binary(**headers: str) -> bytes:
    """An inference whose input is a large binary tensor behind JSON of an odd length."""
    tensor = VALUES.tobytes()
    item = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(VALUES.shape),
        "parameters": {"binary_data_size": len(tensor)},
    }
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    head += b" " * (1 - len(head) % 2)
    return request("POST", PATH, head + tensor, Inference_Header_Content_Length=str(len(head)), **headers)


def echoed(reply: Any) -> bool:
    start = int(reply.headers["inference-header-content-length"])
    return bool(np.array_equal(np.frombuffer(reply.body[start:], np.float32).reshape(VALUES.shape), VALUES))


def bytes_under_way(live: Live) -> int:
    assert live.server is not None
    listener = live.server._listener
    return live.on_loop(lambda: listener.admission.bytes)


@given(st.integers(0, 1 << 16), st.integers(0, 1 << 12))
def test_the_first_tensor_lies_on_its_boundary(size: int, head_bytes: int) -> None:
    room = room_for(size, head_bytes)
    assert room.nbytes == size + 1
    address = np.frombuffer(room, np.uint8).__array_interface__["data"][0] if size else -head_bytes
    assert (address + head_bytes) % ALIGNMENT == 0


def test_large_bodies_come_whole_and_the_connection_goes_on(live: Live) -> None:
    with live.connect() as wire:
        for _ in range(3):
            assert echoed(wire.send(binary()).read_reply())
            assert wire.send(LIVE).read_reply().status == 200


def test_what_follows_a_large_body_may_have_any_size(live: Live) -> None:
    some = VALUES[: 3 * HEAD_ROOM_BYTES // VALUES.itemsize // WIDTH]
    with live.connect() as wire:
        for follower in (binary(), request("POST", PATH, infer_json(some.tolist())), LIVE, binary()):
            assert echoed(wire.send(binary()).read_reply())
            assert wire.send(follower).read_reply().status == 200


def test_large_json_is_json(live: Live) -> None:
    with live.connect() as wire:
        body = infer_json(VALUES.tolist(), id="big")
        assert len(body) > LARGE_BYTES
        assert wire.send(request("POST", PATH, body)).read_reply().json["id"] == "big"


def test_large_bodies_in_a_pipeline_are_answered_in_order(live: Live) -> None:
    with live.connect() as wire:
        wire.send(b"".join([LIVE, binary(X_Request_Id="a"), LIVE, LIVE, binary(X_Request_Id="b"), LIVE]))
        replies = [wire.read_reply() for _ in range(6)]
        assert [reply.status for reply in replies] == [200] * 6
        assert (replies[1].headers["x-request-id"], replies[4].headers["x-request-id"]) == ("a", "b")
        assert echoed(replies[1])
        assert echoed(replies[4])


@pytest.mark.parametrize("cut", [1, 100, 400, LARGE_BYTES // 2, LARGE_BYTES])
def test_it_does_not_matter_where_a_large_request_is_cut(live: Live, cut: int) -> None:
    whole = binary()
    with live.connect() as wire:
        wire.send(whole[:cut])
        assert live.get("/v2/health/live").status == 200  # a turn of the server in between
        assert echoed(wire.send(whole[cut:]).read_reply())


@pytest.mark.parametrize("size", [1, 2, 40])
def test_the_beginning_of_the_next_request_may_come_with_the_end_of_a_large_body(live: Live, size: int) -> None:
    whole = binary()
    with live.connect() as wire:
        for _ in range(3):  # the second and third in the hands of the receiver from their first byte on
            wire.send(whole[: LARGE_BYTES // 2])
            assert live.get("/v2/health/live").status == 200  # a turn of the server in between
            wire.send(whole[LARGE_BYTES // 2 :] + LIVE[:size])
            assert echoed(wire.read_reply())
            assert wire.send(LIVE[size:]).read_reply().status == 200


def test_a_large_body_said_to_be_the_last_is(live: Live) -> None:
    with live.connect() as wire:
        assert echoed(wire.send(binary(Connection="close")).read_reply())
        assert wire.is_ended()


def test_a_client_that_leaves_within_a_large_body_is_forgotten(live: Live) -> None:
    before = bytes_under_way(live)
    with live.connect() as wire:
        wire.send(binary()[: LARGE_BYTES // 2])
        eventually(lambda: bytes_under_way(live) > before)
    eventually(lambda: bytes_under_way(live) == before)


def test_a_large_body_that_stops_is_408_and_what_comes_later_is_not_read_as_one(tight: Live) -> None:
    whole = binary()
    with tight.connect() as wire:
        wire.send(whole[: LARGE_BYTES // 2])
        reply = wire.read_reply()
        assert reply.status == 408
        assert "body did not arrive" in reply.error
        wire.send(whole[LARGE_BYTES // 2 :])
        assert wire.is_ended()
    eventually(lambda: bytes_under_way(tight) == 0)


@pytest.mark.parametrize("is_in_parts", [False, True])
def test_large_bodies_beyond_what_fits_are_refused_and_those_before_answered(tmp_path: Path, is_in_parts: bool) -> None:
    whole = binary()
    admission = AdmissionLimits(inflight_bytes_max=3 * LARGE_BYTES // 2)
    with serving(repository(tmp_path), admission=admission) as live:
        with live.connect() as first, live.connect() as second:
            first.send(whole[:-1])
            eventually(lambda: bytes_under_way(live) > LARGE_BYTES)
            if is_in_parts:  # then what is too much comes straight into its memory
                before = bytes_under_way(live)
                second.send(whole[:1000])
                eventually(lambda: bytes_under_way(live) > before)
            reply = second.send(whole[1000 if is_in_parts else 0 :]).read_reply()
            assert reply.status == 503
            assert "inflight-bytes-max" in reply.error
            assert echoed(first.send(whole[-1:]).read_reply())
        eventually(lambda: bytes_under_way(live) == 0)
