"""Which path means what: a table, matched segment by segment, with what was matched before remembered.

Answering belongs to the handlers; a route knows only its name, its door and its class for the counters.
"""

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from farthing.server.auth import Door
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import InvalidInput, MethodNotAllowed, NotFound

REMEMBERED_MAX: Final = 4096
"""Paths whose match is remembered; clients choose paths, so there is an end to it."""

REMEMBERED_BYTES_MAX: Final = 256
"""Longer paths are matched anew each time; model names are short."""

Handler = Callable[..., Any]


class Route(msgspec.Struct, frozen=True):
    """One line of the table. `{m}` and `{v}` stand for any one segment, handed to the handler in order; `{m...}` at the
    end for one or more, handed over as they stand."""

    method: bytes
    pattern: str
    handler: Handler
    door: Door = Door.INFERENCE
    kind: RouteClass = RouteClass.OTHER


class Match(msgspec.Struct, frozen=True):
    route: Route
    args: tuple[str, ...]


class Routes:
    """The table."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes = [(route, tuple(route.pattern.strip("/").split("/"))) for route in routes]
        self._remembered: dict[tuple[bytes, bytes], Match] = {}

    def match(self, method: bytes, path: bytes) -> Match:
        """What a request line means. Raises `NotFound` or `MethodNotAllowed`."""
        found = self._remembered.get((method, path))
        if found is None:
            found = self._match(method, path)
            if len(path) <= REMEMBERED_BYTES_MAX:
                if len(self._remembered) >= REMEMBERED_MAX:
                    self._remembered.clear()
                self._remembered[(method, path)] = found
        return found

    def _match(self, method: bytes, path: bytes) -> Match:
        segments = _segments(path)
        allowed: list[str] = []
        for route, pattern in self._routes:
            args = _fits(segments, pattern)
            if args is None:
                continue
            if route.method == method or (method == b"HEAD" and route.method == b"GET"):
                return Match(route, args)
            allowed += ["GET", "HEAD"] if route.method == b"GET" else [route.method.decode()]
        if allowed:
            methods = tuple(sorted(set(allowed)))
            raise MethodNotAllowed("Method Not Allowed", hint=f"allowed here: {', '.join(methods)}", allowed=methods)
        raise NotFound("Not Found", hint="GET /openapi.json lists every path")


def _segments(path: bytes) -> list[str]:
    if not path.startswith(b"/") and b"://" in path:
        # The absolute form, http://host/path, as clients send it through proxies (RFC 9112, 3.2.2).
        path = path.partition(b"://")[2].partition(b"/")[2]
    try:
        return [unquote_to_bytes(segment).decode() for segment in path.strip(b"/").split(b"/")]
    except UnicodeDecodeError:
        raise InvalidInput("the path is not UTF-8") from None


def _fits(segments: list[str], pattern: tuple[str, ...]) -> tuple[str, ...] | None:
    is_rest = pattern[-1].endswith("...}")
    is_open = is_rest or pattern[-1] == "*"
    if len(segments) != len(pattern) and not (is_open and len(segments) >= len(pattern)):
        return None
    if is_rest:
        segments = [*segments[: len(pattern) - 1], "/".join(segments[len(pattern) - 1 :])]
    args = []
    for segment, expected in zip(segments, pattern, strict=False):
        if expected.startswith("{"):
            if not segment:
                return None
            args.append(segment)
        elif expected not in (segment, "*"):
            return None
    return tuple(args)
