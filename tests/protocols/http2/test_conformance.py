"""RFC 9113 and RFC 7541, rule by rule: what a server must do when a client keeps a rule, bends it, or breaks it.

A case says what the client sends after its preface; what must come of it is an error of the connection (GOAWAY with that
code), an error of the stream (RST_STREAM), or nothing, and then the next request is still answered. Where the RFC leaves
a choice, ours is what the case says. Numbers are sections of RFC 9113; those under `hpack` of RFC 7541.
"""

from collections.abc import Callable
from typing import Final

import pytest
from tests.protocols.http2.peer import END, END_HEADERS, FIRST, LAST, POST, Frame, Peer

from farthing.protocols.http2 import PREFACE, ErrorCode
from farthing.protocols.http2.frames import UINT32, Flag, FrameType, Setting, frame, ping, rst_stream, settings
from farthing.protocols.http2.frames import window_update as window
from farthing.protocols.http2.limits import FRAME_BYTES

DATA, HEADERS, CONTINUATION = FrameType.DATA, FrameType.HEADERS, FrameType.CONTINUATION
PADDED, PRIORITY = int(Flag.PADDED), int(Flag.PRIORITY)
RESERVED: Final = 1 << 31

Sends = Callable[[Peer], bytes]


def setting(number: int, value: int) -> bytes:
    return frame(FrameType.SETTINGS, 0, 0, number.to_bytes(2, "big") + value.to_bytes(4, "big"))


def block(peer: Peer) -> bytes:
    """A request's whole header block."""
    return bytes(peer.encoder.encode(POST))


def dependency(stream: int) -> bytes:
    return UINT32.pack(stream) + b"\x10"


