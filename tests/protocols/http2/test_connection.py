"""The rules of HTTP/2, kept and enforced, without a socket."""

import random

import pytest
from tests.protocols.http2.peer import END, END_HEADERS, FIRST, LAST, POST, Peer, frames_of

from farthing.protocols.http2 import PREFACE, ErrorCode
from farthing.protocols.http2.frames import (
    UINT32,
    Flag,
    FrameType,
    Setting,
    frame,
    ping,
    rst_stream,
    settings,
    window_update,
)
from farthing.protocols.http2.limits import ALLOWANCE_FRAMES, CONNECTION_WINDOW_BYTES, FRAME_BYTES, STREAM_WINDOW_BYTES

DATA, HEADERS, CONTINUATION = FrameType.DATA, FrameType.HEADERS, FrameType.CONTINUATION


def body_of(found: list, stream: int = 1) -> bytes:
    return b"".join(part.payload for part in found if part.kind == DATA and part.stream == stream)


def test_a_request_is_answered_with_head_body_and_trailers() -> None:
    peer = Peer()
    head, body, last = peer.send(peer.request(1, b"hello")).read()
    assert peer.fields(head) == {":status": "200", "content-type": "application/grpc"}
    assert (body.kind, body.payload) == (DATA, b"hello")
    assert peer.fields(last) == {"grpc-status": "0"}
    assert last.flags == END | END_HEADERS
    assert peer.handler.over == {1: True}
    assert not peer.connection.streams


def test_what_repeats_costs_a_byte_a_field_and_means_the_same() -> None:
    peer = Peer()
    first = peer.send(peer.request(1)).read()
    second = peer.send(peer.request(3)).read()
    third = peer.send(peer.request(5)).read()
    assert [len(found.payload) for found in third] == [len(found.payload) for found in second] == [2, 0, 1]
    for answer in (first, second, third):
        assert peer.fields(answer[0])[":status"] == "200"
        assert peer.fields(answer[2]) == {"grpc-status": "0"}
    assert peer.handler.heads[3] is not peer.handler.heads[1]  # its block changed the table
    assert peer.handler.heads[5] is peer.handler.heads[3]


def test_a_block_is_not_remembered_beyond_the_table_it_was_read_with() -> None:
    peer = Peer()
    odd = [*POST, ("x", "1")]
    peer.send(peer.headers(1, fields=odd), peer.headers(3, fields=odd), peer.headers(5, fields=odd))
    same = peer.encoder.encode(odd)
    peer.send(peer.headers(7, fields=[*POST, ("x", "2")]))  # a new entry: every index above moves
    peer.send(frame(HEADERS, END_HEADERS, 9, same))
    assert peer.handler.heads[5].fields[b"x"] == b"1"
    assert peer.handler.heads[7].fields[b"x"] == b"2"
    assert 9 not in peer.handler.heads  # read anew, it is no request any more


@pytest.mark.parametrize("cut", range(1, 9))
def test_where_bytes_are_cut_makes_no_difference(cut: int) -> None:
    whole, pieces = Peer(greets=False), Peer(greets=False)
    data = PREFACE + settings({}) + whole.request(1, b"abc") + whole.request(3, b"defg") + ping(b"12345678")
    expected = whole.send(data).read()
    for at in range(0, len(data), cut):
        pieces.send(data[at : at + cut])
    assert [(f.kind, f.stream, f.payload) for f in pieces.read()] == [(f.kind, f.stream, f.payload) for f in expected]
    assert pieces.handler.bodies == {1: b"abc", 3: b"defg"}


def test_padding_and_priority_are_passed_over() -> None:
    peer = Peer()
    block = peer.encoder.encode(POST)
    padded = bytes((3,)) + bytes(5) + block + bytes(3)
    flags = END_HEADERS | Flag.PADDED | Flag.PRIORITY
    body = bytes((2,)) + b"hi" + bytes(2)
    peer.send(frame(HEADERS, flags, 1, padded), frame(DATA, END | Flag.PADDED, 1, body))
    assert peer.handler.bodies == {1: b"hi"}
    assert body_of(peer.read()) == b"hi"


def test_a_header_block_may_come_in_pieces_but_nothing_between_them() -> None:
    peer = Peer()
    block = peer.encoder.encode(POST)
    pieces = [frame(HEADERS, END, 1, block[:5]), frame(CONTINUATION, 0, 1, block[5:9])]
    peer.send(*pieces, frame(CONTINUATION, END_HEADERS, 1, block[9:]))
    assert peer.handler.whole == [1]
    other = Peer()
    assert other.send(*pieces, ping(bytes(8))).ended() == ErrorCode.PROTOCOL_ERROR


