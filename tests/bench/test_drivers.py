"""Both drivers against servers whose behaviour is known. Times are only bounded from the side that no load can break."""

import socket
import threading
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bench.servers import ANSWER, Seen, Stall, answering, stream

from farthing.bench import records as noted
from farthing.bench.arrivals import OpenLoad, Process, arrivals
from farthing.bench.endpoint import Endpoint
from farthing.bench.figures import figures
from farthing.bench.load import Load, Message, Work
from farthing.bench.python_driver import PythonDriver
from farthing.bench.wire import http_message

native = pytest.importorskip("farthing.bench.native_driver", reason="no epoll here")


def message(text: str = "{}") -> Message:
    return http_message("POST", "/infer", "test", {}, text.encode())


ONE = Work(wire="http", chains=[[message()]], order=[0])
STREAM = Work(wire="stream", chains=[[message()]], order=[0])


@pytest.fixture(params=["native", "python"])
def carry_out(request):
    def run(port, load, work=ONE):
        if request.param == "native":
            return native.NativeDriver("127.0.0.1", port, work, load).run()
        return PythonDriver(Endpoint(kind="http", host="127.0.0.1", port=port), work, load).run()

    return run


def test_a_known_distribution_is_recovered(carry_out):
    delays = np.random.default_rng(1).permutation([0.002] * 400 + [0.03] * 150 + [0.1] * 50)
    with answering(lambda number: (float(delays[number]), ANSWER)) as port:
        found = carry_out(port, Load(connections=20, duration_s=30, requests_max=600))
    latency = np.sort(found.latency_s)
    assert found.is_answered.all()
    assert np.all(latency >= np.sort(delays)), "nothing is faster than the server"
    assert (latency >= 0.1).sum() >= 50
    assert (latency >= 0.03).sum() >= 200


def test_every_latency_lies_between_what_the_server_saw(carry_out):
    """On one connection the server's own clock bounds each: it had the request before, and wrote its answer after, and the
    next request came when this answer was there. So every percentile lies between the server's, whatever else ran.
    """
    delays = np.random.default_rng(2).permutation([0.001] * 60 + [0.006] * 30 + [0.02] * 10)
    seen = Seen()
    with answering(lambda number: (float(delays[number]), ANSWER), seen) as port:
        found = carry_out(port, Load(connections=1, duration_s=30, requests_max=100))
    came, left = np.array(seen.came_ns), np.array(seen.left_ns)
    assert np.all(found.sent_ns <= came)
    assert np.all(left <= found.end_ns)
    assert np.all(found.end_ns[:-1] <= came[1:])
    least = np.sort(left - came) / 1e9
    most = np.sort(np.concatenate([came[2:] - left[:-2], [10**15] * 2])) / 1e9
    told = figures(found, duration_s=30, warm_up_s=0)
    for percent in (50, 90):
        rank = percent - 1
        assert least[rank] <= told.latency.at(percent).value <= most[rank]


def test_a_stalling_server_shows_what_coordinated_omission_hides(carry_out):
    rate, stall = 400, 0.5
    with answering(Stall(0.2, stall)) as port:
        closed = carry_out(port, Load(connections=1, duration_s=1.2))
    with answering(Stall(0.2, stall)) as port:
        times = arrivals(OpenLoad(rate=rate, process=Process.CONSTANT), 1.2, 0)
        opened = carry_out(port, Load(connections=1, duration_s=1.2, arrivals_s=times))
    # Half of those meant to leave within the stall had half of it before them, or more.
    # A closed loop meets the stall once; on one connection no more than these can take so long, however slow the machine.
    assert 1 <= (closed.latency_s >= stall / 2).sum() <= closed.wall_s / (stall / 2)
    assert (opened.latency_s >= stall / 2).sum() >= rate * stall / 2 * 0.9
    # Measured from when they could leave, it is hidden.
    assert (opened.service_s >= stall / 2).sum() <= opened.wall_s / (stall / 2)
    assert opened.waited_for_connection >= rate * stall * 0.8


