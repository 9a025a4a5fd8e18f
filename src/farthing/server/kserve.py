"""The KServe v2 endpoints: exchange to runtime and back, through `protocols.kserve`.

Everything about bytes is the protocol room's, everything about models the runtime's; what stands here is which
headers matter, and in which order things are asked.
"""

import asyncio
from functools import partial
from typing import Any, Final

import msgspec

from farthing import __version__
from farthing.config.model import config_json, parse_model_config
from farthing.protocols.compression import ENCODINGS_ACCEPTED, deflate, inflate, request_encoding, response_encoding
from farthing.protocols.kserve import (
    LoadRequest,
    WireLimits,
    check_outputs,
    decode_infer,
    encode_infer,
    encode_json,
    index_json,
    model_metadata,
    model_ready_json,
    parse_header_length,
    parse_index_request,
    parse_load_request,
    parse_unload_request,
    server_metadata,
    statistics_json,
)
from farthing.runtime.runtime import Runtime
from farthing.runtime.served import Served
from farthing.server.auth import Door
from farthing.server.exchange import JSON, Exchange
from farthing.server.forwarding import HeaderForwarding
from farthing.server.routes import Route
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import (
    FarthingError,
    InvalidInput,
    Unavailable,
    Unsupported,
    not_ready_error,
)
from farthing.types.requests import InferRequest, InferResponse

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "sequence",
    "statistics",
    "trace",
)
"""What we name in the server metadata: only what works (perf_analyzer acts on it)."""

BINARY: Final = b"application/octet-stream"
INLINE_CODING_BYTES_MAX: Final = 32 * 1024
"""Bodies up to this size are inflated and deflated on the event loop (gzip: up to 0.5 ms), larger ones on a thread."""

TIMEOUT_HEADER: Final = b"x-envoy-expected-rq-timeout-ms"
"""How long the proxy in front will wait for the whole answer, milliseconds (Envoy sets it by itself)."""
TIMEOUT_DIGITS_MAX: Final = 12
"""31 years."""