def test_our_own_blocks_are_cut_to_the_client_s_frames() -> None:
    peer = Peer(answers=False)
    peer.send(peer.request(1))
    stream = peer.handler.streams[1]
    stream.connection.end(stream, FIRST, (b"x", b"y" * 40_000))
    parts = peer.read()
    assert [part.kind for part in parts] == [HEADERS, CONTINUATION, CONTINUATION]
    assert [part.flags for part in parts] == [END, 0, END_HEADERS]
    block = b"".join(part.payload for part in parts)
    assert dict(peer.decoder.decode(block))["x"] == "y" * 40_000


def test_trailers_end_a_request() -> None:
    peer = Peer()
    peer.send(peer.headers(1), frame(DATA, 0, 1, b"ab"), peer.headers(1, END | END_HEADERS, [("x", "y")]))
    assert peer.handler.whole == [1]


def test_a_client_that_still_sends_is_told_to_stop_when_it_has_its_answer() -> None:
    peer = Peer(answers=False)
    peer.send(peer.headers(1), frame(DATA, 0, 1, b"ab"))
    stream = peer.handler.streams[1]
    stream.connection.end(stream, FIRST)
    assert [part.kind for part in peer.read()] == [HEADERS, FrameType.RST_STREAM]
    peer.send(frame(DATA, END, 1, b"late"))
    assert peer.ended() is None
    assert peer.handler.bodies == {1: b"ab"}


def test_a_reset_ends_a_request_and_nothing_more_is_said_about_it() -> None:
    peer = Peer(answers=False)
    peer.send(peer.request(1), rst_stream(1, ErrorCode.CANCEL))
    assert peer.handler.over == {1: False}
    stream = peer.handler.streams[1]
    stream.connection.respond(stream, FIRST, b"too late", LAST)
    assert peer.read() == []


# -- windows -------------------------------------------------------------------------------------------------------------


def test_an_answer_waits_for_the_client_s_windows() -> None:
    peer = Peer()
    answer = bytes(range(256)) * 400
    peer.send(settings({Setting.INITIAL_WINDOW_SIZE: 10}), peer.headers(1))
    for at in range(0, len(answer), 16_000):
        peer.send(frame(DATA, 0, 1, answer[at : at + 16_000]))
    peer.send(frame(DATA, END, 1))
    found = body_of(peer.read())
    assert len(found) == 10
    peer.send(window_update(1, 70_000))
    found += body_of(peer.read())
    assert len(found) == 65_535  # the connection's
    peer.send(window_update(0, 1 << 20))
    found += body_of(peer.read())
    assert len(found) == 70_010
    peer.send(settings({Setting.INITIAL_WINDOW_SIZE: 50_000}))
    last = peer.read()
    assert found + body_of(last) == answer
    assert last[-1].flags & END
    assert peer.handler.over == {1: True}
    assert peer.connection.unsent_bytes == 0


def test_a_window_may_become_negative_and_comes_back() -> None:
    peer = Peer()
    peer.send(peer.headers(1), frame(DATA, END, 1, bytes(60_000)))
    peer.send(window_update(0, 1 << 20)).read()
    peer.send(settings({Setting.INITIAL_WINDOW_SIZE: 1000}), peer.headers(3), frame(DATA, END, 3, bytes(2000)))
    assert len(body_of(peer.read(), 3)) == 1000
    peer.send(settings({Setting.INITIAL_WINDOW_SIZE: 100}))
    peer.send(window_update(3, 500))
    assert body_of(peer.read(), 3) == b""
    peer.send(window_update(3, 401))
    assert len(body_of(peer.read(), 3)) == 1


def test_waiting_answers_take_turns() -> None:
    peer = Peer(answers=False)
    peer.send(settings({Setting.INITIAL_WINDOW_SIZE: 1 << 20}), peer.request(1), peer.request(3)).read()
    peer.connection.is_held = True
    for stream in peer.handler.streams.values():
        peer.connection.respond(stream, FIRST, bytes(60_000), LAST)
    peer.connection.is_held = False
    peer.send(window_update(0, 1 << 20))
    peer.connection.pump()
    data = [part.stream for part in peer.read() if part.kind == DATA]
    assert data[:4] == [1, 3, 1, 3]


