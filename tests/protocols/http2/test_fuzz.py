"""Whatever bytes come: no exception, no leak, bounded memory; and an HTTP/2 client that is not ours is always right."""

import random
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocols.http2.peer import END, FIRST, LAST, POST, Peer

from farthing.protocols.http2 import PREFACE, Connection
from farthing.protocols.http2.frames import FrameType, frame, rst_stream, window_update
from farthing.protocols.http2.frames import settings as settings_frame
from farthing.protocols.http2.sending import OUT_BYTES_MAX

HEADERS, DATA = FrameType.HEADERS, FrameType.DATA


def check_integrity(peer: Peer) -> None:
    """What must be true of a connection whatever was said to it."""
    connection, handler = peer.connection, peer.handler
    assert connection.unsent_bytes == sum(stream.unsent_bytes for stream in connection.streams.values())
    assert connection.unsent_bytes >= 0
    assert handler.heads.keys() == connection.streams.keys() | handler.over.keys()
    assert not connection.streams.keys() & handler.over.keys()
    assert len(connection.streams) <= 1024
    for stream in connection.streams.values():
        assert stream.receive_window >= 0
        assert (stream.unsent_bytes > 0) == bool(stream.unsent)
    if connection.is_closing:
        assert not connection.streams
    assert sum(map(len, connection.out)) <= OUT_BYTES_MAX + (1 << 20)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6), st.booleans())
def test_arbitrary_bytes_do_no_harm(pieces: list[bytes], has_preface: bool) -> None:
    peer = Peer(greets=has_preface)
    for piece in pieces:
        peer.send(piece)
        check_integrity(peer)
        peer.read()


FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from([0, 0, 1, 1, 3, 5, 7, 2, 2**31 - 1]),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([bytes(4), bytes(8), b"\0\0\0\1", b"\x7f\xff\xff\xff", b"\0\4\0\0\0\x10", b"\0\1\0\0\0\0"]),
        st.integers(0, 5000).map(bytes),
    ),
)
MOVES = st.one_of(
    FRAMES.map(lambda data: ("raw", data)),
    st.tuples(st.just("request"), st.integers(0, 20), st.binary(max_size=50)),
    st.tuples(st.just("answer"), st.integers(0, 20), st.integers(0, 200_000)),
    st.tuples(st.just("part"), st.integers(0, 20), st.integers(0, 70_000)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("window"), st.integers(0, 20), st.integers(1, 100_000)),
    st.tuples(st.just("held"), st.booleans()),
)


def play(peer: Peer, move: tuple) -> None:  # type: ignore[type-arg]
    connection = peer.connection
    if move[0] == "raw":
        peer.send(move[1])
        return
    stream_id = 2 * int(move[1]) + 1
    stream = peer.handler.streams.get(stream_id)
    if move[0] == "request":
        peer.send(peer.request(stream_id, move[2]))
    elif move[0] == "window":
        peer.send(window_update(0, move[2]), window_update(stream_id, move[2]))
    elif move[0] == "held":
        connection.is_held = move[1]
        connection.pump()
    elif stream is not None and move[0] == "answer":
        connection.respond(stream, FIRST, bytes(move[2]), LAST)
    elif stream is not None and move[0] == "part" and not stream.has_ended_out:
        connection.begin(stream, FIRST)
        connection.write(stream, bytes(move[2]))
    elif stream is not None and move[0] == "cancel":
        peer.send(rst_stream(stream_id, 8)) if move[1] % 2 else connection.cancel(stream, 8)


