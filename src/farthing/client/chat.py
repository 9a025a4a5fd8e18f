"""A chat over OpenAI's API, word by word: for the terminal, the demo and tests.

One request is one connection; whoever stops reading (`close` of the iterator) hangs up, and the server stops working.
"""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from farthing.client.connection import Reply
from farthing.client.failure import error_of
from farthing.protocols.sse import Reader
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput, Unavailable

TIMEOUT_S: Final = 600.0
"""Between two pieces of an answer; servers send a sign of life every few seconds."""
READ_BYTES: Final = 1 << 16

Message = Mapping[str, str]


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """What came last: text, or how it ended. The last piece has the token counts, if the server gives them."""

    text: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatClient:
    """Talks to one server."""

    def __init__(
        self, url: str, *, api_key: str = "", timeout_s: float = TIMEOUT_S, tls: ssl.SSLContext | None = None
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidInput(f"`{url}` is not the address of a server", hint="write http://HOST:PORT")
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def models(self) -> list[str]:
        """Models that chat there."""
        connection = self._connect()
        try:
            response = self._ask(connection, "GET", "/v1/models", None)
            return [model["id"] for model in json.loads(response.read())["data"]]
        except (ValueError, LookupError, TypeError) as wrong:
            raise EngineFailed(f"the server's list of models cannot be read: {wrong!r}") from wrong
        finally:
            connection.close()

    def ask(self, messages: Sequence[Message], **fields: Any) -> Iterator[Piece]:
        """The answer, as it comes. `fields` are those of the API. Raises the error that the status stands for."""
        body = {"messages": list(messages), "stream": True, "stream_options": {"include_usage": True}, **fields}
        connection = self._connect()
        try:
            response = self._ask(connection, "POST", "/v1/chat/completions", json.dumps(body).encode())
            reader = Reader()
            while data := self._read(response):
                for event in reader.feed(data):
                    if event == b"[DONE]":
                        return
                    yield from _pieces(event)
            raise Unavailable("the server hung up in the middle of its answer")
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        try:
            connection.request(method, self._prefix + path, body, self._headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            where = f"{self._host}:{self._port}"
            raise Unavailable(f"{where} cannot be reached: {error}", hint="is the server running?") from error
        if response.status != HTTPStatus.OK:
            headers = {name.lower(): value for name, value in response.getheaders()}
            raise error_of(Reply(response.status, headers, bytearray(response.read())))
        return response

    @staticmethod
    def _read(response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read1(READ_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"the answer broke off: {error}") from error


def _pieces(event: bytes) -> Iterator[Piece]:
    try:
        chunk = json.loads(event)
        if error := chunk.get("error"):
            raise _told(error)
        for choice in chunk.get("choices", ()):
            text, finish = choice.get("delta", {}).get("content") or "", choice.get("finish_reason") or ""
            if text or finish:
                yield Piece(text=text, finish=finish)
        if usage := chunk.get("usage"):
            yield Piece(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
    except (ValueError, LookupError, TypeError, AttributeError) as wrong:
        raise EngineFailed(f"an event of the stream cannot be read: {wrong!r}") from wrong


def _told(error: Mapping[str, Any]) -> FarthingError:
    message, _, hint = str(error.get("message", error)).partition("\nhint: ")
    return EngineFailed(message, hint=hint)