FINE: dict[str, Sends] = {
    "4.1 a frame of an unknown type": lambda p: frame(0x42, 0xFF, 0, b"whatever"),
    "4.1 an unknown frame on a stream that is idle": lambda p: frame(0x42, 0, 3, b"whatever"),
    "4.1 flags nobody knows, on PING": lambda p: frame(FrameType.PING, 0x16, 0, bytes(8)),
    "4.1 the reserved bit of a stream's number": lambda p: frame(FrameType.PING, 0, RESERVED, bytes(8)),
    "4.2 a frame as large as may be": lambda p: p.headers(1) + frame(DATA, END, 1, bytes(FRAME_BYTES)),
    "4.2 HEADERS of the default largest size": lambda p: frame(
        HEADERS, END_HEADERS | END | PADDED, 1, b"\xff" + block(p) + bytes(255)
    ),
    "5.1 PRIORITY on a stream that is idle": lambda p: frame(FrameType.PRIORITY, 0, 9, dependency(0)),
    "5.1 PRIORITY on a stream that is closed": lambda p: p.request(1) + frame(FrameType.PRIORITY, 0, 1, dependency(0)),
    "5.1 WINDOW_UPDATE on a stream that is closed": lambda p: p.request(1) + window(1, 1),
    "5.1 RST_STREAM on a stream that is closed": lambda p: p.request(1) + rst_stream(1, ErrorCode.CANCEL),
    "5.1.1 numbers may be left out": lambda p: p.request(1) + p.request(7),
    "5.3 HEADERS with a priority": lambda p: frame(
        HEADERS, END_HEADERS | END | PRIORITY, 1, dependency(RESERVED | 3) + block(p)
    ),
    "5.5 a setting nobody knows": lambda p: setting(0xFF, 7),
    "6.1 DATA with padding": lambda p: p.headers(1) + frame(DATA, END | PADDED, 1, b"\x05abc" + bytes(5)),
    "6.1 DATA that is all padding": lambda p: p.headers(1) + frame(DATA, END | PADDED, 1, b"\x05" + bytes(5)),
    "6.1 empty DATA": lambda p: p.headers(1) + frame(DATA, 0, 1) + frame(DATA, END, 1),
    "6.2 HEADERS with padding": lambda p: frame(HEADERS, END_HEADERS | END | PADDED, 1, b"\x03" + block(p) + bytes(3)),
    "6.2 HEADERS that end the stream": lambda p: p.headers(1, END | END_HEADERS),
    "6.5 settings may be empty": lambda p: settings({}),
    "6.5 settings are acknowledged to us": lambda p: frame(FrameType.SETTINGS, int(Flag.ACK), 0),
    "6.5.2 ENABLE_PUSH 0": lambda p: settings({Setting.ENABLE_PUSH: 0}),
    "6.5.2 the largest window": lambda p: settings({Setting.INITIAL_WINDOW_SIZE: (1 << 31) - 1}),
    "6.5.2 the largest frame": lambda p: settings({Setting.MAX_FRAME_SIZE: (1 << 24) - 1}),
    "6.5.2 no header list at all": lambda p: settings({Setting.MAX_CONCURRENT_STREAMS: 0}),
    "6.5.3 the same setting twice": lambda p: frame(
        FrameType.SETTINGS,
        0,
        0,
        b"".join((4).to_bytes(2, "big") + size.to_bytes(4, "big") for size in (100, 1 << 16)),
    ),
    "6.7 an answer to a PING nobody sent": lambda p: ping(b"12345678", is_ack=True),
    "6.8 GOAWAY with words": lambda p: frame(FrameType.GOAWAY, 0, 0, UINT32.pack(0) + UINT32.pack(0) + b"bye"),
    "6.9 WINDOW_UPDATE with the reserved bit": lambda p: window(0, RESERVED | 1),
    "6.10 CONTINUATION, again and again": lambda p: _continued(p),  # noqa: PLW0108 # it stands below
    "7 RST_STREAM with a code nobody knows": lambda p: (
        p.headers(1) + frame(FrameType.RST_STREAM, 0, 1, UINT32.pack(0xFF))
    ),
    "7 GOAWAY with a code nobody knows": lambda p: frame(FrameType.GOAWAY, 0, 0, UINT32.pack(0) + UINT32.pack(0xFF)),
    "8.1 trailers": lambda p: (
        p.headers(1) + frame(DATA, 0, 1, b"x") + p.headers(1, END | END_HEADERS, [("checksum", "1")])
    ),
    "8.2 an empty value": lambda p: p.headers(1, END | END_HEADERS, [*POST, ("x", "")]),
    "8.2.2 te: trailers": lambda p: p.headers(1, END | END_HEADERS, [*POST, ("te", "trailers")]),
    "8.2.3 cookies in pieces": lambda p: p.headers(1, END | END_HEADERS, [*POST, ("cookie", "a=1"), ("cookie", "b=2")]),
    "8.1.1 a content-length that is right": lambda p: (
        p.headers(1, END_HEADERS, [*POST, ("content-length", "4")])
        + frame(DATA, 0, 1, b"ab")
        + frame(DATA, END, 1, b"cd")
    ),
    "hpack 4.2 a smaller table, said at the beginning of a block": lambda p: _with_table(p, 0) + p.request(1),
    "hpack 4.2 a table that comes and goes": lambda p: (
        p.request(1) + _with_table(p, 64) + p.request(3) + _with_table(p, 4096) + p.request(5)
    ),
    "hpack 6.2 a field never to be remembered": lambda p: frame(
        HEADERS, END_HEADERS | END, 1, block(p) + b"\x10\x01x\x01y"
    ),
}


def _continued(peer: Peer) -> bytes:
    whole = block(peer)
    parts = [frame(CONTINUATION, 0, 1, whole[at : at + 1]) for at in range(3, len(whole))]
    return frame(HEADERS, END, 1, whole[:3]) + b"".join(parts) + frame(CONTINUATION, END_HEADERS, 1)


def _with_table(peer: Peer, size: int) -> bytes:
    """From its next block on, the client's table is of that size."""
    peer.encoder.header_table_size = size
    return b""


P, F, S, C = (
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.FRAME_SIZE_ERROR,
    ErrorCode.STREAM_CLOSED,
    ErrorCode.COMPRESSION_ERROR,
)
FLOW: Final = ErrorCode.FLOW_CONTROL_ERROR

