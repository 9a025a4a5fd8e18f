"""SIGTERM while clients keep asking: nothing accepted is lost, counted where it counts, at the clients."""

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import pytest
from tests.language import write_tiny_model
from tests.serving import Gate, eventually, infer_json, request, serve_process, small_repository

CONNECTIONS = 32
REQUEST = request("POST", "/v2/models/echo/infer", infer_json([[1, 2]]))


@dataclass
class Count:
    sent: int = 0
    answered: int = 0
    lost: int = 0
    refused: int = 0
    is_busy: asyncio.Event = field(default_factory=asyncio.Event)


async def keep_asking(address: tuple[str, int], count: Count) -> None:
    """One keep-alive connection after another, each used until the server says it ends, until nobody listens."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(*address)
        except ConnectionError:
            count.refused += 1
            return
        is_open = True
        while is_open:
            count.sent += 1
            writer.write(REQUEST)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
            except (ConnectionError, asyncio.IncompleteReadError):
                count.lost += 1
                break
            assert head.startswith(b"HTTP/1.1 200 OK"), head
            assert body.endswith(b'"data":[1.0,2.0]}]}')
            count.answered += 1
            if count.answered == 20 * CONNECTIONS:
                count.is_busy.set()
            is_open = b"Connection: close" not in head
        writer.close()


def test_no_request_is_lost(tmp_path: Path) -> None:
    with serve_process(tmp_path, small_repository(tmp_path / "models")) as live:
        count = Count()
        assert live.process is not None
        process = live.process

        async def ask_and_end() -> None:
            clients = asyncio.gather(*(keep_asking(live.address, count) for _ in range(CONNECTIONS)))
            await asyncio.wait_for(count.is_busy.wait(), 30)
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(clients, 30)

        asyncio.run(ask_and_end())
        assert process.wait(20) == 0
        assert count.lost == 0, count
        assert count.sent == count.answered > 20 * CONNECTIONS
        assert count.refused == CONNECTIONS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_under_way_is_waited_for_and_the_end_is_clean(tmp_path: Path, number: signal.Signals) -> None:
    gate = Gate(tmp_path / "model")
    with serve_process(tmp_path, gate.path) as live:
        wire = live.connect().send(gate.request(1))
        eventually(gate.seen)
        assert live.process is not None
        live.process.send_signal(number)
        eventually(lambda: live.log is not None and b"draining" in live.log.read_bytes())
        assert live.process.poll() is None
        gate.open()
        reply = wire.read_reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        wire.socket.close()
        assert live.process.wait(20) == 0


def test_a_second_signal_stops_now(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "model")
    with serve_process(tmp_path, gate.path) as live:
        wire = live.connect().send(gate.request(1))
        eventually(gate.seen)
        assert live.process is not None
        live.process.terminate()
        eventually(lambda: live.log is not None and b"draining" in live.log.read_bytes())
        live.process.terminate()
        assert live.process.wait(5) == 1
        assert wire.is_ended()
        gate.open()


def test_what_cannot_be_answered_in_time_is_given_up_and_told(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "model")
    with serve_process(tmp_path, gate.path, "--exit-timeout-secs", "0.2") as live:
        live.connect().send(gate.request(1))
        eventually(gate.seen)
        assert live.process is not None
        live.process.terminate()
        assert live.process.wait(5) == 1
        assert live.log is not None
        assert b"not every request could be answered within 0.2 s" in live.log.read_bytes()


SLOW = """
    import time
    from pathlib import Path
    from farthing import Tensor

    class Slow:
        inputs = [Tensor("x", "FP32", [1])]
        outputs = [Tensor("y", "FP32", [1])]

        def load(self, context):
            Path(__file__).with_name("loading").touch()
            time.sleep(600)

        def infer(self, inputs):
            return {}
"""


def test_a_signal_while_a_model_is_being_loaded_ends_it(tmp_path: Path) -> None:
    model = tmp_path / "slow.py"
    model.write_text(dedent(SLOW))
    command = [sys.executable, "-c", "from farthing.cli.main import main; main()", "serve", str(model)]
    with subprocess.Popen([*command, "--http", "127.0.0.1:0", "--no-grpc"], stderr=subprocess.DEVNULL) as process:
        try:
            eventually((tmp_path / "loading").exists)
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_streams_are_spoken_to_their_end(tmp_path: Path) -> None:
    """Many streams of a language model under way when the signal comes: each gets its `[DONE]`."""
    model = write_tiny_model(tmp_path / "tiny")
    body = json.dumps({"prompt": "hello", "max_tokens": 400, "ignore_eos": True, "stream": True, "n": 4}).encode()
    with serve_process(tmp_path, model) as live:
        assert live.process is not None
        wires = [live.connect() for _ in range(16)]
        for wire in wires:
            wire.send(request("POST", "/v1/completions", body))
        for wire in wires:
            assert wire.socket.recv(1)
        live.process.send_signal(signal.SIGTERM)
        for wire in wires:
            data = b""
            while more := wire.socket.recv(1 << 16):
                data += more
            assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert live.process.wait(20) == 0
