"""The KServe v2 RPCs: message to runtime and back, through `protocols.kserve_grpc`.

What `server.kserve` is to HTTP. Keys, deadlines and statuses belong to `server.grpc_calls` and `server.grpc_call`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from farthing import __version__
from farthing.protocols.kserve import (
    WireLimits,
    check_outputs,
    index_json,
    model_metadata,
    server_metadata,
    statistics_json,
)
from farthing.protocols.kserve_grpc import (
    SERVICE,
    asked_load,
    asked_unload,
    check_repository_name,
    config_message,
    decode_infer,
    encode_infer,
    message_class,
    message_of,
)
from farthing.runtime.runtime import Runtime
from farthing.runtime.served_streams import Streaming
from farthing.server.auth import Door
from farthing.server.forwarding import HeaderForwarding
from farthing.server.grpc_call import Call, Rpc
from farthing.server.grpc_stream_call import StreamCall
from farthing.server.grpc_streams import InferStream
from farthing.server.kserve import extensions, load_as_asked
from farthing.server.tracing import Tracing
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import FarthingError, NotFound, Unavailable, Unsupported
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse


class GrpcService:
    """The handlers of one server."""

    def __init__(
        self,
        runtime: Runtime,
        body_bytes_max: int,
        *,
        tracing: Tracing | None = None,
        forwarding: HeaderForwarding | None = None,
    ) -> None:
        self._runtime = runtime
        self._tracing = tracing
        self._forwarding = forwarding
        self._limits = WireLimits(body_bytes_max=body_bytes_max)

    def rpcs(self) -> list[Rpc]:
        """Every RPC that is answered."""

        def rpc(
            name: str,
            handler: Callable[[Any, Any], Any],
            kind: RouteClass,
            door: Door = Door.INFERENCE,
            *,
            is_stream: bool = False,
        ) -> Rpc:
            message = "ModelInferRequest" if is_stream else f"{name}Request"
            return Rpc(f"/{SERVICE}/{name}", lambda: message_class(message), handler, door, kind, is_stream)

        health = RouteClass.HEALTH
        return [
            rpc("ModelInfer", self.infer, RouteClass.INFER),
            rpc("ServerLive", self.live, health, Door.OPEN),
            rpc("ServerReady", self.ready, health, Door.OPEN),
            rpc("ModelReady", self.model_ready, health, Door.OPEN),
            rpc("ServerMetadata", self.metadata, RouteClass.METADATA),
            rpc("ModelMetadata", self.model_metadata, RouteClass.METADATA),
            rpc("ModelConfig", self.config, RouteClass.CONFIG),
            rpc("ModelStatistics", self.statistics, RouteClass.STATISTICS),
            rpc("RepositoryIndex", self.index, RouteClass.REPOSITORY),
            rpc("RepositoryModelLoad", self.load, RouteClass.REPOSITORY, Door.CONTROL),
            rpc("RepositoryModelUnload", self.unload, RouteClass.REPOSITORY, Door.CONTROL),
            rpc("ModelStreamInfer", self.stream_infer, RouteClass.INFER, is_stream=True),
        ]

    def infer(self, message: Any, call: Call) -> None:
        """`ModelInfer`. A caller that leaves takes the request out of its queue."""
        trace = None if self._tracing is None else self._tracing.of_call(call, message.model_name)
        served = self._runtime.resolve(message.model_name, message.model_version)
        request = decode_infer(message, self._limits, self._runtime.regions)
        if request.shared_bytes:
            call.hold(request.shared_bytes)
        if self._forwarding is not None:
            self._forwarding.forward(call.headers, request)
        request.tenant = call.tenant
        request.trace = trace
        if call.timeout_us and (not request.timeout_us or call.timeout_us < request.timeout_us):
            request.timeout_us = call.timeout_us
        if isinstance(served, Streaming):
            raise Unsupported(
                "ModelInfer RPC doesn't support models with decoupled transaction policy",
                hint="use ModelStreamInfer",
            )
        rows, signature = served.check(request)
        if request.outputs:
            check_outputs(request, served.spec)
        withdraw = served.submit(
            request, rows, signature, call.received_ns, partial(self._answer, call, request, served.spec)
        )
        if not call.is_done:
            call.on_gone = withdraw

    def _answer(
        self, call: Call, request: InferRequest, spec: ModelSpec, answer: InferResponse | FarthingError
    ) -> None:
        if isinstance(answer, FarthingError):
            call.fail(answer)
            return
        try:
            message = encode_infer(answer, request, spec, self._runtime.regions)
        except FarthingError as error:
            call.fail(error)
            return
        call.reply(message)

    async def stream_infer(self, kind: Any, call: StreamCall) -> None:
        """`ModelStreamInfer`."""
        await InferStream(self._runtime, self._limits, kind, call, self._forwarding).serve()

    # -- health --------------------------------------------------------------------------------------------------

    def live(self, message: Any, call: Call) -> Any:
        """`ServerLive`: is there progress?"""
        return message_class("ServerLiveResponse")(live=self._runtime.hung() is None)

    def ready(self, message: Any, call: Call) -> Any:
        """`ServerReady`: should a load balancer send requests here?"""
        return message_class("ServerReadyResponse")(ready=not self._runtime.not_ready())

    def model_ready(self, message: Any, call: Call) -> Any:
        """`ModelReady`: the answer has a place for "no", and clients of Triton expect it there for any model."""
        try:
            served = self._runtime.resolve(message.name, message.version)
        except (NotFound, Unavailable):
            return message_class("ModelReadyResponse")(ready=False)
        return message_class("ModelReadyResponse")(ready=not served.health())

    # -- metadata ------------------------------------------------------------------------------------------------

    def metadata(self, message: Any, call: Call) -> Any:
        """`ServerMetadata`."""
        return message_of("ServerMetadataResponse", server_metadata("farthing", __version__, extensions(self._runtime)))

    def model_metadata(self, message: Any, call: Call) -> Any:
        """`ModelMetadata`."""
        served = self._runtime.resolve(message.name, message.version)
        versions = [int(message.version)] if message.version else self._runtime.catalog.ready_versions(message.name)
        return message_of("ModelMetadataResponse", model_metadata(served.spec, versions))

    def config(self, message: Any, call: Call) -> Any:
        """`ModelConfig`."""
        return config_message(self._runtime.resolve(message.name, message.version).config)

    def statistics(self, message: Any, call: Call) -> Any:
        """`ModelStatistics`, of all models if none is named."""
        snapshots = self._runtime.statistics(message.name, message.version)
        return message_of("ModelStatisticsResponse", statistics_json(snapshots))

    # -- the repository ------------------------------------------------------------------------------------------

    def index(self, message: Any, call: Call) -> Any:
        """`RepositoryIndex`."""
        check_repository_name(message)
        lines = index_json(self._runtime.index(only_ready=message.ready))
        return message_of("RepositoryIndexResponse", {"models": lines})

    async def load(self, message: Any, call: Call) -> Any:
        """`RepositoryModelLoad`."""
        check_repository_name(message)
        await load_as_asked(self._runtime, message.model_name, asked_load(message))
        return message_class("RepositoryModelLoadResponse")()

    async def unload(self, message: Any, call: Call) -> Any:
        """`RepositoryModelUnload`."""
        check_repository_name(message)
        asked_unload(message)
        await self._runtime.unload(message.model_name)
        return message_class("RepositoryModelUnloadResponse")()