BREAKS: dict[str, tuple[Sends, ErrorCode]] = {
    "4.2 DATA larger than may be": (lambda p: p.headers(1) + frame(DATA, 0, 1, bytes(FRAME_BYTES + 1)), F),
    "4.2 HEADERS larger than may be": (lambda p: frame(HEADERS, END_HEADERS, 1, bytes(FRAME_BYTES + 1)), F),
    "4.3 a block that is none": (lambda p: frame(HEADERS, END_HEADERS, 1, b"\x40\x01"), C),
    "4.3 a frame of another stream within a block": (
        lambda p: frame(HEADERS, 0, 1, block(p)[:3]) + frame(FrameType.PRIORITY, 0, 3, dependency(0)),
        P,
    ),
    "4.3 DATA within a block": (lambda p: frame(HEADERS, 0, 1, block(p)[:3]) + frame(DATA, 0, 1, b"x"), P),
    "4.3 PING within a block": (lambda p: frame(HEADERS, 0, 1, block(p)[:3]) + ping(bytes(8)), P),
    "5.1 DATA on a stream that is idle": (lambda p: frame(DATA, END, 1, b"x"), P),
    "5.1 RST_STREAM on a stream that is idle": (lambda p: rst_stream(1, ErrorCode.CANCEL), P),
    "5.1 WINDOW_UPDATE on a stream that is idle": (lambda p: window(1, 1), P),
    "5.1 CONTINUATION on a stream that is idle": (lambda p: frame(CONTINUATION, END_HEADERS, 1, block(p)), P),
    "5.1 CONTINUATION on a stream that is half closed": (
        lambda p: p.headers(1, END | END_HEADERS) + frame(CONTINUATION, END_HEADERS, 1, b""),
        P,
    ),
    "5.1.1 an even number": (lambda p: p.headers(2), P),
    "5.1.1 a number below the last": (lambda p: p.request(5) + p.headers(3), P),
    "5.5 an unknown frame within a block": (
        lambda p: frame(HEADERS, 0, 1, block(p)[:3]) + frame(0x42, 0, 0, b"whatever"),
        P,
    ),
    "6.1 DATA without a stream": (lambda p: frame(DATA, 0, 0, b"x"), P),
    "6.1 more padding than there is DATA": (lambda p: p.headers(1) + frame(DATA, PADDED, 1, b"\x04abc"), P),
    "6.1 DATA with no room for its padding's length": (lambda p: p.headers(1) + frame(DATA, PADDED, 1), P),
    "6.2 HEADERS without a stream": (lambda p: p.headers(0), P),
    "6.2 HEADERS of another stream within a block": (
        lambda p: frame(HEADERS, 0, 1, block(p)[:3]) + frame(HEADERS, END_HEADERS, 3, b""),
        P,
    ),
    "6.2 more padding than there is HEADERS": (
        lambda p: frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + block(p)[:5]),
        P,
    ),
    "6.2 HEADERS with no room for their priority": (
        lambda p: frame(HEADERS, END_HEADERS | PRIORITY, 1, b"\0\0"),
        F,
    ),
    "6.3 PRIORITY without a stream": (lambda p: frame(FrameType.PRIORITY, 0, 0, dependency(0)), P),
    "6.3 PRIORITY of another length": (lambda p: frame(FrameType.PRIORITY, 0, 1, bytes(4)), F),
    "6.4 RST_STREAM without a stream": (lambda p: frame(FrameType.RST_STREAM, 0, 0, bytes(4)), P),
    "6.4 RST_STREAM of another length": (
        lambda p: p.headers(1) + frame(FrameType.RST_STREAM, 0, 1, bytes(3)),
        F,
    ),
    "6.5 an acknowledgement with something in it": (
        lambda p: frame(FrameType.SETTINGS, int(Flag.ACK), 0, bytes(6)),
        F,
    ),
    "6.5 SETTINGS on a stream": (lambda p: frame(FrameType.SETTINGS, 0, 1), P),
    "6.5 SETTINGS of another length": (lambda p: frame(FrameType.SETTINGS, 0, 0, bytes(5)), F),
    "6.5.2 ENABLE_PUSH 2": (lambda p: settings({Setting.ENABLE_PUSH: 2}), P),
    "6.5.2 a window over the largest": (lambda p: settings({Setting.INITIAL_WINDOW_SIZE: 1 << 31}), FLOW),
    "6.5.2 a frame size under the smallest": (lambda p: settings({Setting.MAX_FRAME_SIZE: (1 << 14) - 1}), P),
    "6.5.2 a frame size over the largest": (lambda p: settings({Setting.MAX_FRAME_SIZE: 1 << 24}), P),
    "6.6 PUSH_PROMISE from a client": (lambda p: frame(FrameType.PUSH_PROMISE, END_HEADERS, 1, bytes(4)), P),
    "6.7 PING on a stream": (lambda p: frame(FrameType.PING, 0, 1, bytes(8)), P),
    "6.7 PING of another length": (lambda p: frame(FrameType.PING, 0, 0, bytes(7)), F),
    "6.8 GOAWAY on a stream": (lambda p: frame(FrameType.GOAWAY, 0, 1, bytes(8)), P),
    "6.9 no window at all": (lambda p: window(0, 0), P),
    "6.9 WINDOW_UPDATE of another length": (lambda p: frame(FrameType.WINDOW_UPDATE, 0, 0, bytes(3)), F),
    "6.9.1 more window than there can be": (lambda p: window(0, 0x7FFFFFFF), FLOW),
    "6.10 CONTINUATION without a stream": (
        lambda p: frame(HEADERS, 0, 1, block(p)[:3]) + frame(CONTINUATION, END_HEADERS, 0, b""),
        P,
    ),
    "6.10 CONTINUATION after the end of a block": (lambda p: p.headers(1) + frame(CONTINUATION, END_HEADERS, 1), P),
    "6.10 CONTINUATION after DATA": (
        lambda p: p.headers(1) + frame(DATA, 0, 1, b"x") + frame(CONTINUATION, END_HEADERS, 1),
        P,
    ),
    "6.10 HEADERS instead of CONTINUATION": (
        lambda p: frame(HEADERS, 0, 1, block(p)[:3]) + frame(HEADERS, END_HEADERS, 1, b""),
        P,
    ),
    "hpack 2.3.3 an index that there is not": (lambda p: frame(HEADERS, END_HEADERS | END, 1, b"\xff\x80\x01"), C),
    "hpack 4.2 a change of the table at the end of a block": (
        lambda p: frame(HEADERS, END_HEADERS | END, 1, block(p) + b"\x20"),
        C,
    ),
    "hpack 5.2 padding longer than 7 bits": (
        lambda p: frame(HEADERS, END_HEADERS | END, 1, b"\x00\x01x\x83\x1f\xff\xff"),
        C,
    ),
    "hpack 5.2 padding that is not all ones": (
        lambda p: frame(HEADERS, END_HEADERS | END, 1, b"\x00\x01x\x81\x18"),
        C,
    ),
    "hpack 5.2 the end of text within a text": (
        lambda p: frame(HEADERS, END_HEADERS | END, 1, b"\x00\x01x\x84\xff\xff\xff\xff"),
        C,
    ),
    "hpack 5.2 a text cut off": (lambda p: frame(HEADERS, END_HEADERS | END, 1, b"\x00\x05ab"), C),
    "hpack 6.1 index 0": (lambda p: frame(HEADERS, END_HEADERS | END, 1, b"\x80"), C),
    "hpack 6.3 a table larger than allowed": (
        lambda p: frame(HEADERS, END_HEADERS | END, 1, b"\x3f\xe1\x7f" + block(p)),
        C,
    ),
}