@settings(max_examples=300, deadline=None)
@given(st.lists(MOVES, max_size=30))
def test_frames_of_every_kind_and_answers_of_every_size_keep_the_books_right(moves: list[tuple]) -> None:  # type: ignore[type-arg]
    peer = Peer(answers=False)
    for move in moves:
        play(peer, move)
        check_integrity(peer)
        peer.read()
    peer.connection.lost()
    check_integrity(peer)
    assert peer.connection.unsent_bytes == 0


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_honest_traffic_with_a_few_bytes_changed_does_no_harm(seed: int, changes: int) -> None:
    generator = random.Random(seed)
    source = Peer(greets=False)
    data = bytearray(PREFACE + settings_frame({}))
    for stream in range(1, 21, 2):
        data += source.headers(stream, fields=[*POST, ("x", str(stream % 3))])
        data += frame(DATA, END, stream, generator.randbytes(generator.randrange(200)))
        data += generator.choice([b"", window_update(0, 5), frame(FrameType.PING, 0, 0, bytes(8))])
    for _ in range(changes):
        data[generator.randrange(len(PREFACE), len(data))] = generator.randrange(256)
    peer = Peer(greets=False)
    at = 0
    while at < len(data):
        size = generator.randrange(1, 200)
        peer.send(bytes(data[at : at + size]))
        check_integrity(peer)
        peer.read()
        at += size


class Independent:
    """The `h2` library as a client; it fails on anything from us that breaks a rule."""

    def __init__(self, server: Connection, window: int, frame_bytes: int) -> None:
        self.server = server
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.client.initiate_connection()
        codes = h2.settings.SettingCodes
        self.client.update_settings({codes.INITIAL_WINDOW_SIZE: window, codes.MAX_FRAME_SIZE: frame_bytes})
        self.bodies: dict[int, bytes] = {}
        self.trailers: dict[int, dict[bytes, bytes]] = {}
        self.unacknowledged: dict[int, int] = {}

    def exchange(self) -> None:
        """Everything said on either side reaches the other."""
        while True:
            sent = self.client.data_to_send()
            if sent:
                self.server.receive(sent, 0.0)
            if self.server.can_pump:
                self.server.pump()
            got = b"".join(self.server.take_out())
            if not got and not sent:
                return
            for event in self.client.receive_data(got) if got else ():
                if isinstance(event, h2.events.DataReceived):
                    self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                    count = self.unacknowledged.get(event.stream_id, 0) + event.flow_controlled_length
                    self.unacknowledged[event.stream_id] = count
                elif isinstance(event, h2.events.TrailersReceived):
                    self.trailers[event.stream_id] = {bytes(n): bytes(v) for n, v in event.headers}
                assert not isinstance(event, h2.events.ConnectionTerminated | h2.events.StreamReset)

    def read_some(self, choose: Callable[[], bool]) -> None:
        """Takes in what was received, of some streams."""
        for stream, count in list(self.unacknowledged.items()):
            if count and choose():
                self.client.acknowledge_received_data(count, stream)
                self.unacknowledged[stream] = 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_another_implementation_gets_every_byte_through_the_narrowest_windows(seed: int) -> None:
    generator = random.Random(seed)
    peer = Peer(greets=False)
    window = generator.choice([1, 100, 5000, 65_535, 1 << 20])
    other = Independent(peer.connection, window, generator.choice([16_384, 20_000, 1 << 20]))
    other.exchange()
    wanted: dict[int, bytes] = {}
    streams = range(1, 2 * generator.randrange(1, 12), 2)
    fields = [(name, value) for name, value in POST]
    for stream in streams:
        wanted[stream] = body = generator.randbytes(
            generator.choice([0, 1, 50, 20_000, 40 * window if window < 200 else 9])
        )
        other.client.send_headers(stream, [*fields, ("x", str(generator.randrange(3)))])
        sent = 0
        while sent < len(body):
            size = min(
                other.client.local_flow_control_window(stream), other.client.max_outbound_frame_size, len(body) - sent
            )
            assert size > 0
            other.client.send_data(stream, body[sent : sent + size])
            sent += size
            if generator.random() < 0.3:
                other.exchange()
        other.client.end_stream(stream)
        if generator.random() < 0.5:
            other.exchange()
    for _ in range(100_000):
        other.exchange()
        if len(other.trailers) == len(wanted):
            break
        other.read_some(lambda: generator.random() < 0.7)
    assert {stream: other.bodies.get(stream, b"") for stream in wanted} == wanted
    assert all(fields[b"grpc-status"] == b"0" for fields in other.trailers.values())
    check_integrity(peer)
    assert not peer.connection.streams
    assert peer.handler.over == dict.fromkeys(wanted, True)