class KServe:
    """The handlers of one server."""

    def __init__(
        self,
        runtime: Runtime,
        body_bytes_max: int,
        *,
        not_ready_status: int,
        forwarding: HeaderForwarding | None = None,
    ) -> None:
        self._runtime = runtime
        self._not_ready = not_ready_error(not_ready_status)
        self._forwarding = forwarding
        self._limits = WireLimits(body_bytes_max=body_bytes_max)
        self._regions = runtime.regions
        self._timed: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._timed_text = _batch_timing(*self._timed)
        """What `Server-Timing` says of the batch that was answered last: all who rode in it are told the same."""
        self._server_metadata = encode_json(server_metadata("farthing", __version__, extensions(runtime)))

    def routes(self) -> list[Route]:
        """The lines of the table; both forms of a path, with and without a version."""
        get, post = b"GET", b"POST"
        table = [
            Route(get, "/v2", self.metadata, Door.INFERENCE, RouteClass.METADATA),
            Route(get, "/v2/models", self.models, Door.INFERENCE, RouteClass.METADATA),
            Route(get, "/v2/models/stats", self.statistics, Door.INFERENCE, RouteClass.STATISTICS),
            Route(post, "/v2/repository/index", self.index, Door.INFERENCE, RouteClass.REPOSITORY),
            Route(post, "/v2/repository/models/{m}/load", self.load, Door.CONTROL, RouteClass.REPOSITORY),
            Route(post, "/v2/repository/models/{m}/unload", self.unload, Door.CONTROL, RouteClass.REPOSITORY),
            Route(post, "/v2/repository/{r}/models/{m}/load", self.named_repository, Door.CONTROL, RouteClass.OTHER),
            Route(post, "/v2/repository/{r}/models/{m}/unload", self.named_repository, Door.CONTROL, RouteClass.OTHER),
            Route(post, "/v2/repository/{r}/index", self.named_repository, Door.INFERENCE, RouteClass.OTHER),
        ]
        for model in ("/v2/models/{m}", "/v2/models/{m}/versions/{v}"):
            table += [
                Route(post, f"{model}/infer", self.infer, Door.INFERENCE, RouteClass.INFER),
                Route(get, model, self.model_metadata, Door.INFERENCE, RouteClass.METADATA),
                Route(get, f"{model}/ready", self.model_ready, Door.OPEN, RouteClass.HEALTH),
                Route(get, f"{model}/config", self.config, Door.INFERENCE, RouteClass.CONFIG),
                Route(get, f"{model}/stats", self.statistics, Door.INFERENCE, RouteClass.STATISTICS),
            ]
        return table

    # -- inference -----------------------------------------------------------------------------------------------

    def infer(self, exchange: Exchange, model: str, version: str = "") -> Any:
        """`POST /v2/models/{m}[/versions/{v}]/infer`."""
        if b"content-encoding" in exchange.headers:
            return self._infer_coded(exchange, model, version)
        return self._infer(exchange, model, version)

    def _infer(self, exchange: Exchange, model: str, version: str) -> None:
        served = self._runtime.resolve(model, version)
        headers = exchange.headers
        body = exchange.body
        length = headers.get(b"inference-header-content-length")
        request = decode_infer(
            body,
            model_name=model,
            model_version=version,
            header_length=None if length is None else parse_header_length(length, len(body)),
            spec=served.spec_now,
            limits=self._limits,
            regions=self._regions,
        )
        if request.shared_bytes:
            exchange.connection.count_body(exchange, request.shared_bytes)
        if TIMEOUT_HEADER in headers:
            _shorten_timeout(request, headers[TIMEOUT_HEADER])
        if self._forwarding is not None:
            self._forwarding.forward(headers, request)
        request.tenant = exchange.tenant
        request.trace = exchange.trace
        rows, signature = served.check(request)
        check_outputs(request, served.spec)
        exchange.on_gone = served.submit(
            request, rows, signature, exchange.received_ns, partial(self._answer, exchange, request, served)
        )

    def _answer(
        self, exchange: Exchange, request: InferRequest, served: Served, answer: InferResponse | FarthingError
    ) -> None:
        if isinstance(answer, FarthingError):
            exchange.fail(answer)
            return
        try:
            body, header_length = encode_infer(answer, request, served.spec, self._regions)
        except FarthingError as error:
            exchange.fail(error)
            return
        timing = answer.timing
        timed = (timing.input_ns + timing.output_ns, timing.compute_ns, timing.batch_rows, timing.batch_requests)
        if timed != self._timed:
            self._timed, self._timed_text = timed, _batch_timing(*timed)
        headers = b"Server-Timing: queue;dur=%.3f%b" % (timing.queue_ns / 1e6, self._timed_text)
        content_type = JSON
        if header_length is not None:
            content_type = BINARY
            headers += b"Inference-Header-Content-Length: %d\r\n" % header_length
        if b"accept-encoding" in exchange.headers:
            self._respond_coded(exchange, body, content_type, headers)
        else:
            exchange.respond(200, body, content_type=content_type, headers=headers)

    # -- compression ---------------------------------------------------------------------------------------------

    async def _infer_coded(self, exchange: Exchange, model: str, version: str) -> None:
        try:
            encoding = request_encoding(exchange.headers[b"content-encoding"].decode("latin-1"))
        except Unsupported:
            exchange.reply_headers += b"Accept-Encoding: " + ENCODINGS_ACCEPTED.encode() + b"\r\n"
            raise
        if encoding != "identity":
            args = (exchange.body, encoding, self._limits.body_bytes_max)
            is_small = exchange.body_bytes <= INLINE_CODING_BYTES_MAX
            body = (
                inflate(*args) if is_small else await asyncio.get_running_loop().run_in_executor(None, inflate, *args)
            )
            if exchange.is_done:
                return  # the client left meanwhile
            exchange.replace_body(body)
        self._infer(exchange, model, version)

    def _respond_coded(self, exchange: Exchange, body: bytes | list[Any], content_type: bytes, headers: bytes) -> None:
        size = len(body) if isinstance(body, bytes) else sum(memoryview(part).nbytes for part in body)
        encoding = response_encoding(exchange.headers[b"accept-encoding"].decode("latin-1"), size)
        headers += b"Vary: Accept-Encoding\r\n"
        if encoding == "identity":
            exchange.respond(200, body, content_type=content_type, headers=headers)
            return
        headers += b"Content-Encoding: " + encoding.encode() + b"\r\n"
        if size <= INLINE_CODING_BYTES_MAX:
            exchange.respond(200, deflate(body, encoding), content_type=content_type, headers=headers)
            return

        def respond(future: "asyncio.Future[bytes]") -> None:
            exchange.respond(200, future.result(), content_type=content_type, headers=headers)

        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, deflate, body, encoding).add_done_callback(respond)

    # -- metadata ------------------------------------------------------------------------------------------------

    def metadata(self, exchange: Exchange) -> None:
        """`GET /v2`."""
        exchange.respond(200, self._server_metadata)

    def models(self, exchange: Exchange) -> None:
        """`GET /v2/models` (KServe's Python server has it)."""
        names = sorted({line.name for line in self._runtime.index()})
        exchange.respond(200, encode_json({"models": names}))

    def model_metadata(self, exchange: Exchange, model: str, version: str = "") -> None:
        """`GET /v2/models/{m}[/versions/{v}]`."""
        served = self._runtime.resolve(model, version)
        versions = [int(version)] if version else self._runtime.catalog.ready_versions(model)
        exchange.respond(200, encode_json(model_metadata(served.spec, versions)))

    def model_ready(self, exchange: Exchange, model: str, version: str = "") -> None:
        """`GET /v2/models/{m}[/versions/{v}]/ready`."""
        try:
            served = self._runtime.resolve(model, version)
        except Unavailable as error:
            raise self._not_ready(error.message, hint=error.hint, retry_after_s=error.retry_after_s) from None
        trouble = served.health()
        if trouble:
            raise self._not_ready(f"Model version not ready: {trouble}")
        exchange.respond(200, encode_json(model_ready_json(served.spec.name)))

    def config(self, exchange: Exchange, model: str, version: str = "") -> None:
        """`GET /v2/models/{m}[/versions/{v}]/config`."""
        exchange.respond(200, encode_json(config_json(self._runtime.resolve(model, version).config)))

    def statistics(self, exchange: Exchange, model: str = "", version: str = "") -> None:
        """`GET /v2/models/stats` and `GET /v2/models/{m}[/versions/{v}]/stats`."""
        exchange.respond(200, encode_json(statistics_json(self._runtime.statistics(model, version))))

    # -- the repository ------------------------------------------------------------------------------------------

    def index(self, exchange: Exchange) -> None:
        """`POST /v2/repository/index`."""
        asked = parse_index_request(exchange.body)
        exchange.respond(200, encode_json(index_json(self._runtime.index(only_ready=asked.ready))))

    async def load(self, exchange: Exchange, model: str) -> None:
        """`POST /v2/repository/models/{m}/load`."""
        await load_as_asked(self._runtime, model, parse_load_request(exchange.body))
        exchange.respond(200)

    async def unload(self, exchange: Exchange, model: str) -> None:
        """`POST /v2/repository/models/{m}/unload`."""
        parse_unload_request(exchange.body)
        await self._runtime.unload(model)
        exchange.respond(200)

    def named_repository(self, exchange: Exchange, repository: str, model: str = "") -> None:
        """`/v2/repository/{r}/...`: there is one repository, and it has no name."""
        raise Unsupported("naming a repository is not supported", hint="leave the repository's name out of the path")


