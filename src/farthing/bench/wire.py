"""Requests as bytes, made before the load: HTTP/1.1, and gRPC's header block and framed message.

A gRPC header block is made of HPACK literals that enter no table (RFC 7541, 6.2.2), so that the same bytes can be sent
on any connection at any time.
"""

from collections.abc import Mapping
from typing import Final

from farthing.bench.load import Message

USER_AGENT: Final = "farthing-bench"


def http_message(method: str, path: str, host: str, headers: Mapping[str, str], body: bytes) -> Message:
    """An HTTP/1.1 request with its length, to be sent on a connection that is kept."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"User-Agent: {USER_AGENT}", "Accept: */*"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body)}")
    return Message(data="\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def grpc_message(path: str, host: str, headers: Mapping[str, str], message: bytes) -> Message:
    """A unary call; `message` is the serialised request."""
    head = b"\x83\x86"  # :method POST, :scheme http, by their static indices
    head += b"\x04" + _text(path) + b"\x01" + _text(host)
    head += b"\x0f\x10" + _text("application/grpc") + b"\x00" + _text("te") + _text("trailers")
    for name, value in {"user-agent": USER_AGENT, **headers}.items():
        head += b"\x00" + _text(name.lower()) + _text(value)
    return Message(data=b"\x00" + len(message).to_bytes(4, "big") + message, head=head)


def _text(text: str) -> bytes:
    """A string literal without Huffman coding: its length in a prefix of seven bits, then itself."""
    data = text.encode("latin-1")
    length = len(data)
    if length < 127:
        return bytes([length]) + data
    rest, prefix = length - 127, bytearray([127])
    while rest >= 128:
        prefix.append(rest % 128 + 128)
        rest //= 128
    return bytes([*prefix, rest]) + data
