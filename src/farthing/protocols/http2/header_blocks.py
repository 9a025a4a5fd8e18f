"""Header blocks: HPACK by the `hpack` library, and what was decoded or encoded before remembered.

A block's meaning depends on the dynamic table (RFC 7541, 2.3.2), so it may be remembered only while the table stays as
it is. Clients put what repeats into the table with their first request; from then on their blocks are nothing but
references, byte for byte the same, and change nothing. Those are read from memory, and so are ours written.

What header fields mean belongs to whoever serves them; what every request must have (RFC 9113, 8.3) is checked here.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from hpack import Decoder, Encoder, NeverIndexedHeaderTuple
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from farthing.protocols.http2.frames import HEADER_TABLE_BYTES_DEFAULT, BrokenConnection, ErrorCode
from farthing.protocols.http2.limits import Http2Limits

Field = tuple[bytes, bytes]

REMEMBERED_MAX: Final = 16
"""Blocks remembered by one connection: a client's calls differ in path and deadline, seldom in more."""

REMEMBERED_BYTES_MAX: Final = 4096
"""Header lists that are longer are decoded each time, so that a connection keeps no more than 64 KiB of them."""

FIELD_BYTES: Final = 32
"""What each field counts beside its bytes (RFC 9113, 6.5.2)."""

CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
"""Fields of HTTP/1.1 that make a request malformed here (RFC 9113, 8.2.2)."""

CONTENT_LENGTH_DIGITS_MAX: Final = 15
"""A body of a petabyte."""

PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))


class Head:
    """A request's header list, read once for all requests that send the same."""

    __slots__ = ("content_bytes", "fields", "is_too_large", "meaning", "method", "path", "wrong", "wrong_as_trailers")

    def __init__(self, fields: Iterable[Field], limits: Http2Limits) -> None:
        self.method = b""
        self.path = b""
        self.fields: dict[bytes, bytes] = {}
        """Names in lower case; repeated ones joined by a comma, as RFC 9110, 5.2 has it."""
        self.wrong = ""
        """Why this is no request (RFC 9113, 8.1.1); empty if it is one."""
        self.wrong_as_trailers = ""
        """Why these are no trailers (8.1); empty if they are."""
        self.content_bytes = -1
        """How long the body is said to be; -1 where nothing is said."""
        self.is_too_large = False
        self.meaning: Any = None
        """What the layer above made of it; remembered with it."""
        self._read(list(fields), limits)

    def _read(self, fields: Sequence[Field], limits: Http2Limits) -> None:
        pseudo: dict[bytes, bytes] = {}
        plain = self.fields
        size = 0
        for name, value in fields:
            size += len(name) + len(value) + FIELD_BYTES
            if name[:1] == b":":
                if plain or name in pseudo or name not in PSEUDO:
                    self.wrong = f"{name[:40].decode('latin-1')} stands where it may not"
                pseudo[name] = value
            elif name != name.lower() or not name:
                self.wrong = "a field name is empty or has upper case letters"
            elif name in CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
                self.wrong = f"{name.decode('latin-1')} belongs to HTTP/1.1"
            else:
                plain[name] = value if name not in plain else plain[name] + b"," + value
        self.is_too_large = size > limits.header_list_bytes_max or len(fields) > limits.headers_max
        self.method = pseudo.get(b":method", b"")
        self.path = pseudo.get(b":path", b"")
        if (said := plain.get(b"content-length")) is not None:
            if said.isdigit() and len(said) <= CONTENT_LENGTH_DIGITS_MAX:
                self.content_bytes = int(said)
            else:
                self.wrong = "content-length is no number"
        self.wrong_as_trailers = self.wrong or ("a pseudo-header among trailers" if pseudo else "")
        if not self.wrong and not (self.method and self.path and pseudo.get(b":scheme")):
            self.wrong = ":method, :scheme or :path is missing"


class _Table(HeaderTable):
    """A dynamic table that tells whether it has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_changed = False

    def add(self, name: bytes, value: bytes) -> None:
        self.is_changed = True
        super().add(name, value)

    @property
    def maxsize(self) -> int:
        return self._maxsize

    @maxsize.setter
    def maxsize(self, newmax: int) -> None:
        self.is_changed = True
        HeaderTable.maxsize.__set__(self, newmax)  # type: ignore[attr-defined]


class HeaderReader:
    """Decodes the header blocks of one connection, in the order they came."""

    __slots__ = ("_decoder", "_limits", "_remembered", "_table")

    def __init__(self, limits: Http2Limits) -> None:
        self._limits = limits
        self._decoder = Decoder(max_header_list_size=2 * limits.header_list_bytes_max)
        self._decoder.header_table = self._table = _Table()
        self._remembered: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """The header list of a block. Raises `BrokenConnection`: after a block that cannot be decoded, none can."""
        head = self._remembered.get(block)
        return head if head is not None else self._decode(block)

    def _decode(self, block: bytes) -> Head:
        table = self._table
        table.is_changed = False
        try:
            fields = list(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError as error:
            raise BrokenConnection(ErrorCode.ENHANCE_YOUR_CALM, str(error)) from None
        except (HPACKError, ValueError, IndexError) as error:
            raise BrokenConnection(ErrorCode.COMPRESSION_ERROR, f"a header block cannot be decoded: {error}") from None
        head = Head(fields, self._limits)
        remembered = self._remembered
        if table.is_changed:
            remembered.clear()
        elif sum([len(name) + len(value) for name, value in fields]) <= REMEMBERED_BYTES_MAX:
            if len(remembered) >= REMEMBERED_MAX:
                remembered.clear()
            remembered[block] = head
        return head


class Fields:
    """Header fields that are sent again and again; known by identity."""

    __slots__ = ("pairs",)

    def __init__(self, *pairs: Field) -> None:
        self.pairs = pairs


class HeaderWriter:
    """Encodes the header blocks of one connection, in the order they are sent."""

    __slots__ = ("_encoder", "_remembered", "_sizes", "_table")

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._encoder.header_table = self._table = _Table()
        self._remembered: dict[Fields, bytes] = {}
        self._sizes: list[int] = []
        """The smallest and the latest table size the client allowed since the last block (RFC 7541, 4.2)."""

    def allow(self, table_bytes: int) -> None:
        """The client said how large a table it keeps; never more than the default is used."""
        size = min(table_bytes, HEADER_TABLE_BYTES_DEFAULT)
        smallest = min(self._sizes[0], size) if self._sizes else size
        self._sizes = [smallest, size] if smallest < size else [size]
        self._remembered.clear()

    def block(self, fields: Fields) -> bytes:
        """The block of fields that repeat: they enter the client's table, and cost a byte each from then on."""
        found = self._remembered.get(fields)
        if found is not None:
            return found
        block = self._encode(fields.pairs)
        if self._table.is_changed:
            self._remembered.clear()
        else:
            self._remembered[fields] = block
        return block

    def block_once(self, fields: Fields, *others: Field) -> bytes:
        """The block of some that repeat and others that do not, which stay out of the table."""
        block = self._encode((*fields.pairs, *(NeverIndexedHeaderTuple(*field) for field in others)))
        if self._table.is_changed:
            self._remembered.clear()
        return block

    def _encode(self, pairs: Iterable[Field]) -> bytes:
        self._table.is_changed = False
        for size in self._sizes:
            self._encoder.header_table_size = size
        self._sizes = []
        return self._encoder.encode(pairs, huffman=False)
