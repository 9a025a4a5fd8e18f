"""The shared memory extension over gRPC; over HTTP it is `server.shared_memory`."""

from typing import Any

from farthing.protocols.kserve_grpc import SERVICE, message_class
from farthing.runtime.shared_memory import SharedMemory
from farthing.server.auth import Door
from farthing.server.grpc_call import Call, Rpc
from farthing.server.shared_memory import no_cuda
from farthing.telemetry.counters import RouteClass


class GrpcSharedMemory:
    """The handlers of one server."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    def rpcs(self) -> list[Rpc]:
        """Every RPC about shared memory."""

        def rpc(name: str, handler: Any) -> Rpc:
            kind = RouteClass.SHARED_MEMORY
            return Rpc(f"/{SERVICE}/{name}", lambda: message_class(f"{name}Request"), handler, Door.CONTROL, kind)

        return [
            rpc("SystemSharedMemoryStatus", self.status),
            rpc("SystemSharedMemoryRegister", self.register),
            rpc("SystemSharedMemoryUnregister", self.unregister),
            *(rpc(f"CudaSharedMemory{verb}", no_cuda) for verb in ("Status", "Register", "Unregister")),
        ]

    def status(self, message: Any, call: Call) -> Any:
        """`SystemSharedMemoryStatus`."""
        answer = message_class("SystemSharedMemoryStatusResponse")()
        for region in self._memory.status(message.name):
            entry = answer.regions[region.name]
            entry.name, entry.key = region.name, region.key
            entry.offset, entry.byte_size = region.offset, region.byte_size
        return answer

    def register(self, message: Any, call: Call) -> Any:
        """`SystemSharedMemoryRegister`."""
        self._memory.register(message.name, message.key, message.offset, message.byte_size)
        return message_class("SystemSharedMemoryRegisterResponse")()

    def unregister(self, message: Any, call: Call) -> Any:
        """`SystemSharedMemoryUnregister`."""
        self._memory.unregister(message.name)
        return message_class("SystemSharedMemoryUnregisterResponse")()