def test_an_answer_is_held_while_the_socket_takes_no_more() -> None:
    peer = Peer(answers=False)
    peer.send(peer.request(1)).read()
    peer.connection.is_held = True
    peer.connection.respond(peer.handler.streams[1], FIRST, b"hello", LAST)
    assert body_of(peer.read()) == b""
    assert peer.connection.unsent_bytes == 5
    peer.connection.is_held = False
    peer.connection.pump()
    assert body_of(peer.read()) == b"hello"


def test_a_client_gets_window_as_its_body_is_taken_and_none_before() -> None:
    peer = Peer(answers=False)
    peer.handler.data = lambda stream, data, is_last: None  # type: ignore[method-assign] # takes nothing
    peer.send(peer.headers(1))
    for _ in range(STREAM_WINDOW_BYTES // FRAME_BYTES):
        peer.send(frame(DATA, 0, 1, bytes(FRAME_BYTES)))
    assert peer.read() == []
    stream = peer.handler.streams[1]
    peer.connection.take(stream, STREAM_WINDOW_BYTES)
    (more,) = peer.read()
    assert (more.stream, UINT32.unpack(more.payload)[0]) == (1, STREAM_WINDOW_BYTES)


def test_the_connection_s_window_is_given_back_by_itself() -> None:
    peer = Peer()
    sent = 0
    for stream in range(1, 200, 2):
        peer.send(peer.request(stream, bytes(FRAME_BYTES)))
        sent += FRAME_BYTES
    given = sum(UINT32.unpack(f.payload)[0] for f in peer.read() if f.kind == FrameType.WINDOW_UPDATE)
    assert sent - CONNECTION_WINDOW_BYTES // 2 <= given <= sent


# -- what ends a connection, or a stream -----------------------------------------------------------------------------------


def overflow(peer: Peer) -> bytes:
    peer.handler.data = lambda stream, data, is_last: None  # type: ignore[method-assign]
    return peer.headers(1) + frame(DATA, 0, 1, bytes(FRAME_BYTES)) * (STREAM_WINDOW_BYTES // FRAME_BYTES + 1)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (lambda peer: frame(99, 0, 0, bytes(FRAME_BYTES + 1)), ErrorCode.FRAME_SIZE_ERROR),
        (lambda peer: peer.headers(2), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: peer.headers(0), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (lambda peer: frame(HEADERS, END_HEADERS, 1, b"\xbe"), ErrorCode.COMPRESSION_ERROR),
        (lambda peer: frame(HEADERS, END_HEADERS | Flag.PADDED, 1, b"\xff\x82"), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: frame(HEADERS, END_HEADERS | Flag.PRIORITY, 1, b"\x82"), ErrorCode.FRAME_SIZE_ERROR),
        (lambda peer: frame(CONTINUATION, END_HEADERS, 1, b"\x82"), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: frame(DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: window_update(0, 0x7FFFFFFF), ErrorCode.FLOW_CONTROL_ERROR),
        (lambda peer: window_update(7, 1), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: frame(FrameType.WINDOW_UPDATE, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
        (lambda peer: rst_stream(5, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: frame(FrameType.RST_STREAM, 0, 1, b"123"), ErrorCode.FRAME_SIZE_ERROR),
        (lambda peer: frame(FrameType.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: frame(FrameType.SETTINGS, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
        (lambda peer: frame(FrameType.SETTINGS, Flag.ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (lambda peer: settings({Setting.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: settings({Setting.INITIAL_WINDOW_SIZE: 1 << 31}), ErrorCode.FLOW_CONTROL_ERROR),
        (lambda peer: settings({Setting.MAX_FRAME_SIZE: 100}), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: frame(FrameType.SETTINGS, 0, 0, bytes(6) * 100), ErrorCode.ENHANCE_YOUR_CALM),
        (lambda peer: frame(FrameType.PING, 0, 0, b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
        (lambda peer: frame(FrameType.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: frame(FrameType.PUSH_PROMISE, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: frame(FrameType.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        (lambda peer: frame(FrameType.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (lambda peer: frame(FrameType.GOAWAY, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (overflow, ErrorCode.FLOW_CONTROL_ERROR),
    ],
)
def test_a_broken_rule_ends_the_connection_with_its_code(wrong, code: ErrorCode) -> None:  # type: ignore[no-untyped-def]
    peer = Peer()
    peer.send(wrong(peer))
    assert peer.ended() == code
    assert all(not sent for sent in peer.handler.over.values())
    assert not peer.connection.streams
    peer.send(peer.request(99))  # nothing is read any more
    assert 99 not in peer.handler.heads


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01", PREFACE[:20] + b"xxxx", PREFACE + ping(bytes(8))]
)
def test_strangers_are_not_served(first: bytes) -> None:
    assert Peer(greets=False).send(first).ended() == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "fields",
    [
        POST[1:],
        POST[:2],
        [*POST, (":path", "/x")],
        [*POST, (":status", "200")],
        [("x", "y"), *POST],
        [*POST, ("Upper", "x")],
        [*POST, ("connection", "close")],
        [*POST, ("te", "gzip")],
        [*POST, ("transfer-encoding", "chunked")],
        [],
    ],
)
def test_a_malformed_request_is_reset_and_the_others_go_on(fields: list[tuple[str, str]]) -> None:
    peer = Peer()
    peer.send(peer.headers(1, END | END_HEADERS, fields), peer.request(3))
    found = peer.read()
    assert found[0].kind == FrameType.RST_STREAM
    assert found[0].payload == UINT32.pack(ErrorCode.PROTOCOL_ERROR)
    assert peer.handler.whole == [3]


def test_data_after_the_end_of_a_request_resets_it() -> None:
    peer = Peer(answers=False)
    peer.send(peer.request(1), frame(DATA, 0, 1, b"more"))
    (reset,) = peer.read()
    assert reset.payload == UINT32.pack(ErrorCode.STREAM_CLOSED)
    assert peer.handler.over == {1: False}


def test_streams_over_the_limit_are_refused_and_may_be_tried_again() -> None:
    peer = Peer(answers=False, streams_max=2)
    peer.send(peer.request(1), peer.request(3), peer.request(5))
    (refused,) = peer.read()
    assert (refused.stream, refused.payload) == (5, UINT32.pack(ErrorCode.REFUSED_STREAM))
    peer.connection.respond(peer.handler.streams[1], FIRST, b"", LAST)
    peer.send(peer.request(7))
    assert peer.handler.whole == [1, 3, 7]


def test_a_request_with_too_much_metadata_says_so_and_one_with_twice_as_much_ends_the_connection() -> None:
    peer = Peer(header_list_bytes_max=1000)
    peer.send(peer.headers(1, fields=[*POST, ("x", "y" * 900)]))
    assert peer.handler.heads[1].is_too_large
    peer.send(peer.headers(3, fields=[*POST, ("x", "z" * 1900)]))
    assert peer.ended() == ErrorCode.ENHANCE_YOUR_CALM


def test_an_hpack_bomb_ends_the_connection_before_it_is_unpacked() -> None:
    peer = Peer()
    big = peer.encoder.encode([("x", "y" * 3900)])
    peer.send(frame(HEADERS, END_HEADERS, 1, big))
    index = b"\xbe"  # the newest entry of the table: 4 KB for a byte
    peer.send(frame(HEADERS, END_HEADERS, 3, index * 16_000))
    assert peer.ended() == ErrorCode.ENHANCE_YOUR_CALM


# -- floods --------------------------------------------------------------------------------------------------------------


def resets(peer: Peer, stream: int) -> bytes:
    return peer.request(stream) + rst_stream(stream, ErrorCode.CANCEL)


FLOODS = {
    "ping": lambda peer, i: ping(bytes(8)),
    "settings": lambda peer, i: settings({Setting.INITIAL_WINDOW_SIZE: i + 1}),
    "empty data": lambda peer, i: (peer.headers(1) if not i else b"") + frame(DATA, 0, 1),
    "padding": lambda peer, i: frame(FrameType.PRIORITY, 0, 1, bytes(5)),
    "window updates": lambda peer, i: window_update(0, 1),
    "unknown": lambda peer, i: frame(77, 0, 0, b"?"),
    "goaway": lambda peer, i: frame(FrameType.GOAWAY, 0, 0, bytes(8)),
    "rapid reset": lambda peer, i: resets(peer, 2 * i + 1),
    "made you reset": lambda peer, i: peer.request(2 * i + 1) + window_update(2 * i + 1, 0),
    "refused": lambda peer, i: peer.headers(2 * i + 1, END | END_HEADERS, [("x", "y")]),
    "continuation": lambda peer, i: frame(HEADERS, 0, 1, b"") if not i else frame(CONTINUATION, 0, 1, b""),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_frames_without_work_ends_the_connection(kind: str) -> None:
    peer = Peer(answers=False)
    sent = most = 0
    while not peer.connection.is_closing:
        peer.send(FLOODS[kind](peer, sent))
        sent += 1
        most = max(most, len(peer.connection.streams), len(peer.connection.out))
        assert sent < 3 * ALLOWANCE_FRAMES
        if peer.connection.is_closing:
            break
        peer.read()
    assert sent >= ALLOWANCE_FRAMES // 2
    assert peer.ended() == ErrorCode.ENHANCE_YOUR_CALM
    assert most <= 3
    assert not peer.connection.streams


def test_clients_that_let_themselves_be_served_may_ping_and_cancel_for_ever() -> None:
    peer = Peer()
    for stream in range(1, 8 * ALLOWANCE_FRAMES, 4):
        peer.send(peer.request(stream, b"x"), ping(bytes(8)), window_update(0, 1), resets(peer, stream + 2))
        peer.read()
    assert not peer.connection.is_closing


def test_a_client_may_take_in_a_large_answer_frame_by_frame_after_all_of_it_came() -> None:
    peer = Peer(answers=False)
    peer.send(settings({Setting.INITIAL_WINDOW_SIZE: 1 << 30}), window_update(0, 1 << 30), peer.request(1))
    stream = peer.handler.streams[1]
    peer.connection.begin(stream, FIRST)
    peer.connection.write(stream, bytes(32 << 20))
    frames = sum(part.kind == DATA for part in peer.read())
    assert frames > ALLOWANCE_FRAMES
    for _ in range(frames):
        peer.send(window_update(0, 16_384), window_update(1, 16_384))
    assert not peer.connection.is_closing
    peer.connection.end(stream, LAST)
    assert peer.handler.over == {1: True}


def test_time_alone_lets_a_quiet_client_ping() -> None:
    peer = Peer()
    for _ in range(3 * ALLOWANCE_FRAMES):
        peer.now_s += 0.05
        peer.send(ping(bytes(8)))
        peer.read()
    assert not peer.connection.is_closing


# -- the end -------------------------------------------------------------------------------------------------------------


def test_a_graceful_end_serves_what_began_and_nothing_newer() -> None:
    peer = Peer(answers=False)
    peer.send(peer.request(1))
    peer.connection.announce_end()
    peer.send(peer.request(3))
    peer.connection.end_when_idle()
    first, second = (f for f in peer.read() if f.kind == FrameType.GOAWAY)
    assert UINT32.unpack(first.payload[:4])[0] == 2**31 - 1
    assert UINT32.unpack(second.payload[:4])[0] == 3
    peer.send(peer.request(5))
    assert peer.handler.whole == [1, 3]
    for stream in peer.handler.streams.values():
        peer.connection.respond(stream, FIRST, b"y", LAST)
    assert peer.handler.over == {1: True, 3: True}
    assert len([f for f in peer.read() if f.flags & END and f.kind == HEADERS]) == 2


def test_whoever_writes_is_woken_once_for_answers_that_come_later() -> None:
    peer = Peer(answers=False)
    peer.send(peer.request(1), peer.request(3)).read()
    assert peer.wakes == 0
    for stream in peer.handler.streams.values():
        peer.connection.respond(stream, FIRST, b"y", LAST)
    assert peer.wakes == 1
    peer.read()


def test_the_first_word_is_our_settings() -> None:
    peer = Peer(greets=False)
    first, second = frames_of(b"".join(peer.connection.take_out()))
    assert (first.kind, second.kind) == (FrameType.SETTINGS, FrameType.WINDOW_UPDATE)


def test_table_sizes_a_client_allows_are_kept_to_and_announced() -> None:
    peer = Peer()
    generator = random.Random(4)
    for stream in range(1, 400, 2):
        sizes = [generator.choice((0, 40, 100, 4096, 70_000)) for _ in range(generator.randrange(3))]
        for size in sizes:
            peer.decoder.max_allowed_table_size = size
            peer.send(settings({Setting.HEADER_TABLE_SIZE: size}))
        if sizes:
            peer.decoder.max_allowed_table_size = sizes[-1]
        peer.send(peer.request(stream))
        head, _, last = (f for f in peer.read() if f.kind in (HEADERS, DATA))
        assert peer.fields(head)[":status"] == "200"
        assert peer.fields(last) == {"grpc-status": "0"}