RESETS: dict[str, tuple[Sends, ErrorCode]] = {
    "5.1 DATA on a stream that is half closed": (lambda p: p.request(1) + frame(DATA, END, 1, b"x"), S),
    "5.1 HEADERS on a stream that is half closed": (lambda p: p.request(1) + p.headers(1, END | END_HEADERS), S),
    "6.9 no window for a stream": (lambda p: p.request(1) + window(1, 0), P),
    "6.9.1 more window than a stream can have": (lambda p: p.request(1) + window(1, 0x7FFFFFFF), FLOW),
    "8.1 a second head that does not end the request": (lambda p: p.headers(1) + p.headers(1), P),
    "8.1 a pseudo-header among trailers": (
        lambda p: p.headers(1) + p.headers(1, END | END_HEADERS, [(":path", "/"), ("x", "y")]),
        P,
    ),
    "8.2.1 a name in upper case": (lambda p: p.headers(1, END | END_HEADERS, [*POST, ("X", "y")]), P),
    "8.2.2 connection": (lambda p: p.headers(1, END | END_HEADERS, [*POST, ("connection", "keep-alive")]), P),
    "8.2.2 keep-alive": (lambda p: p.headers(1, END | END_HEADERS, [*POST, ("keep-alive", "1")]), P),
    "8.2.2 proxy-connection": (lambda p: p.headers(1, END | END_HEADERS, [*POST, ("proxy-connection", "x")]), P),
    "8.2.2 upgrade": (lambda p: p.headers(1, END | END_HEADERS, [*POST, ("upgrade", "h2c")]), P),
    "8.2.2 transfer-encoding": (lambda p: p.headers(1, END | END_HEADERS, [*POST, ("transfer-encoding", "x")]), P),
    "8.2.2 te: trailers, deflate": (
        lambda p: p.headers(1, END | END_HEADERS, [*POST, ("te", "trailers, deflate")]),
        P,
    ),
    "8.3 a pseudo-header nobody knows": (lambda p: p.headers(1, END | END_HEADERS, [(":test", "x"), *POST]), P),
    "8.3 a pseudo-header of answers": (lambda p: p.headers(1, END | END_HEADERS, [(":status", "200"), *POST]), P),
    "8.3 a pseudo-header behind others": (
        lambda p: p.headers(1, END | END_HEADERS, [*POST[:2], ("x", "y"), *POST[2:]]),
        P,
    ),
    "8.3.1 an empty path": (lambda p: p.headers(1, END | END_HEADERS, [*POST[:2], (":path", "")]), P),
    "8.3.1 no method": (lambda p: p.headers(1, END | END_HEADERS, POST[1:]), P),
    "8.3.1 no scheme": (lambda p: p.headers(1, END | END_HEADERS, [POST[0], *POST[2:]]), P),
    "8.3.1 no path": (lambda p: p.headers(1, END | END_HEADERS, [*POST[:2], *POST[3:]]), P),
    "8.3.1 two methods": (lambda p: p.headers(1, END | END_HEADERS, [POST[0], *POST]), P),
    "8.3.1 two schemes": (lambda p: p.headers(1, END | END_HEADERS, [POST[1], *POST]), P),
    "8.3.1 two paths": (lambda p: p.headers(1, END | END_HEADERS, [POST[2], *POST]), P),
    "8.1.1 less than the content-length": (
        lambda p: p.headers(1, END_HEADERS, [*POST, ("content-length", "4")]) + frame(DATA, END, 1, b"abc"),
        P,
    ),
    "8.1.1 more than the content-length": (
        lambda p: (
            p.headers(1, END_HEADERS, [*POST, ("content-length", "1")])
            + frame(DATA, 0, 1, b"a")
            + frame(DATA, END, 1, b"bc")
        ),
        P,
    ),
    "8.1.1 no body for a content-length": (
        lambda p: p.headers(1, END | END_HEADERS, [*POST, ("content-length", "1")]),
        P,
    ),
    "8.1.1 a content-length that is no number": (
        lambda p: p.headers(1, END | END_HEADERS, [*POST, ("content-length", "-1")]),
        P,
    ),
}


