"""Triton's restricted APIs: groups of endpoints that open only to a header with the right value.

    --http-restricted-api model-repository,statistics:operator-key=secret
    --grpc-restricted-protocol model-repository,statistics:operator-key=secret

For operators who come with that setting; API keys (`server.auth`) keep the secret out of process lists and tell tenants
apart. Which path or method belongs to which group is told by its class.
"""

import hmac
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from farthing.telemetry.counters import RouteClass
from farthing.types.errors import FarthingError, Forbidden, InvalidSetting, Unavailable

CATEGORIES: Final[Mapping[str, tuple[RouteClass, ...]]] = {
    "health": (RouteClass.HEALTH,),
    "metadata": (RouteClass.METADATA,),
    "inference": (RouteClass.INFER, RouteClass.GENERATE),
    "model-config": (RouteClass.CONFIG,),
    "model-repository": (RouteClass.REPOSITORY,),
    "statistics": (RouteClass.STATISTICS,),
    "shared-memory": (RouteClass.SHARED_MEMORY,),
    "trace": (RouteClass.TRACE,),
    "logging": (RouteClass.LOGGING,),
}
"""Triton's names."""


class Wire(NamedTuple):
    """How a protocol says it."""

    header_prefix: str
    """What a client's header begins with, before the name that was set."""
    what: str
    refusal: type[FarthingError]


HTTP: Final = Wire("", "API", Forbidden)
GRPC: Final = Wire("triton-grpc-protocol-", "protocol", Unavailable)
"""Triton's clients tell by `UNAVAILABLE` and this name that the setting is meant, so both are kept."""


class Restrictions:
    """Which header opens which endpoints."""

    def __init__(self, settings: Sequence[str], wire: Wire = HTTP) -> None:
        """Reads `CATEGORY[,CATEGORY...]:HEADER=VALUE` settings. Raises `InvalidSetting` naming what is wrong."""
        self._wire = wire
        self._header_of: dict[RouteClass, tuple[bytes, bytes]] = {}
        seen: set[str] = set()
        for setting in settings:
            names, _, pair = setting.partition(":")
            header, _, value = pair.partition("=")
            if not header or not value:
                raise InvalidSetting(
                    f"`{names}:...` restricts nothing: a header or its value is missing",
                    hint="write CATEGORY[,CATEGORY...]:HEADER=VALUE",
                )
            for name in names.split(","):
                if name not in CATEGORIES:
                    raise InvalidSetting(f"`{name}` cannot be restricted", hint=f"categories: {', '.join(CATEGORIES)}")
                if name in seen:
                    raise InvalidSetting(f"`{name}` is restricted twice", hint="name each category once")
                seen.add(name)
                for kind in CATEGORIES[name]:
                    self._header_of[kind] = (f"{wire.header_prefix}{header}".lower().encode(), value.encode())

    def __bool__(self) -> bool:
        return bool(self._header_of)

    def check(self, kind: RouteClass, headers: Mapping[bytes, bytes]) -> None:
        """Raises the protocol's refusal unless the request may use endpoints of this class."""
        expected = self._header_of.get(kind)
        if expected is not None and not hmac.compare_digest(headers.get(expected[0], b""), expected[1]):
            raise self._wire.refusal(f"This {self._wire.what} is restricted, expecting header '{expected[0].decode()}'")