def test_every_way_to_fail_has_its_kind(carry_out):
    answers = {
        0: (0, b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\ntoo many!"),
        1: (0, None),
        2: (0, b"SSH-2.0-not-http-at-all\r\n\r\n"),
        3: (5, ANSWER),
    }
    with answering(lambda number: answers.get(number, (0, ANSWER))) as port:
        found = carry_out(port, Load(connections=1, duration_s=10, requests_max=6, timeout_s=0.3))
    assert found.status[0] == 503
    assert found.samples[503] == b"too many!"
    assert found.status[1] in (noted.CLOSED, noted.RESET)
    assert found.status[2] == noted.MALFORMED
    assert found.status[3] == noted.TIMEOUT
    assert found.status[4:].tolist() == [200, 200]
    gone = carry_out(port, Load(connections=1, duration_s=10, requests_max=2))
    assert gone.status.tolist() == [noted.CONNECT] * 2


def test_tokens_are_timed_and_counted(carry_out):
    answers = [
        stream(
            b'{"choices":[{"delta":{"role":"assistant","content":""}}]}',
            b'{"choices":[{"delta":{"content":"a \\"content\\":\\"b\\""}}]}',
            b'{"choices": [{"delta": {"content": "c"}}], "usage": null}',
            b'{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}}',
            b"[DONE]",
        ),
        stream(b'{"choices":[{"delta":{"content":"a"}}]}'),
        stream(b'{"error":{"message":"no"}}', b"[DONE]"),
        ANSWER,
    ]
    with answering(lambda number: (0, answers[number % 4])) as port:
        found = carry_out(port, Load(connections=1, duration_s=10, requests_max=4), STREAM)
    assert found.status.tolist() == [200, noted.STREAM_CUT, noted.STREAM_ERROR, noted.STREAM_CUT]
    assert found.tokens.tolist() == [2, 1, 0, 0]
    assert (found.prompt_tokens[0], found.completion_tokens[0], found.cached_tokens[0]) == (12, 7, 4)
    assert found.event_record.tolist() == [0, 0, 1]


def test_a_model_that_says_error_has_none(carry_out):
    answers = [
        stream(b'{"choices":[{"text":"error","logprobs":null}]}', b'{"error": null}', b"[DONE]"),
        stream(b'{"choices":[{"text":"error"}],"error" : {"message":"no"}}', b"[DONE]"),
    ]
    with answering(lambda number: (0, answers[number % 2])) as port:
        found = carry_out(port, Load(connections=1, duration_s=10, requests_max=2), STREAM)
    assert found.status.tolist() == [200, noted.STREAM_ERROR]
    assert found.tokens.tolist() == [1, 1]


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_answers_in_pieces_are_put_together(carry_out, cut):
    whole = stream(b'{"choices":[{"delta":{"content":"word"}}]}', b"[DONE]")
    pieces = [whole[at : at + cut] for at in range(0, len(whole), cut)]

    def serve(listener):
        wire, _ = listener.accept()
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.recv(1 << 16)
        for piece in pieces:
            wire.sendall(piece)
            if cut > 1:
                threading.Event().wait(0.001)
        wire.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        found = carry_out(listener.getsockname()[1], Load(connections=1, duration_s=5, requests_max=1), STREAM)
    assert (found.status.tolist(), found.tokens.tolist()) == ([200], [1])


def test_turns_of_a_session_follow_each_other_and_end_when_one_fails(carry_out):
    chains = [[message("a"), message("b"), message("c")], [message("d"), message("e")]]
    work = Work(wire="http", chains=chains, order=[0, 1])
    refused = b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n"
    with answering(lambda number: (0.001, refused if number == 3 else ANSWER)) as port:
        found = carry_out(port, Load(connections=1, duration_s=10, requests_max=7, pause_s=0.01), work)
    assert found.request.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert np.all(found.intended_ns[1:3] - found.end_ns[0:2] >= 0.009e9), "the pause was kept"


def test_an_open_load_sends_as_it_was_asked(carry_out):
    times = arrivals(OpenLoad(rate=200), 1.0, 3)
    with answering(lambda _number: (0.02, ANSWER)) as port:
        found = carry_out(port, Load(connections=64, duration_s=1.0, arrivals_s=times))
    assert len(found) == len(times)
    np.testing.assert_allclose((found.intended_ns - found.started_ns) / 1e9, times, atol=1e-6)
    assert np.all(found.sent_ns >= found.intended_ns)


def test_a_load_that_is_stopped_keeps_what_it_has():
    with answering(lambda number: (0 if number < 5 else 30, ANSWER)) as port:
        driver = native.NativeDriver("127.0.0.1", port, ONE, Load(connections=1, duration_s=60))
        threading.Timer(0.3, driver.stop).start()
        found = driver.run()
    assert found.status.tolist() == [200] * 5 + [noted.ABANDONED]


def test_a_server_that_is_not_there_ends_no_loop_early_and_overflows_none():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    times = np.linspace(0, 0.2, 20_000)
    load = Load(connections=2, duration_s=0.2, arrivals_s=times, timeout_s=0.3)
    found = native.NativeDriver("127.0.0.1", port, ONE, load).run()
    assert len(found) == 19_999, "the last one is due when the time is up"
    assert set(found.status.tolist()) == {noted.CONNECT, noted.TIMEOUT}


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PARTS = st.sampled_from(
    [HEAD, HEAD[:30], b"5\r\n", b"data: ", b'"usage": {"prompt_tokens": ', b"0\r\n\r\n", b"\n\n", b"ffffffffffffff\r\n"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PARTS | st.binary(max_size=40), max_size=12), st.sampled_from(["http", "stream", "grpc"]))
def test_whatever_a_server_says_is_an_answer_or_an_error(parts, wire):
    said = iter(parts)
    work = Work(wire=wire, chains=[[Message(data=message().data, head=b"\x83")]], order=[0])

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            with suppress(OSError):
                for part in said:
                    connection.sendall(part)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1 << 16)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        load = Load(connections=1, duration_s=5, requests_max=1, timeout_s=2)
        found = native.NativeDriver("127.0.0.1", listener.getsockname()[1], work, load).run()
        thread.join(5)
    assert len(found) == 1
    assert found.status[0] != 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"connections": 0}, "connections"),
        ({"duration_s": 0}, "durations"),
        ({"requests_max": 0}, "bounds"),
    ],
)
def test_the_native_loop_refuses_what_it_could_not_carry_out(change, said):
    with pytest.raises(ValueError, match=said):
        native.NativeDriver("127.0.0.1", 80, ONE, Load(**{"connections": 1, "duration_s": 1, **change}))
