"""How models come and go.

Fills the table of models (`runtime.models`); everything here runs on the event loop, and only reading and closing
models happens on threads. A version being replaced serves until its successor is ready, and a failed load changes
nothing for requests. Files are found by `repository`; when to look at them is up to `runtime.runtime`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from farthing.config.server import SCHEDULING_DEFAULT, SchedulingSettings
from farthing.repository import FoundModel, FoundVersion, versions_to_serve
from farthing.runtime.ensemble import LoadedEnsemble, joined
from farthing.runtime.load import load_version
from farthing.runtime.models import UNLOADED, Model, Models, Version
from farthing.runtime.placement import Key
from farthing.runtime.resize import differs_in_instances, resize
from farthing.runtime.resting import RESTING, Resting
from farthing.runtime.room import Held, Memory, Room
from farthing.runtime.serve_loaded import Loaded, Serving
from farthing.runtime.served import Served, ServedVersion
from farthing.runtime.served_streams import ServedStreams
from farthing.telemetry.statistics import MemoryUsage
from farthing.telemetry.watchdog import Running
from farthing.types.errors import FarthingError, LoadFailed, Unavailable
from farthing.types.models import ModelState

CLOSE_S_MAX: Final = 10.0
"""How long the closing of a model that has nothing left to do may take before it is left behind."""

log = logging.getLogger(__name__)


Load = Callable[[FoundModel, FoundVersion], Loaded]


class Catalog(Models):
    """The models that are served."""

    def __init__(
        self,
        *,
        loader: ThreadPoolExecutor,
        queue_requests_max: int,
        drain_s: float,
        load: Load = load_version,
        scheduling: SchedulingSettings = SCHEDULING_DEFAULT,
        memory_bytes: int | None = None,
        pinned: Iterable[str] = (),
    ) -> None:
        """`load` reads a version; it is called on the loader's threads. `memory_bytes` is what all may hold together,
        and `pinned` are the names of those that are not unloaded to make room.
        """
        super().__init__()
        self._loader = loader
        self._room = (
            None
            if memory_bytes is None
            else Room(memory_bytes, pinned=frozenset(pinned), held=self._held, rest=self._rest, loader=loader)
        )
        self._load = load
        self._queue_requests_max = queue_requests_max
        self.serving = Serving(scheduling, queue_requests_max=queue_requests_max, resolve=self._resolve_near)
        self._drain_s = drain_s
        self._endings: dict[asyncio.Task[None], Served] = {}

    # -- coming and going ----------------------------------------------------------------------------------------

    async def load(self, found: FoundModel) -> None:
        """Loads or reloads a model: each version it should serve, then lets go of the others.

        Raises `LoadFailed` with the first reason if any version cannot be loaded; the old ones then go on serving.
        """
        model = self._get_or_add(found.name, found.namespace)
        model.is_wanted = True
        async with model.lock:
            model.problem = ""
            numbers = versions_to_serve(found.config.version_policy, [version.number for version in found.versions])
            by_number = {version.number: version for version in found.versions}
            if not numbers:
                raise self._failed(model, f"model `{found.name}` has no version to serve in {found.folder}")
            failures = [await self._load_version(model, found, by_number[number]) for number in numbers]
            first = next((failure for failure in failures if failure is not None), None)
            if first is not None:
                raise first
            for number in [number for number in model.versions if number not in numbers]:
                self._let_go(model, model.versions[number], is_gone=number not in by_number)
            self._point(model)

    async def unload(self, name: str, *, namespace: str = "") -> None:
        """Stops serving a model; requests under way are still answered, behind the caller's back."""
        model = self._get(name, namespace)
        if model is None:
            return
        async with model.lock:
            model.is_wanted = False
            for version in model.versions.values():
                if version.served is not None or version.state is not ModelState.UNAVAILABLE:
                    self._let_go(model, version)
                version.reason = UNLOADED
            self._point(model)

    async def close(self) -> None:
        """Unloads everything and waits until it is gone, or for as long as a drain may take."""
        models = list(self._all())
        for version in [version for model in models for version in model.versions.values()]:
            if version.waking is not None:
                version.waking.cancel()
        # A load under way holds its model's lock, and may be stuck in somebody's code.
        ends = (asyncio.wait_for(self.unload(one.name, namespace=one.namespace), self._drain_s) for one in models)
        for model, end in zip(models, await asyncio.gather(*ends, return_exceptions=True), strict=True):
            if isinstance(end, BaseException):
                log.warning("model %s is still being loaded; left behind", model.key)
        while self._endings:
            await asyncio.gather(*self._endings, return_exceptions=True)

    async def ended(self) -> None:
        """Returns once every version that is on its way out now is closed."""
        if self._endings:
            await asyncio.wait(list(self._endings))

    async def _load_version(
        self, model: Model, found: FoundModel, source: FoundVersion, *, is_on_demand: bool = False
    ) -> FarthingError | None:
        version = model.versions.setdefault(source.number, Version(source.number))
        if version.served is None:
            version.state, version.reason = ModelState.LOADING, ""
            self._resolved.clear()
        try:
            self.serving.check(found.config)
            if (
                version.served is not None
                and differs_in_instances(version.found, found)
                and await resize(version.served, found, on=self._loader, drain_s=self._drain_s)
            ):
                version.found = found
                log.info("model %s version %d: instances changed", model.key, version.number)
                return None
            loaded = await self._read(version, found, source, is_on_demand=is_on_demand)
            if isinstance(loaded, LoadedEnsemble):
                loaded = joined(loaded, self._resolve_near(model.namespace))
        except Exception as error:
            failure = error if isinstance(error, FarthingError) else LoadFailed(f"{source.path}: {error!r}")
            is_ours = not isinstance(error, FarthingError)
            log.log(
                logging.WARNING if isinstance(error, Unavailable) else logging.ERROR,  # for want of room, or broken
                "model %s version %d is unavailable: %s",
                model.key,
                source.number,
                failure,
                exc_info=is_ours and error,
            )
            if version.served is None:
                version.state, version.reason = ModelState.UNAVAILABLE, str(failure)
                self._resolved.clear()
            return failure
        version.found, version.source = found, source
        self._replace(model, version, loaded)
        return None

    async def _read(self, version: Version, found: FoundModel, source: FoundVersion, *, is_on_demand: bool) -> Loaded:
        if self._room is None:
            return await asyncio.get_running_loop().run_in_executor(self._loader, self._load, found, source)
        load_s = version.statistics.load_ns / 1e9
        return await self._room.load(
            version.memory, found, source, self._load, load_s=load_s, is_on_demand=is_on_demand
        )

    def _replace(self, model: Model, version: Version, loaded: Loaded) -> None:
        old = version.served
        version.served = self.serving.serve(loaded, version.statistics)
        version.statistics.load_ns = int(loaded.load_s * 1e9)
        version.statistics.memory_usage = _usage(version.memory)
        version.memory.loads += 1
        version.state, version.reason = ModelState.READY, ""
        self._point(model)
        log.info("model %s version %d is ready (%.2f s)", model.key, version.number, loaded.load_s)
        if isinstance(old, Resting):
            old.woken(version.served)
        elif old is not None:
            self._end(old)

    def _let_go(self, model: Model, version: Version, *, is_gone: bool = False) -> None:
        """Stops serving a version; one whose files are gone leaves the index too, which else would only grow."""
        served, version.served = version.served, None
        version.reason = UNLOADED
        if is_gone:
            del model.versions[version.number]
        if served is None:
            version.state = ModelState.UNAVAILABLE
            return
        version.state = ModelState.UNLOADING
        self._end(served, version)
        log.info("model %s version %d is unloading", model.key, version.number)

    def running(self) -> Iterable[Running]:
        """Batches inside engines now, of versions that are on their way out too."""
        for _, served in self.served():
            yield from served.running()
        for served in self._endings.values():
            yield from served.running()

    # -- making room ---------------------------------------------------------------------------------------------

    @property
    def room(self) -> Room | None:
        """The memory budget, if there is one."""
        return self._room

    def _held(self) -> list[Held]:
        return [
            Held(
                (model.key, version.number),
                version.memory,
                version.statistics.last_inference_ms,
                is_busy=not isinstance(served, ServedVersion) or served.is_busy,
                may_go=isinstance(served, ServedVersion) and not isinstance(served, ServedStreams),
            )
            for model in self._all()
            for version in model.versions.values()
            if (served := version.served) is not None and not isinstance(served, Resting)
        ]

    async def _rest(self, key: Key) -> None:
        """Unloads a version to make room; it answers on."""
        model = next(model for model in self._all() if model.key == key[0])
        version = model.versions[key[1]]
        served = version.served
        assert served is not None
        assert self._room is not None
        room, statistics = self._room, version.statistics
        version.served = Resting(
            served,
            wake=lambda: self._wake(model, version),
            load_s=lambda: room.load_s(key, statistics.load_ns / 1e9),
            requests_max=self._queue_requests_max,
            loop=asyncio.get_running_loop(),
        )
        version.state, version.reason = ModelState.UNAVAILABLE, RESTING
        version.memory.evictions += 1
        statistics.memory_usage = ()
        self._point(model)
        log.info("model %s version %d is unloaded to make room", model.key, version.number)
        await asyncio.wait([self._end(served)])

    def _wake(self, model: Model, version: Version) -> None:
        if version.waking is None:
            version.waking = asyncio.get_running_loop().create_task(self._bring_back(model, version))

    async def _bring_back(self, model: Model, version: Version) -> None:
        """Loads a resting version, for the requests that wait for it."""
        try:
            async with model.lock:
                resting = version.served
                if not isinstance(resting, Resting):
                    return  # loaded or unloaded meanwhile
                assert version.found is not None
                assert version.source is not None
                failure = await self._load_version(model, version.found, version.source, is_on_demand=True)
                if failure is not None:
                    resting.failed(failure)
                    version.reason = RESTING if isinstance(failure, Unavailable) else str(failure)
        finally:
            version.waking = None

    def _end(self, served: Served, version: Version | None = None) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(self._drain_and_close(served, version))
        self._endings[task] = served
        task.add_done_callback(self._endings.pop)
        return task

    async def _drain_and_close(self, served: Served, version: Version | None) -> None:
        empty = asyncio.Event()
        served.when_empty(empty.set)
        try:
            await asyncio.wait_for(empty.wait(), self._drain_s)
        except TimeoutError:
            served.fail_all(Unavailable(f"model `{served.spec.name}` was unloaded", retry_after_s=1))
        await asyncio.get_running_loop().run_in_executor(None, served.close, CLOSE_S_MAX)
        if version is not None and version.served is None and version.state is ModelState.UNLOADING:
            version.state = ModelState.UNAVAILABLE

    def _failed(self, model: Model, reason: str) -> LoadFailed:
        self.problem(model.name, reason, namespace=model.namespace)
        return LoadFailed(reason)


def _usage(memory: Memory) -> tuple[MemoryUsage, ...]:
    return (MemoryUsage(type="CPU", id=0, byte_size=memory.bytes),) if memory.bytes else ()
