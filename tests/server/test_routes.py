"""Which path means what."""

from typing import Any

import pytest
from tests.serving import Live

from farthing.server.routes import REMEMBERED_MAX, Route, Routes
from farthing.types.errors import InvalidInput, MethodNotAllowed, NotFound


def route(method: str, pattern: str) -> Route:
    return Route(method.encode(), pattern, lambda *_: None)


TABLE = [
    route("GET", "/v2"),
    route("GET", "/v2/models/stats"),
    route("GET", "/v2/models/{m}"),
    route("GET", "/v2/models/{m}/stats"),
    route("POST", "/v2/models/{m}/infer"),
    route("GET", "/v2/models/{m}/versions/{v}"),
]
ROUTES = Routes(TABLE)


@pytest.mark.parametrize(
    ("path", "pattern", "args"),
    [
        ("/v2", "/v2", ()),
        ("/v2/", "/v2", ()),
        ("http://host:8000/v2", "/v2", ()),
        ("http://user@[::1]/v2/models/a", "/v2/models/{m}", ("a",)),
        ("/v2/models/a", "/v2/models/{m}", ("a",)),
        ("/v2/models/stats", "/v2/models/stats", ()),
        ("/v2/models/stats/stats", "/v2/models/{m}/stats", ("stats",)),
        ("/v2/models/a%20b%2Fc%25", "/v2/models/{m}", ("a b/c%",)),
        ("/v2/models/%C3%A4", "/v2/models/{m}", ("ä",)),
        ("/v2/models/a/versions/3", "/v2/models/{m}/versions/{v}", ("a", "3")),
        ("/v2/models/..", "/v2/models/{m}", ("..",)),
    ],
)
def test_a_path_finds_its_route(path: str, pattern: str, args: tuple[str, ...]) -> None:
    for _ in range(2):  # the second time from memory
        match = ROUTES.match(b"GET", path.encode())
        assert (match.route.pattern, match.args) == (pattern, args)


@pytest.mark.parametrize(
    "path", ["/", "/v3", "/v2/models", "/v2/models//infer", "/v2/models/a/b", "*", "", "http://v2"]
)
def test_any_other_path_is_not_found(path: str) -> None:
    with pytest.raises(NotFound, match=r"^Not Found"):
        ROUTES.match(b"GET", path.encode())


def test_a_path_that_is_not_utf8_is_the_clients_mistake() -> None:
    with pytest.raises(InvalidInput, match="UTF-8"):
        ROUTES.match(b"GET", b"/v2/models/%ff")


def test_head_is_a_get_without_a_body() -> None:
    assert ROUTES.match(b"HEAD", b"/v2").route is TABLE[0]


def test_the_wrong_method_is_told_the_right_ones() -> None:
    with pytest.raises(MethodNotAllowed, match=r"^Method Not Allowed") as caught:
        ROUTES.match(b"DELETE", b"/v2")
    assert caught.value.allowed == ("GET", "HEAD")
    with pytest.raises(MethodNotAllowed) as caught:
        ROUTES.match(b"HEAD", b"/v2/models/a/infer")
    assert caught.value.allowed == ("POST",)


def test_clients_cannot_make_the_memory_grow() -> None:
    routes = Routes(TABLE)
    for index in range(REMEMBERED_MAX * 2):
        routes.match(b"GET", b"/v2/models/%d" % index)
    routes.match(b"GET", b"/v2/models/" + b"x" * 30_000)
    assert len(routes._remembered) <= REMEMBERED_MAX
    assert max(len(path) for _, path in routes._remembered) < 300


# -- over the wire ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("POST", "/v2", "GET, HEAD"), ("GET", "/v2/models/echo/infer", "POST"), ("PUT", "/metrics", "GET, HEAD")],
)
def test_405_says_what_is_allowed(live: Live, method: str, path: str, allowed: str) -> None:
    reply = live.ask(method, path)
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    assert reply.error.startswith("Method Not Allowed")


@pytest.mark.parametrize("path", ["/", "/v3/models", "/v2/nothing", "/favicon.ico", "/v2/models/a/versions/1/b/c"])
def test_404_is_json_with_an_error(live: Live, path: str) -> None:
    reply = live.get(path)
    assert (reply.status, reply.headers["content-type"]) == (404, "application/json")
    assert reply.error.startswith("Not Found")


@pytest.mark.parametrize("path", ["/v2?x=1", "/v2/?", "http://elsewhere/v2?x=/v2/health/live"])
def test_queries_are_no_part_of_the_path(live: Live, path: str) -> None:
    with live.connect() as wire:
        assert wire.ask("GET", path).json["name"] == "farthing"


def test_names_may_be_percent_encoded(live: Live) -> None:
    assert live.get("/v2/models/%65cho").json["name"] == "echo"
    reply = live.get("/v2/models/%3Cb%3E%20%22")
    assert reply.status == 404
    assert "'<b> \"'" in reply.error


def test_a_query_does_not_grow_the_memory_of_paths(live: Live) -> None:
    server: Any = live.server
    routes = server._listener.app._routes
    before = len(routes._remembered)
    for index in range(50):
        live.get(f"/v2?{index}")
    assert len(routes._remembered) <= before + 1