def _batch_timing(around_ns: int, compute_ns: int, rows: int, requests: int) -> bytes:
    """The rest of a `Server-Timing` line, after how long the request has waited."""
    return b', batch;dur=%.3f;desc="%d rows of %d requests", compute;dur=%.3f\r\n' % (
        around_ns / 1e6,
        rows,
        requests,
        compute_ns / 1e6,
    )


def extensions(runtime: Runtime) -> tuple[str, ...]:
    """What this server can do beside the protocol itself."""
    return tuple(sorted((*EXTENSIONS, "system_shared_memory"))) if runtime.shared_memory.is_open else EXTENSIONS


async def load_as_asked(runtime: Runtime, model: str, asked: LoadRequest) -> None:
    """Loads a model the way a client asked for it. Raises as `Runtime.load` does."""
    config = None
    if asked.config:
        config = parse_model_config(msgspec.json.decode(asked.config), source="parameters.config")
    await runtime.load(model, config, asked.files)


def timeout_us(said: bytes) -> int:
    """What `TIMEOUT_HEADER` says. Raises `InvalidInput`."""
    if not said.isdigit() or len(said) > TIMEOUT_DIGITS_MAX:
        raise InvalidInput(
            f"{TIMEOUT_HEADER.decode()}: `{said[:32].decode('latin-1')}` is not a number of milliseconds"
        )
    return int(said) * 1000


def _shorten_timeout(request: InferRequest, said: bytes) -> None:
    asked_us = timeout_us(said)
    if asked_us > 0 and (not request.timeout_us or asked_us < request.timeout_us):
        request.timeout_us = asked_us
