"""Who is calling, and may they? API keys from a file that holds only their hashes.

    [[keys]]
    name = "shop"                 # the tenant, as logs and limits call it
    sha256 = "9f86d081..."        # of the key itself; `farthing keys new shop` prints both
    roles = ["inference"]         # and/or "control": load and unload models
    inflight_max = 64             # requests under way at once; beyond, 429 (optional)

A key comes as `Authorization: Bearer KEY` or `X-Api-Key: KEY`. Keys are long and random, so one round of SHA-256 is
enough (there is nothing to guess). Without a file everyone may infer; then model control is open only if the
operator chose explicit control. Which doors there are belongs to `server.routes`.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import msgspec

from farthing.types.errors import Forbidden, LoadFailed, Unauthenticated

KEY_BYTES: Final = 24
"""Random bytes of a key: 192 bits, 32 characters."""


class Door(StrEnum):
    """What a path is for; each opens to certain roles."""

    OPEN = "open"
    """Health: load balancers have no keys."""
    INFERENCE = "inference"
    CONTROL = "control"


class Role(StrEnum):
    INFERENCE = "inference"
    CONTROL = "control"


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key's entry in the file."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    roles: tuple[Role, ...] = (Role.INFERENCE,)
    inflight_max: Annotated[int, msgspec.Meta(ge=0)] = 0


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[Key, ...]


class Keys:
    """The keys that open this server."""

    def __init__(self, keys: tuple[Key, ...]) -> None:
        self._by_digest = {bytes.fromhex(key.sha256): key for key in keys}

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Reads a key file. Raises `LoadFailed` naming the file and the place of the mistake."""
        try:
            file = msgspec.toml.decode(path.read_bytes(), type=KeyFile)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LoadFailed(f"{path}: {error}", hint="`farthing keys new NAME` prints an entry") from None
        names = [key.name for key in file.keys]
        if len(set(names)) < len(names):
            raise LoadFailed(f"{path}: a name stands twice; names: {', '.join(sorted(names))}")
        return cls(file.keys)

    def check(self, door: Door, headers: Mapping[bytes, bytes]) -> Key | None:
        """The caller's key, if this door opens to it. Raises `Unauthenticated` or `Forbidden`."""
        if door is Door.OPEN:
            return None
        digest = hashlib.sha256(_presented(headers)).digest()
        # The look-up compares digests, whose bytes a caller cannot steer; the comparison that decides is constant
        # in time all the same.
        key = self._by_digest.get(digest)
        if key is None or not hmac.compare_digest(bytes.fromhex(key.sha256), digest):
            raise Unauthenticated(
                "this server wants an API key, and none it knows was sent",
                hint="send `Authorization: Bearer KEY` or `X-Api-Key: KEY`",
            )
        if door.value not in key.roles:
            raise Forbidden(f"the key `{key.name}` does not open this; its roles: {', '.join(key.roles)}")
        return key


def new_key(name: str, roles: tuple[Role, ...]) -> tuple[str, str]:
    """A fresh key, and its entry for the key file."""
    key = secrets.token_urlsafe(KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    listed = ", ".join(f'"{role}"' for role in roles)
    return key, f'[[keys]]\nname = "{name}"\nsha256 = "{digest}"\nroles = [{listed}]\n'


def _presented(headers: Mapping[bytes, bytes]) -> bytes:
    said = headers.get(b"authorization", b"")
    if said[:7].lower() == b"bearer ":
        return said[7:].strip()
    return headers.get(b"x-api-key", b"")
