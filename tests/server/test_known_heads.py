"""Heads that are known change how long a request takes to read, and nothing else."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.serving import Live, infer_json, request

from farthing.config.server import AdmissionLimits, HttpLimits
from farthing.server.admission import Admission
from farthing.server.exchange import Exchange
from farthing.server.http1_reader import RequestReader
from farthing.server.known_heads import HEAD_BYTES_MAX, LUCK_MAX, KnownHead, KnownHeads
from farthing.server.listener import Listener
from farthing.telemetry.counters import HttpCounters
from farthing.types.errors import FarthingError

Event = tuple[Any, ...]


class _App:
    def handle(self, exchange: Exchange) -> None:
        raise AssertionError("nobody asks")


class _Taker:
    """A connection that notes what its reader tells it."""

    successor = None

    def __init__(self) -> None:
        self.is_last = False
        self.events: list[Event] = []
        self.transport = self

    def write(self, data: bytes) -> None:
        self.events.append(("written", data))

    def accept(self, exchange: Exchange) -> None:
        head = (exchange.method, exchange.path, exchange.query, dict(exchange.headers))
        body = (bytes(exchange.body), exchange.body_bytes)
        self.events.append((*head, *body, exchange.keep_alive, exchange.wish is None, exchange.refusal is None))

    def refuse(self, error: FarthingError) -> None:
        self.is_last = True
        self.events.append((type(error), error.message))

    def end_after_pending(self) -> None:
        self.is_last = True

    def abort(self) -> None:
        raise AssertionError("all that is wrong can be said")

    def data_received(self, data: bytes) -> None:
        raise AssertionError("only asked where another protocol is")

    eof_received = connection_lost = pause_writing = resume_writing = data_received
    send = begin = end = is_backed_up = count_body = switch = data_received


def _listener(inflight_bytes_max: int = 1 << 20) -> Listener:
    admission = Admission(AdmissionLimits(inflight_bytes_max=inflight_bytes_max))
    limits = HttpLimits(head_bytes_max=4096, body_bytes_max=1 << 20)
    return Listener(_App(), limits, admission, HttpCounters())  # type: ignore[arg-type]


def _read(listener: Listener, pieces: list[bytes], *, looks: bool = True) -> tuple[list[Event], bool]:
    taker = _Taker()
    reader = RequestReader(taker, listener)  # type: ignore[arg-type]
    if not looks:
        reader._luck = 0
    for piece in pieces:
        if not taker.is_last:
            taker.data_received = reader.feed  # type: ignore[method-assign]
            reader.feed(piece)
    return taker.events, reader.is_http_1_0()


_LINES = [
    "Accept: */*",
    "Connection: keep-alive",
    "Connection: close",
    "X-Request-Id: 7",
    "Expect: 100-continue",
    "Upgrade: h2c\r\nConnection: Upgrade",
    "Content-Type: text/plain ; x=\ty",
    "A:\r\nb: ",
]
_bodies = st.binary(max_size=12) | st.sampled_from([b"\r\n\r\n", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", b"\n\n"])


@st.composite
def _messages(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(["GET", "POST", "POST", "HEAD", "CONNECT"]))
    path = draw(st.sampled_from(["/v2", "/v2/models/m/infer", "/v2?x=1", "/?"]))
    version = draw(st.sampled_from(["1.1", "1.1", "1.1", "1.0"]))
    lines = draw(st.lists(st.sampled_from(_LINES), max_size=2, unique=True))
    lines += ["Host: a"] if draw(st.integers(0, 7)) else []
    body = draw(_bodies)
    match draw(st.sampled_from(["none", "length", "length", "length", "chunked", "short", "long"])):
        case "length":
            lines.append(f"Content-Length: {len(body)}")
        case "chunked":
            lines.append("Transfer-Encoding: chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        case "short":
            lines.append(f"Content-Length: {max(0, len(body) - 3)}")
        case "long":
            lines.append(f"Content-Length: {len(body) + 3}")
        case _:
            body = b""
    end = draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"]))
    before = draw(st.sampled_from([b"", b"", b"", b"\r\n", b"\r\n\r\n"]))
    return before + end.join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode() + body


@given(messages=st.lists(_messages(), min_size=1, max_size=5), cuts=st.data())
def test_what_is_read_is_the_same_whether_its_head_is_known_or_not(messages: list[bytes], cuts: st.DataObject) -> None:
    """Messages of every kind, one a piece, several a piece, or cut anywhere."""
    pieces = list(messages)
    for drawn in cuts.draw(st.lists(st.integers(0, len(pieces) - 1), max_size=2)):
        index = min(drawn, len(pieces) - 1)
        if cuts.draw(st.booleans()) and index + 1 < len(pieces):
            pieces[index : index + 2] = [pieces[index] + pieces[index + 1]]
        else:
            at = cuts.draw(st.integers(0, len(pieces[index])))
            pieces[index : index + 1] = [piece for piece in (pieces[index][:at], pieces[index][at:]) if piece]
    listener = _listener()
    for message in messages * 2:  # each on a connection of its own: now all heads that may be known are
        _read(listener, [message])
    assert _read(listener, pieces) == _read(_listener(), pieces, looks=False)


def test_a_head_that_came_before_is_found() -> None:
    listener = _listener()
    first, second = (request("POST", "/v2/models/m/infer?a=b", body) for body in (b"one", b"two"))
    [was], [found] = (_read(listener, [text])[0] for text in (first, second))
    assert len(listener.known_heads._heads) == 1
    assert found == (*was[:4], b"two", *was[5:])


def test_a_client_that_changes_its_version_is_known_by_the_last() -> None:
    listener = _listener()
    new = request("GET", "/v2")
    old = b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    are_old = [_read(listener, pieces)[1] for pieces in ([new], [old], [old, new], [new, old])]
    assert are_old == [False, True, False, True]


def test_what_holds_too_many_bytes_is_refused_with_a_known_head_too() -> None:
    listener = _listener(inflight_bytes_max=5)
    text = request("POST", "/v2", b"abc")
    refused = _read(listener, [text, text])[0][1]
    assert "hold 3 bytes" in refused[1]


def test_a_client_with_an_id_of_its_own_in_each_head_is_soon_left_alone() -> None:
    listener = _listener()
    pieces = [request("GET", "/v2", X_Request_Id=str(number)) for number in range(LUCK_MAX * 4)]
    assert len(_read(listener, pieces)[0]) == len(pieces)
    assert 0 < len(listener.known_heads._heads) <= LUCK_MAX


def test_long_heads_are_not_kept() -> None:
    heads = KnownHeads()
    for size in (HEAD_BYTES_MAX, HEAD_BYTES_MAX + 1):
        text = b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n"
        text %= b"a" * (size - len(text) + 2)
        heads.learn(text, KnownHead(b"GET", b"/", b"", {}, 0))
    assert [len(text) for text in heads._heads] == [HEAD_BYTES_MAX]


def test_answers_are_told_apart_though_their_heads_are_the_same(live: Live) -> None:
    """Through a real socket: the same head, another body each time."""
    with live.connect() as wire:
        for number in range(10, 99):
            reply = wire.ask("POST", "/v2/models/echo/infer", infer_json([[number, 1]]))
            assert reply.json["outputs"][0]["data"] == [number, 1]