def resets(frames: list[Frame]) -> dict[int, int]:
    return {one.stream: UINT32.unpack(one.payload)[0] for one in frames if one.kind == FrameType.RST_STREAM}


@pytest.mark.parametrize("case", FINE)
def test_what_is_allowed_harms_nothing(case: str) -> None:
    peer = Peer()
    peer.send(FINE[case](peer))
    peer.read()
    peer.send(peer.request(99, b"still there?"))
    assert 99 in peer.handler.whole
    assert peer.ended() is None


@pytest.mark.parametrize("case", BREAKS)
def test_what_breaks_the_connection_is_told_by_its_code(case: str) -> None:
    sends, code = BREAKS[case]
    peer = Peer(answers=False)
    peer.send(sends(peer))
    assert peer.ended() == code
    assert not peer.connection.streams


@pytest.mark.parametrize("case", RESETS)
def test_what_breaks_a_request_resets_it_and_the_others_go_on(case: str) -> None:
    sends, code = RESETS[case]
    peer = Peer(answers=False)
    peer.send(sends(peer))
    assert resets(peer.read()) == {1: code}
    assert peer.handler.over.get(1, False) is False
    peer.send(peer.request(99, b"still there?"))
    assert 99 in peer.handler.whole
    assert peer.ended() is None


def test_3_4_the_preface_is_answered_with_settings_and_an_acknowledgement() -> None:
    peer = Peer(greets=False)
    found = peer.send(PREFACE, settings({})).read()
    assert [(one.kind, one.flags) for one in found if one.kind == FrameType.SETTINGS] == [
        (FrameType.SETTINGS, 0),
        (FrameType.SETTINGS, Flag.ACK),
    ]
    assert found[0].kind == FrameType.SETTINGS


