"""The client: one method for each thing a server of the Open Inference Protocol can be asked."""

import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import quote

from numpy.typing import ArrayLike

from farthing.client.chat import ChatClient, Message, Piece
from farthing.client.connection import Connections, Reply
from farthing.client.failure import error_of
from farthing.client.result import InferResult, parse_server_timing
from farthing.client.tensors import decode_response, encode_request
from farthing.types import errors
from farthing.types.requests import Parameter

if TYPE_CHECKING:
    from farthing.client.frames import Frames

TIMEOUT_S: Final = 60.0
"""How long one answer may take; longer than the slowest sample model by far, shorter than a person's patience."""

HEADER_LENGTH: Final = "Inference-Header-Content-Length"


class Client:
    """Talks to one server; safe to share between threads, each of which gets a connection of its own."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._url, self._timeout_s, self._tls = url, timeout_s, tls
        self._connections = Connections(url, timeout_s, tls)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._chat = ChatClient(url, api_key=api_key or "", timeout_s=timeout_s, tls=tls)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._connections.close()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] | None = None,
        *,
        parameters: Mapping[str, Parameter] | None = None,
        timeout_us: int = 0,
        version: str = "",
        request_id: str = "",
    ) -> InferResult:
        """The model's outputs (all, or those named), tensors as raw bytes both ways.

        `timeout_us` is how long the request may wait on the server. Raises the error that the status stands for.
        """
        wanted = self._wanted(parameters, timeout_us)
        body, json_bytes = encode_request(inputs, outputs or (), wanted, request_id, is_binary=True)
        return self._infer(model, version, body, json_bytes)

    def infer_json(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] | None = None,
        *,
        parameters: Mapping[str, Parameter] | None = None,
        timeout_us: int = 0,
        version: str = "",
        request_id: str = "",
    ) -> InferResult:
        """As `infer`, with tensors as JSON both ways: for servers without the binary extension."""
        wanted = self._wanted(parameters, timeout_us)
        body, _ = encode_request(inputs, outputs or (), wanted, request_id, is_binary=False)
        return self._infer(model, version, body, None)

    def chat(self, model: str, messages: Sequence[Message], **fields: Any) -> Iterator[Piece]:
        """A language model's answer, as it comes; `fields` are those of OpenAI's chat completions."""
        return self._chat.ask(messages, model=model, **fields)

    def frames(
        self,
        model: str,
        *,
        version: str = "",
        policy: Literal["latest", "all"] = "latest",
        deadline_ms: float = 0,
        queue_max: int = 0,
        outputs: Sequence[str] = (),
    ) -> "Frames":
        """A stream of frames to a model (a Farthing server's): see `client.frames`. Raises what refuses it."""
        from farthing.client.frames import Frames  # few need it, and its library takes a while to import

        return Frames(
            self._url,
            model,
            version=version,
            policy=policy,
            deadline_ms=deadline_ms,
            queue_max=queue_max,
            outputs=outputs,
            headers=self._headers,
            timeout_s=self._timeout_s,
            tls=self._tls,
        )

    def live(self) -> bool:
        """Whether a server is there and making progress."""
        return self._is_ok("/v2/health/live")

    def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the server, or one model, can take requests."""
        return self._is_ok(f"{_model_path(model, version)}/ready" if model else "/v2/health/ready")

    def server(self) -> dict[str, Any]:
        """The server's name, version and extensions."""
        return self._get_object("GET", "/v2")

    def metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """A model's versions, platform, inputs and outputs."""
        return self._get_object("GET", _model_path(model, version))

    def config(self, model: str, version: str = "") -> dict[str, Any]:
        """A model's configuration, completed with what the server found out (Triton extension)."""
        return self._get_object("GET", f"{_model_path(model, version)}/config")

    def models(self) -> list[dict[str, Any]]:
        """Every model version with its state and, if it is not served, the reason (Triton extension)."""
        listed: list[dict[str, Any]] = _parse(self._ask("POST", "/v2/repository/index", b"{}"))
        return listed

    def statistics(self, model: str = "", version: str = "") -> list[dict[str, Any]]:
        """Counts and durations of one model or all (Triton extension)."""
        path = f"{_model_path(model, version)}/stats" if model else "/v2/models/stats"
        counted: list[dict[str, Any]] = self._get_object("GET", path)["model_stats"]
        return counted

    def load(self, model: str) -> None:
        """Loads or reloads a model, if the server lets us (Triton extension)."""
        self._ask("POST", f"/v2/repository/models/{quote(model, safe='')}/load", b"{}")

    def unload(self, model: str) -> None:
        """Unloads a model, if the server lets us (Triton extension)."""
        self._ask("POST", f"/v2/repository/models/{quote(model, safe='')}/unload", b"{}")

    def _wanted(self, parameters: Mapping[str, Parameter] | None, timeout_us: int) -> dict[str, Parameter]:
        return {**(parameters or {}), **({"timeout": timeout_us} if timeout_us else {})}

    def _infer(self, model: str, version: str, body: bytes, json_bytes: int | None) -> InferResult:
        headers = {"Content-Type": "application/json"}
        if json_bytes is not None:
            headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(json_bytes)}
        reply = self._ask("POST", f"{_model_path(model, version)}/infer", body, headers)
        length = reply.headers.get(HEADER_LENGTH.lower())
        if length is not None and not (length.isdecimal() and int(length) <= len(reply.body)):
            raise errors.EngineFailed(
                f"the server's answer says that {length!r} of its {len(reply.body)} bytes are JSON"
            )
        document, outputs = decode_response(reply.body, None if length is None else int(length))
        return InferResult(
            outputs,
            model_name=document.get("model_name", ""),
            model_version=str(document.get("model_version", "")),
            request_id=document.get("id", ""),
            parameters=document.get("parameters"),
            timing=parse_server_timing(reply.headers.get("server-timing", "")),
        )

    def _is_ok(self, path: str) -> bool:
        try:
            return self._connections.request("GET", path, None, self._headers).status == HTTPStatus.OK
        except errors.Unavailable:  # nobody there, or nobody answering: that is the answer
            return False

    def _get_object(self, method: str, path: str) -> dict[str, Any]:
        found: dict[str, Any] = _parse(self._ask(method, path, None))
        return found

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] = {"Content-Type": "application/json"},
    ) -> Reply:
        reply = self._connections.request(method, path, body, {**headers, **self._headers})
        if reply.status != HTTPStatus.OK:
            raise error_of(reply)
        return reply


def _model_path(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _parse(reply: Reply) -> Any:
    try:
        return json.loads(bytes(reply.body))
    except (ValueError, RecursionError) as error:
        raise errors.EngineFailed(f"the server's answer is not JSON: {error}") from error
