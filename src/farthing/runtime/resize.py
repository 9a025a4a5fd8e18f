"""More or fewer instances of a model that serves on meanwhile: what a load does when nothing else has changed.

The new ones are made and warmed up before they get work; the old ones finish theirs before they go. A model that would
now run by another plan, or by one no more, is not resized. When loads happen is `catalog`'s, which also lets them take
turns.
"""

import asyncio
from concurrent.futures import Executor

from msgspec.structs import replace

from farthing.config.model import complete_config, with_sequence_defaults
from farthing.engines.contract import Resizable
from farthing.repository import FoundModel
from farthing.runtime.load import instance_count
from farthing.runtime.planned import planned
from farthing.runtime.serve_loaded import demands
from farthing.runtime.served import Served, ServedVersion
from farthing.runtime.warmup import warm_up


def differs_in_instances(before: FoundModel | None, now: FoundModel) -> bool:
    """Whether a model is what it was when it was loaded, but for its `instance_group`."""
    return (
        before is not None
        and before.config.instance_group != now.config.instance_group
        and before.content != ""
        and (before.folder, before.content, before.versions) == (now.folder, now.content, now.versions)
        and replace(before.config, instance_group=()) == replace(now.config, instance_group=())
    )


async def resize(served: Served, now: FoundModel, *, on: Executor, drain_s: float) -> bool:
    """Gives a version the instances its new configuration wants; False if it can only be loaded anew.

    Raises `LoadFailed` if the new ones cannot be had: then the version has those it had.
    """
    if not isinstance(served, ServedVersion) or not served.loop.can_resize:
        return False
    executable = served.executable
    if not isinstance(executable, Resizable):
        return False
    wanted, had = instance_count(now.name, now.config), served.loop.instances
    loop = asyncio.get_running_loop()
    path = next(version.path for version in now.versions if version.number == served.spec.version)
    way = await loop.run_in_executor(on, planned, now.name, path, with_sequence_defaults(now.config))
    if way.plan != served.plan:
        return False
    if wanted > had:
        await loop.run_in_executor(on, _grow, served, executable, now, wanted)
        served.loop.grow(wanted)
    elif wanted < had:
        gone = asyncio.Event()
        served.loop.shrink(wanted, gone.set)
        try:
            await asyncio.wait_for(gone.wait(), drain_s)
        except TimeoutError:  # one hangs; it goes with the whole
            return False
        await loop.run_in_executor(on, executable.resize, wanted)
    complete = complete_config(now.config, served.spec, backend="", instances=wanted)
    served.config = replace(served.config, instance_group=complete.instance_group)
    if served.loop.turns is not None:
        served.loop.turns.change(demands(now.config))
    return True


def _grow(served: ServedVersion, executable: Resizable, now: FoundModel, wanted: int) -> None:
    had = served.loop.instances
    executable.resize(wanted)
    try:
        warm_up(
            now.config,
            now.folder,
            served.spec,
            executable,
            instances=range(had, wanted),
            reshapes=served.reshapes_in,
        )
    except BaseException:
        executable.resize(had)
        raise
