"""A stream of frames over WebSocket: sent at their own pace, answered in order, dropped when they are worth nothing any
more.

One thread may send while another reads. Everything else that a server can be asked is `client.client`'s.
"""

import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, Self
from urllib.parse import quote, urlencode, urlsplit

from numpy.typing import ArrayLike
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from farthing.client.connection import Reply
from farthing.client.failure import error_of
from farthing.client.result import InferResult
from farthing.client.tensors import decode_response, encode_request
from farthing.types import errors

PREFIX_BYTES: Final = 4


class FrameResult(InferResult):
    """A frame's answer. One that was dropped has no outputs."""

    @property
    def frame(self) -> int:
        """Its number; frames of a stream are counted from 1."""
        return int(self.parameters["frame"])

    @property
    def status(self) -> str:
        """`ok`, `dropped` or `error`."""
        return str(self.parameters["frame_status"])

    @property
    def reason(self) -> str:
        """Why it was dropped: `superseded`, `late`, `overload`; else what went wrong with it, or empty."""
        return str(self.parameters.get("frame_reason", ""))

    @property
    def is_on_time(self) -> bool:
        """Whether it was answered by its deadline."""
        return bool(self.parameters.get("frame_on_time", False))


class Frames:
    """One stream; a context manager. Iterating gives answers in the order of the frames, until the stream ends."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: str = "",
        policy: str = "latest",
        deadline_ms: float = 0,
        queue_max: int = 0,
        outputs: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Opens it. Raises the error that the server refuses it with, or `Unavailable`."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        said = {"policy": policy}
        if deadline_ms:
            said["deadline_ms"] = f"{deadline_ms:.3f}"
        if queue_max:
            said["queue_max"] = str(queue_max)
        path = f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")
        is_tls = parts.scheme == "https"
        address = f"{'wss' if is_tls else 'ws'}://{parts.netloc}{parts.path.rstrip('/')}{path}/stream?{urlencode(said)}"
        self._outputs = tuple(outputs)
        self._timeout_s = timeout_s
        self.summary: dict[str, Any] = {}
        """What became of all frames, once the stream has ended: see the reference on frame streams."""
        self._open = ExitStack()
        try:
            self._socket = self._open.enter_context(
                connect(
                    address,
                    additional_headers=dict(headers or {}),
                    ssl=(tls or ssl.create_default_context()) if is_tls else None,
                    compression=None,
                    max_size=None,
                    open_timeout=timeout_s,
                )
            )
        except InvalidStatus as refused:
            response = refused.response
            told = {name.lower(): value for name, value in response.headers.raw_items()}
            raise error_of(Reply(response.status_code, told, bytearray(response.body or b""))) from None
        except (OSError, WebSocketException) as error:
            raise errors.Unavailable(
                f"{parts.netloc} cannot be reached: {error}", hint="is the server running?"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, inputs: Mapping[str, ArrayLike], *, request_id: str = "", deadline_ms: float = 0) -> None:
        """Sends the next frame, tensors as raw bytes; a deadline of its own goes before the stream's."""
        parameters = {"timeout": round(deadline_ms * 1000)} if deadline_ms else {}
        self._send(frame_bytes(inputs, self._outputs, parameters, request_id))

    def send_encoded(self, frame: bytes) -> None:
        """The same of a frame that `frame_bytes` has made before, for who has no time to make it now."""
        self._send(frame)

    def end(self) -> None:
        """Says that no more frames will come; what is under way is still answered, then `summary` is there."""
        self._send('{"command":"end"}')

    def __iter__(self) -> Iterator[FrameResult]:
        while (result := self.next()) is not None:
            yield result

    def next(self) -> FrameResult | None:
        """The next answer; None when the stream has ended. Raises `DeadlineExceeded` or `Unavailable`."""
        try:
            data = self._socket.recv(self._timeout_s)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"no answer within {self._timeout_s:g} s") from None
        except ConnectionClosed as closed:
            if self.summary:
                return None
            raise errors.Unavailable(f"the stream broke off: {closed}") from None
        if isinstance(data, bytes):
            size = int.from_bytes(data[:PREFIX_BYTES], "little")
            return _result(*decode_response(bytearray(data)[PREFIX_BYTES:], size))
        document = _parse(data)
        if "summary" in document:
            self.summary = document["summary"]
            return self.next()
        if "error" in document:
            parameters = {**document.get("parameters", {}), "frame_reason": document["error"]}
            return FrameResult({}, request_id=document.get("id", ""), parameters=parameters)
        return _result(*decode_response(bytearray(data.encode()), None))

    def close(self) -> None:
        """Closes the connection, whatever is under way."""
        self._open.close()

    def _send(self, message: str | bytes) -> None:
        try:
            self._socket.send(message)
        except ConnectionClosed as closed:
            raise errors.Unavailable(f"the stream broke off: {closed}") from None


def frame_bytes(
    inputs: Mapping[str, ArrayLike],
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    request_id: str = "",
) -> bytes:
    """A frame as its message: the length of the JSON, the JSON, raw tensors."""
    body, json_bytes = encode_request(inputs, outputs, parameters or {}, request_id, is_binary=True)
    assert json_bytes is not None
    return json_bytes.to_bytes(PREFIX_BYTES, "little") + body


def _result(document: Mapping[str, Any], outputs: Mapping[str, Any]) -> FrameResult:
    return FrameResult(
        outputs,
        model_name=document.get("model_name", ""),
        model_version=str(document.get("model_version", "")),
        request_id=document.get("id", ""),
        parameters=document.get("parameters"),
    )


def _parse(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.EngineFailed(f"the server's answer is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise errors.EngineFailed("the server's answer is not a JSON object")
    return document
