"""May this file be read on a model's behalf?

A model names other files: external weights, a weights file beside its graph. Only regular files inside the model's
own folder are opened, whatever the name says and wherever a link leads. Knowing which names a format holds belongs
to the engine of that format.
"""

import stat
from pathlib import Path

from farthing.engines.failure import shown
from farthing.types.errors import LoadFailed


def companion_file(name: str, *, of: Path, folder: Path) -> Path:
    """The regular file that the model file `of` calls `name`, proven to lie inside `folder`.

    Raises `LoadFailed` for absolute names, `..`, links that lead out, and anything but a regular file (opening a
    FIFO would hang the load).
    """
    if not name or "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        raise LoadFailed(
            f"{of}: names the file `{shown(name)}`; only names relative to the model file, without `..`, are allowed",
            hint=f"put the file beside {of.name} and save the model again with its plain file name",
        )
    path = of.parent / name
    try:
        real = path.resolve(strict=True)
        is_regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = getattr(error, "strerror", None) or str(error)
        raise LoadFailed(
            f"{of}: needs the file `{shown(name)}`, which cannot be read: {reason}",
            hint="copy the model together with the files that hold its weights",
        ) from error
    if not real.is_relative_to(folder.resolve()):
        raise LoadFailed(
            f"{of}: the file `{shown(name)}` leads out of the model's folder {folder}",
            hint="copy the file into the model's folder instead of linking to it",
        )
    if not is_regular:
        raise LoadFailed(f"{of}: `{shown(name)}` is not a regular file")
    return real
