"""Streams that break off, make no sense or tell of an error, read by the client."""

import socket
import threading
from collections.abc import Iterator

import pytest

from farthing.client.chat import ChatClient, Piece
from farthing.types.errors import EngineFailed, FarthingError, Overloaded, Unavailable

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
HELLO = b'data: {"choices":[{"index":0,"delta":{"content":"hel"}}]}\n\n'
REST = b'data: {"choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def ask(listener: socket.socket, answer: bytes) -> list[Piece]:
    """What the client makes of an answer that ends with the connection."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            asked = b""
            while not asked.endswith(b"}"):  # to its end: what is left unread would reset the connection
                asked += connection.recv(1 << 16)
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    client = ChatClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=5)
    return list(client.ask([{"role": "user", "content": "hi"}]))


def test_pieces_come_in_order_with_the_counts_last(listener: socket.socket) -> None:
    pieces = ask(listener, HEAD + b": ping\n\n" + HELLO + REST + USAGE + DONE)
    assert "".join(piece.text for piece in pieces) == "hello"
    assert (pieces[1].finish, pieces[-1].prompt_tokens, pieces[-1].completion_tokens) == ("stop", 3, 2)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (HEAD + HELLO, Unavailable, "hung up"),
        (HEAD + HELLO + b'data: {"error":{"message":"no\\nhint: wait"}}\n\n' + DONE, EngineFailed, "no"),
        (HEAD + b"data: nonsense\n\n", EngineFailed, "cannot be read"),
        (HEAD + b'data: {"choices":[{"delta":null}]}\n\n', EngineFailed, "cannot be read"),
        (HEAD + b"data: [1]\n\n", EngineFailed, "cannot be read"),
        (
            b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 30\r\n\r\n"
            + b'{"error":{"message":"too busy"}}'[:30],
            FarthingError,
            "503",
        ),
        (b'HTTP/1.1 503 No\r\nRetry-After: 7\r\n\r\n{"error":{"message":"too busy"}}', Overloaded, "too busy"),
        (b"nothing of the kind\r\n\r\n", Unavailable, "cannot be reached"),
    ],
)
def test_trouble_is_an_error_with_the_servers_words(
    listener: socket.socket, answer: bytes, kind: type[FarthingError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        ask(listener, answer)
