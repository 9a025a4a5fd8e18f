"""Triton's repository agent `checksum`: files of a model must be what its configuration says they are.

    model_repository_agents { agents [ {
      name: "checksum" parameters { key: "SHA256:1/model.onnx" value: "9f86d081..." } } ] }

Checked each time the model is loaded, before anything else reads the files. Agents are programs in Triton; this one is
done here, others are refused, since whoever names one relies on what it does.
"""

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from farthing.repository.listing import check_inside, real_path
from farthing.repository.snapshot import FoundModel
from farthing.types.errors import LoadFailed

CHECKSUM: Final = "checksum"

_HASHES: Final[dict[str, Callable[[], Any]]] = {
    "SHA256": hashlib.sha256,
    "MD5": lambda: hashlib.md5(usedforsecurity=False),
}
"""MD5 is what Triton has. It tells damage from health, not a forger's file from the right one."""


def check_agents(found: FoundModel) -> None:
    """Returns if every file that the configuration lists is as it says; blocks. Raises `LoadFailed`."""
    if found.config.model_repository_agents is None:
        return
    for agent in found.config.model_repository_agents.agents:
        if agent.name != CHECKSUM:
            raise LoadFailed(
                f"model `{found.name}` asks for the repository agent `{agent.name[:80]}`; agents here: {CHECKSUM}",
                hint="prepare the files before they come into the repository, and take the agent out",
            )
        if not agent.parameters:
            raise LoadFailed(f"model `{found.name}`: the agent `{CHECKSUM}` has no parameters, so nothing to check")
        for key, wanted in agent.parameters.items():
            _check(found, key, wanted)


def _check(found: FoundModel, key: str, wanted: str) -> None:
    where = f"model `{found.name}`: {CHECKSUM} `{key[:200]}`"
    name, colon, path = key.partition(":")
    if not colon or name.upper() not in _HASHES:
        raise LoadFailed(
            f"{where}: no hash known by that name; known: {', '.join(_HASHES)}",
            hint='write the key as "SHA256:1/model.onnx", the path within the model\'s folder',
        )
    if not path or path.startswith("/") or "\\" in path or "\0" in path or ".." in path.split("/"):
        raise LoadFailed(f"{where}: not a path within the model's folder")
    file = found.folder / path
    # A link may lead to where the model's own files may: not out of the folder that holds it.
    check_inside(file, real_path(found.folder.parent))
    try:
        digest = _digest(file, name.upper())
    except OSError as error:
        raise LoadFailed(f"{where}: {error.strerror}") from None
    if not hmac.compare_digest(digest, wanted.strip().lower().encode("ascii", "replace").decode()):
        raise LoadFailed(
            f"{where}: the file's is {digest}, the configuration says {wanted[:128]}",
            hint="the file was damaged or changed; bring the right one, or the right checksum",
        )


def _digest(file: Path, name: str) -> str:
    if not file.is_file():  # not a pipe: reading it would never end
        raise FileNotFoundError(2, "no such file")
    digest = _HASHES[name]()
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    hexadecimal: str = digest.hexdigest()
    return hexadecimal
