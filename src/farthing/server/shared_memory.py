"""The shared memory extension over HTTP: regions registered, listed, forgotten.

What a region is belongs to `runtime.shared_memory`; the RPCs are `server.grpc_shared_memory`'s. Memory of CUDA devices
is not offered.
"""

from typing import Any

from farthing.protocols.kserve import encode_json, parse_register, regions_json
from farthing.runtime.shared_memory import SharedMemory
from farthing.server.auth import Door
from farthing.server.exchange import Exchange
from farthing.server.routes import Route
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import Unsupported


class SharedMemoryExtension:
    """The handlers of one server."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    def routes(self) -> list[Route]:
        """The lines of the table. Telling and changing want the role of model control."""

        def route(method: bytes, path: str, handler: Any) -> Route:
            return Route(method, path, handler, Door.CONTROL, RouteClass.SHARED_MEMORY)

        get, post = b"GET", b"POST"
        table = []
        for kind, status, register, unregister in (
            ("system", self.status, self.register, self.unregister),
            ("cuda", no_cuda, no_cuda, no_cuda),
        ):
            root = f"/v2/{kind}sharedmemory"
            table += [
                route(get, f"{root}/status", status),
                route(get, f"{root}/region/{{r}}/status", status),
                route(post, f"{root}/region/{{r}}/register", register),
                route(post, f"{root}/region/{{r}}/unregister", unregister),
                route(post, f"{root}/unregister", unregister),
            ]
        return table

    def status(self, exchange: Exchange, name: str = "") -> None:
        """`GET /v2/systemsharedmemory[/region/{r}]/status`."""
        exchange.respond(200, encode_json(regions_json(self._memory.status(name))))

    def register(self, exchange: Exchange, name: str) -> None:
        """`POST /v2/systemsharedmemory/region/{r}/register`."""
        asked = parse_register(exchange.body)
        self._memory.register(name, asked.key, asked.offset, asked.byte_size)
        exchange.respond(200)

    def unregister(self, exchange: Exchange, name: str = "") -> None:
        """`POST /v2/systemsharedmemory[/region/{r}]/unregister`."""
        self._memory.unregister(name)
        exchange.respond(200)


def no_cuda(*_: object) -> None:
    """Everything about memory of CUDA devices."""
    raise Unsupported(
        "CUDA shared memory is not offered by this server", hint="use system shared memory, or send tensors in requests"
    )
