"""HTTP/2 (RFC 9113) as a server speaks it, without a socket: bytes in, calls out.

HPACK (RFC 7541) is the `hpack` library's. What is carried is gRPC (`protocols.grpc_wire`, `server.grpc`); sockets, TLS
and time are `server.http2`'s.
"""

from farthing.protocols.http2.connection import Connection
from farthing.protocols.http2.frames import PREFACE, ErrorCode
from farthing.protocols.http2.header_blocks import Field, Fields, Head
from farthing.protocols.http2.limits import Http2Limits
from farthing.protocols.http2.sending import Data, Handler
from farthing.protocols.http2.stream import Stream

__all__ = ["PREFACE", "Connection", "Data", "ErrorCode", "Field", "Fields", "Handler", "Head", "Http2Limits", "Stream"]
