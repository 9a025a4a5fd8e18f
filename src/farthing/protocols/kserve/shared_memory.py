"""Bodies of the system shared memory extension."""

from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec

from farthing.protocols.kserve.messages import BodyParser
from farthing.protocols.kserve.shapes import INT64_MAX
from farthing.types.errors import InvalidInput

_Size = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]


class RegisterRequest(msgspec.Struct, frozen=True):
    """Which part of which shared-memory object a region is."""

    key: str = ""
    offset: _Size = 0
    byte_size: _Size = 0


_register: Final = BodyParser(RegisterRequest, "shared memory register")


def parse_register(body: bytes | memoryview) -> RegisterRequest:
    """The body of `POST /v2/systemsharedmemory/region/{r}/register`."""
    asked = _register.parse(body)
    if not asked.key or not asked.byte_size:
        raise InvalidInput("key and byte_size: both are needed to register a region")
    return asked


def regions_json(regions: Iterable[Any]) -> list[dict[str, Any]]:
    """Regions as the status endpoint lists them."""
    return [msgspec.to_builtins(region) for region in regions]
