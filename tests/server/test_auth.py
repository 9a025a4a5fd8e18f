"""Keys: who may infer, who may control, and what a key file must be."""

from pathlib import Path

import pytest
from tests.serving import Gate, Wire, eventually, infer_json, serving, small_repository

from farthing.config.server import ModelControl, ServerConfig
from farthing.repository import Repository
from farthing.server.auth import Door, Keys, Role, new_key
from farthing.server.server import Server
from farthing.types.errors import Forbidden, LoadFailed, Unauthenticated


def test_a_new_key_opens_what_its_entry_says(tmp_path: Path) -> None:
    key, entry = new_key("shop", (Role.INFERENCE, Role.CONTROL))
    other, other_entry = new_key("lab", (Role.INFERENCE,))
    file = tmp_path / "keys.toml"
    file.write_text(entry + other_entry)
    keys = Keys.read(file)
    assert key not in file.read_text()
    for headers in ({b"authorization": f"Bearer {key}".encode()}, {b"authorization": f"bearer  {key}".encode()}):
        found = keys.check(Door.CONTROL, headers)
        assert found is not None
        assert found.name == "shop"
    assert keys.check(Door.OPEN, {}) is None
    with pytest.raises(Forbidden, match="`lab` does not open this; its roles: inference"):
        keys.check(Door.CONTROL, {b"x-api-key": other.encode()})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"authorization": b""},
        {b"authorization": b"Bearer "},
        {b"authorization": b"Bearer wrong"},
        {b"authorization": b"Basic c2hvcDpzaG9w"},
        {b"x-api-key": b""},
        {b"x-api-key": b"\xff\x00"},
        {b"authorization": b"Bearer " + b"x" * 100_000},
    ],
)
def test_any_other_key_is_unknown(headers: dict[bytes, bytes], tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(new_key("shop", (Role.INFERENCE,))[1])
    with pytest.raises(Unauthenticated, match="wants an API key"):
        Keys.read(file).check(Door.INFERENCE, headers)


GOOD = 'name = "a"\nsha256 = "' + "0" * 64 + '"\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "missing required field `keys`"),
        ("[[keys]]\nname =", "keys.toml: "),
        ("\udcff", "keys.toml: "),
        ('[[keys]]\nname = "a"\n', r"missing required field `sha256` - at `\$.keys\[0\]`"),
        (f"[[keys]]\n{GOOD}role = 1\n", r"unknown field `role` - at `\$.keys\[0\]`"),
        (f'[[keys]]\n{GOOD}roles = ["root"]\n', r"Invalid enum value 'root' - at `\$.keys\[0\].roles\[0\]`"),
        (f"[[keys]]\n{GOOD}inflight_max = -1\n", r"`\$.keys\[0\].inflight_max`"),
        ('[[keys]]\nname = "a b"\nsha256 = "' + "0" * 64 + '"', r"`\$.keys\[0\].name`"),
        ('[[keys]]\nname = "a"\nsha256 = "secret"', r"`\$.keys\[0\].sha256`"),
        (f"[[keys]]\n{GOOD}[[keys]]\n{GOOD}", "a name stands twice"),
    ],
)
def test_a_key_file_with_a_mistake_names_file_and_place(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(LoadFailed, match=reason) as caught:
        Keys.read(file)
    assert str(file) in str(caught.value)


def test_a_key_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="No such file"):
        Server(ServerConfig(keys=tmp_path / "none.toml"), Repository([]))


# -- over the wire ---------------------------------------------------------------------------------------------------


def keyed(folder: Path, roles: dict[str, tuple[Role, ...]], inflight_max: int = 0) -> tuple[Path, dict[str, str]]:
    """A key file, and each name's key."""
    keys, text = {}, ""
    for name, allowed in roles.items():
        keys[name], entry = new_key(name, allowed)
        text += entry + (f"inflight_max = {inflight_max}\n" if inflight_max else "")
    folder.mkdir(exist_ok=True)
    (folder / "keys.toml").write_text(text)
    return folder / "keys.toml", keys


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_each_door_opens_to_its_role_and_health_to_all(tmp_path: Path) -> None:
    file, keys = keyed(tmp_path / "keys", {"app": (Role.INFERENCE,), "ops": (Role.CONTROL,)})
    infer, load = "/v2/models/echo/infer", "/v2/repository/models/echo/load"
    body = infer_json([[1, 2]])
    repository = small_repository(tmp_path / "models")
    with serving(repository, keys=file, model_control=ModelControl.EXPLICIT, load_models=("echo",)) as live:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/echo/ready", "/openapi.json"):
            assert live.get(path).status == 200, path
        for method, path in (
            ("POST", infer),
            ("POST", load),
            ("GET", "/metrics"),
            ("GET", "/v2"),
            ("GET", "/v2/models"),
        ):
            reply = live.ask(method, path, body if path == infer else b"")
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer"), path
        assert live.post(infer, body, {"Authorization": "Bearer nonsense"}).status == 401
        assert live.post(infer, body, bearer(keys["app"])).status == 200
        assert live.post(infer, body, {"X-Api-Key": keys["app"]}).status == 200
        assert live.post(load, b"", bearer(keys["app"])).status == 403
        assert live.post(load, b"", bearer(keys["ops"])).status == 200
        assert live.post(infer, body, bearer(keys["ops"])).status == 403
        metrics = live.get("/metrics", bearer(keys["app"])).body.decode()
        assert 'farthing_http_rejected_total{reason="unauthenticated"} 6' in metrics
        assert 'farthing_http_rejected_total{reason="forbidden"} 2' in metrics
        assert keys["app"] not in metrics


def test_a_tenant_over_its_share_is_429_while_others_are_served(tmp_path: Path) -> None:
    file, keys = keyed(tmp_path / "keys", {"greedy": (Role.INFERENCE,), "modest": (Role.INFERENCE,)}, inflight_max=2)
    gate = Gate(tmp_path / "model")
    with serving(gate.path, keys=file) as live:

        def send(name: str, value: float) -> Wire:
            wire = live.connect()
            wire.send(gate.request(value, **bearer(keys[name])))
            return wire

        waiting = [send("greedy", 1), send("greedy", 2)]
        eventually(gate.seen)
        refused = send("greedy", 3).read_reply()
        assert refused.status == 429
        assert refused.headers["retry-after"] == "1"
        assert "`greedy` has 2 requests under way, its limit" in refused.error
        other = send("modest", 4)
        waiting.pop().socket.close()
        gate.open()
        assert other.read_reply().status == 200
        assert waiting.pop().read_reply().status == 200
        # whoever was answered, or left, makes room again
        eventually(lambda: [send("greedy", 5 + i).read_reply().status for i in range(3)] == [200] * 3)
        assert 3 not in gate.seen()
