"""Which models and versions there are, in which state, and how they come and go.

Owns the table of models; everything here runs on the event loop, and only reading and closing models happens on
threads. A version being replaced serves until its successor is ready, and a failed load changes nothing for requests.
Files are found by `repository`; when to look at them is up to `runtime.runtime`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from farthing.config.server import SCHEDULING_DEFAULT, SchedulingSettings
from farthing.repository import FoundModel, FoundVersion, ambiguous, meant, model_key, versions_to_serve
from farthing.runtime.ensemble import LoadedEnsemble, joined
from farthing.runtime.language_model import LanguageModel
from farthing.runtime.load import load_version
from farthing.runtime.placement import Key
from farthing.runtime.resize import differs_in_instances, resize
from farthing.runtime.resting import RESTING, Resting
from farthing.runtime.room import Held, Memory, Room
from farthing.runtime.serve_loaded import Loaded, Serving
from farthing.runtime.served import Served, ServedVersion
from farthing.runtime.served_streams import ServedStreams
from farthing.telemetry.metrics import ModelSample
from farthing.telemetry.statistics import MemoryUsage, ModelStatistics
from farthing.telemetry.watchdog import Running
from farthing.types.errors import FarthingError, InvalidInput, LoadFailed, NotFound, Unavailable
from farthing.types.models import ModelState, ModelStatus

CLOSE_S_MAX: Final = 10.0
"""How long the closing of a model that has nothing left to do may take before it is left behind."""

VERSION_DIGITS_MAX: Final = 18
"""Digits of a version in a request: what fits 64 bits."""

RESOLVED_MAX: Final = 4096
"""Names and versions whose look-up is remembered."""


UNLOADED: Final = "unloaded"
"""The reason of a version that nobody wants to be served, as Triton words it."""

log = logging.getLogger(__name__)


class Version:
    """One version of one model: its state, and what serves it while there is something."""

    __slots__ = ("found", "memory", "number", "reason", "served", "source", "state", "statistics", "waking")

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = ModelState.LOADING
        self.reason = ""
        self.served: Served | None = None
        self.found: FoundModel | None = None
        """What it was loaded from."""
        self.statistics = ModelStatistics()
        self.memory = Memory()
        self.source: FoundVersion | None = None
        """Its files, which on demand are loaded again."""
        self.waking: asyncio.Task[None] | None = None


class Model:
    """One model: its versions, and the lock that makes loads and unloads of it take turns."""

    __slots__ = ("is_wanted", "key", "latest", "lock", "name", "namespace", "problem", "versions")

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        self.namespace = namespace
        self.key = model_key(name, namespace)
        self.versions: dict[int, Version] = {}
        self.latest: Served | None = None
        self.is_wanted = False
        """Whether readiness waits for it: it should be loaded."""
        self.problem = ""
        """Why it cannot even be read; its versions serve on as they were loaded."""
        self.lock = asyncio.Lock()


Load = Callable[[FoundModel, FoundVersion], Loaded]


class Catalog:
    """The table of models."""

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
        self._models: dict[str, dict[str, Model]] = {}
        """By name, and then by namespace."""
        self._endings: dict[asyncio.Task[None], Served] = {}
        self._resolved: dict[tuple[str, str, str, str | None], Served] = {}

    # -- looking up ----------------------------------------------------------------------------------------------

    def resolve(self, name: str, version: str = "", within: str = "", near: str | None = None) -> Served:
        """The version that answers requests for this name and version (empty: the highest one that is ready).

        Where several repositories have the name, `within` says which is meant, and `near` the one whose model asks:
        its own is meant first. Raises `NotFound`, `InvalidInput` for a name that stands for several models or, for a
        version that is only not ready, `Unavailable`.
        """
        asked = (name, version, within, near)
        served = self._resolved.get(asked)
        if served is None:
            served = self._resolve(self._model(name, within, near), version)
            if len(self._resolved) < RESOLVED_MAX:  # "1", "01", "001": clients choose how they write a number
                self._resolved[asked] = served
        return served

    def _resolve_near(self, namespace: str) -> Callable[[str, str, str], Served]:
        return partial(self.resolve, near=namespace)

    def _model(self, name: str, within: str, near: str | None) -> Model:
        models = self._models.get(name, {})
        namespaces = meant(models, within=within, near=near)
        if len(namespaces) > 1:
            raise ambiguous(name, namespaces)
        if not namespaces:
            raise NotFound(
                f"Request for unknown model: '{name}' is not found{f' in {within}' if within else ''}",
                hint=f"models here: {', '.join(self._models) or 'none'}",
            )
        return models[namespaces[0]]

    def _resolve(self, model: Model, version: str) -> Served:
        name = model.name
        if not version:
            if model.latest is not None:
                return model.latest
            raise self._no_version(model)
        if not (version.isascii() and version.isdigit() and len(version) <= VERSION_DIGITS_MAX):
            raise InvalidInput(
                f"model version `{version[:32]}` is not a whole number of at most {VERSION_DIGITS_MAX} digits",
                hint="leave it out for the latest",
            )
        one = model.versions.get(int(version))
        if one is None:
            found = ", ".join(map(str, sorted(model.versions))) or "none"
            raise NotFound(
                f"Request for unknown model: '{name}' version {version} is not found; versions found: {found}",
                hint=f"add {name}/{version}/ to the repository, or ask for one of those",
            )
        if one.served is None:
            raise _not_ready(name, one)
        return one.served

    @staticmethod
    def _no_version(model: Model) -> FarthingError:
        if model.versions:
            newest = model.versions[max(model.versions)]
            if newest.state in (ModelState.LOADING, ModelState.UNLOADING) or newest.reason != UNLOADED:
                return _not_ready(model.name, newest)
        if model.problem:
            return Unavailable(f"Request for unknown model: '{model.name}' cannot be loaded: {model.problem}")
        return NotFound(
            f"Request for unknown model: '{model.name}' has no available versions",
            hint="load it first, or ask the repository index for the reason",
        )

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def namespaces(self, name: str) -> list[str]:
        """The repositories that have a model of this name; an empty one where there are no namespaces."""
        return list(self._models.get(name, {}))

    def ready_versions(self, name: str, within: str = "", near: str | None = None) -> list[int]:
        """Numbers of the versions that answer requests, ascending; none where it is not clear whose."""
        models = self._models.get(name, {})
        namespaces = meant(models, within=within, near=near)
        if len(namespaces) != 1:
            return []
        return sorted(v.number for v in models[namespaces[0]].versions.values() if v.served is not None)

    def _all(self) -> Iterator[Model]:
        for models in self._models.values():
            yield from models.values()

    def _get(self, name: str, namespace: str) -> Model | None:
        return self._models.get(name, {}).get(namespace)

    def _get_or_add(self, name: str, namespace: str) -> Model:
        models = self._models.setdefault(name, {})
        return models.get(namespace) or models.setdefault(namespace, Model(name, namespace))

    def served(self) -> Iterable[tuple[Version, Served]]:
        """Every version that answers requests."""
        for model in self._all():
            for version in model.versions.values():
                if version.served is not None:
                    yield version, version.served

    def status(self) -> list[ModelStatus]:
        """The repository index."""
        lines: list[ModelStatus] = []
        for model in sorted(self._all(), key=lambda model: (model.name, model.namespace)):
            name, namespace = model.name, model.namespace
            if not model.versions:
                state = ModelState.UNAVAILABLE if model.problem else ""
                lines.append(ModelStatus(name=name, state=state, reason=model.problem, namespace=namespace))
            lines += [
                ModelStatus(name=name, version=str(v.number), state=v.state, reason=v.reason, namespace=namespace)
                for _, v in sorted(model.versions.items())
            ]
        return lines

    def not_ready(self) -> str:
        """The first model that should be ready and is not, with the reason; empty when all are.

        A model is ready while any of its versions serves: an update that fails must not take the server down.
        """
        for model in self._all():
            if not model.is_wanted:
                continue
            if model.latest is None:
                return f"model `{model.key}` is not loaded{_why(model)}"
            for version in model.versions.values():
                if version.served is not None and (trouble := version.served.health()):
                    return f"model `{model.key}` version {version.number}: {trouble}"
        return ""

    def samples(self) -> Iterable[ModelSample]:
        """Every version that was ever loaded, for the metrics."""
        for model in self._all():
            for version in model.versions.values():
                served = version.served
                generation = served.sample() if isinstance(served, LanguageModel) else None
                memory = version.memory
                yield ModelSample(
                    model.name,
                    str(version.number),
                    served is not None,
                    version.statistics,
                    generation,
                    loads=memory.loads,
                    evictions=memory.evictions,
                    namespace=model.namespace,
                )

    def running(self) -> Iterable[Running]:
        """Batches inside engines now, of versions that are on their way out too."""
        for _, served in self.served():
            yield from served.running()
        for served in self._endings.values():
            yield from served.running()

    # -- coming and going ----------------------------------------------------------------------------------------

    def announce(self, name: str, *, is_wanted: bool, namespace: str = "") -> None:
        """A model exists; it is not (or not yet) loaded."""
        model = self._get_or_add(name, namespace)
        model.is_wanted = model.is_wanted or is_wanted
        self._resolved.clear()

    def problem(self, name: str, reason: str, *, namespace: str = "") -> None:
        """A model that should be loaded cannot even be read. What serves of it goes on serving."""
        model = self._get_or_add(name, namespace)
        model.is_wanted = True
        model.problem = reason
        self._resolved.clear()

    def mended(self, name: str, *, namespace: str = "") -> bool:
        """The model can be read again; answers whether something of it serves."""
        model = self._get(name, namespace)
        if model is None:
            return False
        model.problem = ""
        self._resolved.clear()
        return model.latest is not None

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

    def forget(self, name: str, *, namespace: str = "") -> None:
        """The model's files are gone: it leaves the index once nothing of it serves."""
        model = self._get(name, namespace)
        if model is not None and not any(version.served for version in model.versions.values()):
            del self._models[name][namespace]
            if not self._models[name]:
                del self._models[name]
            self._resolved.clear()

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

    def _point(self, model: Model) -> None:
        """Lets the empty version mean the highest one that is ready."""
        ready = [number for number, version in model.versions.items() if version.served is not None]
        model.latest = model.versions[max(ready)].served if ready else None
        self._resolved.clear()


def _usage(memory: Memory) -> tuple[MemoryUsage, ...]:
    return (MemoryUsage(type="CPU", id=0, byte_size=memory.bytes),) if memory.bytes else ()


def _not_ready(name: str, version: Version) -> Unavailable:
    why = f": {version.reason}" if version.reason else ""
    is_passing = version.state in (ModelState.LOADING, ModelState.UNLOADING)
    return Unavailable(
        f"Request for unknown model: '{name}' version {version.number} is not at ready state ({version.state}{why})",
        hint="" if is_passing else "the repository index tells the reason; load it again once that is mended",
        retry_after_s=1 if is_passing else None,
    )


def _why(model: Model) -> str:
    reasons = [model.problem] + [
        f"version {version.number} is {version.state}{f': {version.reason}' if version.reason else ''}"
        for version in model.versions.values()
    ]
    told = "; ".join(reason for reason in reasons if reason)
    return f": {told}" if told else ""
