"""gRPC over HTTP/2, as its protocol text has it: messages with their lengths, codings, deadlines, statuses.

No sockets, no protobuf and no grpcio. Frames and streams belong to `protocols.http2`, the messages of the services to
`protocols.kserve_grpc`.
"""

from farthing.protocols.grpc_wire.messages import (
    CODINGS,
    PREFIX_BYTES,
    Coding,
    Message,
    MessageReader,
    coding_of,
    framed,
    inflate_message,
    prefixed,
)
from farthing.protocols.grpc_wire.status import CODES, percent_encoded, trailers
from farthing.protocols.grpc_wire.timeout import timeout_us

__all__ = [
    "CODES",
    "CODINGS",
    "PREFIX_BYTES",
    "Coding",
    "Message",
    "MessageReader",
    "coding_of",
    "framed",
    "inflate_message",
    "percent_encoded",
    "prefixed",
    "timeout_us",
    "trailers",
]