@pytest.mark.parametrize("wrong", [b"INVALID", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", PREFACE[:-1] + b"x"])
def test_3_4_another_preface_is_refused(wrong: bytes) -> None:
    peer = Peer(greets=False)
    peer.send(wrong.ljust(24))
    assert peer.ended() == P


def test_3_4_the_first_frame_is_settings() -> None:
    peer = Peer(greets=False)
    peer.send(PREFACE, ping(bytes(8)))
    assert peer.ended() == P


def test_5_1_a_stream_that_was_reset_is_closed() -> None:
    for late in (lambda p: frame(DATA, END, 1, b"x"), lambda p: p.headers(1, END | END_HEADERS)):
        peer = Peer(answers=False)
        peer.send(peer.headers(1), rst_stream(1, ErrorCode.CANCEL), late(peer))
        found = peer.read()
        gone = [one for one in found if one.kind == FrameType.GOAWAY]
        codes = {*resets(found).values(), *(int.from_bytes(one.payload[4:8], "big") for one in gone)}
        # The RFC lets us reset, end, or pass over what was under way; it must not become a request.
        assert codes <= {S, P}
        assert peer.handler.whole == []


def test_5_1_2_more_streams_than_allowed_are_refused() -> None:
    peer = Peer(answers=False, streams_max=1)
    peer.send(peer.headers(1), peer.headers(3))
    assert resets(peer.read()) == {3: ErrorCode.REFUSED_STREAM}
    assert list(peer.handler.heads) == [1]


def test_5_4_1_nothing_follows_the_end_of_a_connection() -> None:
    peer = Peer()
    peer.send(window(0, 0), peer.request(1))
    assert peer.ended() == P
    assert peer.handler.heads == {}


def test_6_5_3_settings_take_effect_in_order_and_are_acknowledged() -> None:
    peer = Peer()
    both = b"".join((4).to_bytes(2, "big") + size.to_bytes(4, "big") for size in (100, 1))
    peer.send(frame(FrameType.SETTINGS, 0, 0, both), peer.request(1, b"abc"))
    found = peer.read()
    assert [one.flags for one in found if one.kind == FrameType.SETTINGS] == [Flag.ACK]
    assert [one.payload for one in found if one.kind == DATA] == [b"a"], "the last value counts"


def test_6_7_a_ping_comes_back_and_an_answer_does_not() -> None:
    peer = Peer()
    found = peer.send(ping(b"abcdefgh"), ping(b"12345678", is_ack=True)).read()
    assert [(one.kind, one.flags, one.payload) for one in found] == [(FrameType.PING, Flag.ACK, b"abcdefgh")]


def test_6_9_1_no_more_is_sent_than_the_windows_allow() -> None:
    peer = Peer(answers=False)
    peer.send(settings({Setting.INITIAL_WINDOW_SIZE: 1}), peer.request(1))
    peer.connection.respond(peer.handler.streams[1], FIRST, b"abc", LAST)
    assert [one.payload for one in peer.read() if one.kind == DATA] == [b"a"]
    assert [one.payload for one in peer.send(window(1, 1)).read() if one.kind == DATA] == [b"b"]


def test_6_9_2_a_window_follows_the_setting_and_may_become_negative() -> None:
    peer = Peer(answers=False)
    peer.send(settings({Setting.INITIAL_WINDOW_SIZE: 3}), peer.request(1))
    peer.connection.respond(peer.handler.streams[1], FIRST, b"abcdef", LAST)
    assert [one.payload for one in peer.read() if one.kind == DATA] == [b"abc"]
    assert [one for one in peer.send(settings({Setting.INITIAL_WINDOW_SIZE: 2})).read() if one.kind == DATA] == []
    assert [one for one in peer.send(window(1, 1)).read() if one.kind == DATA] == [], "the window is 0 now"
    assert [one.payload for one in peer.send(window(1, 1)).read() if one.kind == DATA] == [b"d"]
    assert [
        one.payload for one in peer.send(settings({Setting.INITIAL_WINDOW_SIZE: 9})).read() if one.kind == DATA
    ] == [b"ef"]
