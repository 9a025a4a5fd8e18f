"""Which models and versions there are, in which state, and how they come and go.

Owns the table of models; everything here runs on the event loop, and only reading and closing models happens on
threads. A version being replaced serves until its successor is ready, and a failed load changes nothing for requests.
Files are found by `repository`; when to look at them is up to `runtime.runtime`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from farthing.repository import FoundModel, FoundVersion, versions_to_serve
from farthing.runtime.ensemble import Ensemble, LoadedEnsemble, joined
from farthing.runtime.language_model import LanguageModel, LoadedLanguageModel
from farthing.runtime.load import LoadedVersion, load_version
from farthing.runtime.served import Served, ServedVersion
from farthing.runtime.served_sequences import ServedSequences
from farthing.telemetry.metrics import ModelSample
from farthing.telemetry.statistics import ModelStatistics
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

    __slots__ = ("number", "reason", "served", "state", "statistics")

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = ModelState.LOADING
        self.reason = ""
        self.served: Served | None = None
        self.statistics = ModelStatistics()


class Model:
    """One model by name: its versions, and the lock that makes loads and unloads of it take turns."""

    __slots__ = ("is_wanted", "latest", "lock", "name", "problem", "versions")

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions: dict[int, Version] = {}
        self.latest: Served | None = None
        self.is_wanted = False
        """Whether readiness waits for it: it should be loaded."""
        self.problem = ""
        """Why it cannot even be read; its versions serve on as they were loaded."""
        self.lock = asyncio.Lock()


Loaded = LoadedVersion | LoadedLanguageModel | LoadedEnsemble
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
    ) -> None:
        """`load` reads a version; it is called on the loader's threads."""
        self._loader = loader
        self._load = load
        self._queue_requests_max = queue_requests_max
        self._drain_s = drain_s
        self._models: dict[str, Model] = {}
        self._endings: dict[asyncio.Task[None], Served] = {}
        self._resolved: dict[tuple[str, str], Served] = {}

    # -- looking up ----------------------------------------------------------------------------------------------

    def resolve(self, name: str, version: str = "") -> Served:
        """The version that answers requests for this name and version (empty: the highest one that is ready).

        Raises `NotFound` or, for a version that is only not ready, `Unavailable`.
        """
        served = self._resolved.get((name, version))
        if served is None:
            served = self._resolve(name, version)
            if len(self._resolved) < RESOLVED_MAX:  # "1", "01", "001": clients choose how they write a number
                self._resolved[(name, version)] = served
        return served

    def _resolve(self, name: str, version: str) -> Served:
        model = self._models.get(name)
        if model is None:
            raise NotFound(
                f"Request for unknown model: '{name}' is not found",
                hint=f"models here: {', '.join(self._models) or 'none'}",
            )
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

    def ready_versions(self, name: str) -> list[int]:
        """Numbers of the versions that answer requests, ascending."""
        model = self._models.get(name)
        return sorted(v.number for v in model.versions.values() if v.served is not None) if model else []

    def served(self) -> Iterable[tuple[Version, Served]]:
        """Every version that answers requests."""
        for model in self._models.values():
            for version in model.versions.values():
                if version.served is not None:
                    yield version, version.served

    def status(self) -> list[ModelStatus]:
        """The repository index."""
        lines: list[ModelStatus] = []
        for model in sorted(self._models.values(), key=lambda model: model.name):
            if not model.versions:
                state = ModelState.UNAVAILABLE if model.problem else ""
                lines.append(ModelStatus(name=model.name, state=state, reason=model.problem))
            lines += [
                ModelStatus(name=model.name, version=str(v.number), state=v.state, reason=v.reason)
                for _, v in sorted(model.versions.items())
            ]
        return lines

    def not_ready(self) -> str:
        """The first model that should be ready and is not, with the reason; empty when all are.

        A model is ready while any of its versions serves: an update that fails must not take the server down.
        """
        for model in self._models.values():
            if not model.is_wanted:
                continue
            if model.latest is None:
                return f"model `{model.name}` is not loaded{_why(model)}"
            for version in model.versions.values():
                if version.served is not None and (trouble := version.served.health()):
                    return f"model `{model.name}` version {version.number}: {trouble}"
        return ""

    def samples(self) -> Iterable[ModelSample]:
        """Every version that was ever loaded, for the metrics."""
        for model in self._models.values():
            for version in model.versions.values():
                served = version.served
                generation = served.sample() if isinstance(served, LanguageModel) else None
                yield ModelSample(model.name, str(version.number), served is not None, version.statistics, generation)

    def running(self) -> Iterable[Running]:
        """Batches inside engines now, of versions that are on their way out too."""
        for _, served in self.served():
            yield from served.running()
        for served in self._endings.values():
            yield from served.running()

    # -- coming and going ----------------------------------------------------------------------------------------

    def announce(self, name: str, *, is_wanted: bool) -> None:
        """A model exists; it is not (or not yet) loaded."""
        model = self._models.setdefault(name, Model(name))
        model.is_wanted = model.is_wanted or is_wanted
        self._resolved.clear()

    def problem(self, name: str, reason: str) -> None:
        """A model that should be loaded cannot even be read. What serves of it goes on serving."""
        model = self._models.setdefault(name, Model(name))
        model.is_wanted = True
        model.problem = reason
        self._resolved.clear()

    def mended(self, name: str) -> bool:
        """The model can be read again; answers whether something of it serves."""
        model = self._models.get(name)
        if model is None:
            return False
        model.problem = ""
        self._resolved.clear()
        return model.latest is not None

    async def load(self, found: FoundModel) -> None:
        """Loads or reloads a model: each version it should serve, then lets go of the others.

        Raises `LoadFailed` with the first reason if any version cannot be loaded; the old ones then go on serving.
        """
        model = self._models.setdefault(found.name, Model(found.name))
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

    async def unload(self, name: str) -> None:
        """Stops serving a model; requests under way are still answered, behind the caller's back."""
        model = self._models.get(name)
        if model is None:
            return
        async with model.lock:
            model.is_wanted = False
            for version in model.versions.values():
                if version.served is not None or version.state is not ModelState.UNAVAILABLE:
                    self._let_go(model, version)
                version.reason = UNLOADED
            self._point(model)

    def forget(self, name: str) -> None:
        """The model's files are gone: it leaves the index once nothing of it serves."""
        model = self._models.get(name)
        if model is not None and not any(version.served for version in model.versions.values()):
            del self._models[name]
            self._resolved.clear()

    async def close(self) -> None:
        """Unloads everything and waits until it is gone, or for as long as a drain may take."""
        # A load under way holds its model's lock, and may be stuck in somebody's code.
        ends = (asyncio.wait_for(self.unload(name), self._drain_s) for name in list(self._models))
        for name, end in zip(list(self._models), await asyncio.gather(*ends, return_exceptions=True), strict=True):
            if isinstance(end, BaseException):
                log.warning("model %s is still being loaded; left behind", name)
        while self._endings:
            await asyncio.gather(*self._endings, return_exceptions=True)

    async def _load_version(self, model: Model, found: FoundModel, source: FoundVersion) -> FarthingError | None:
        version = model.versions.setdefault(source.number, Version(source.number))
        if version.served is None:
            version.state, version.reason = ModelState.LOADING, ""
            self._resolved.clear()
        loop = asyncio.get_running_loop()
        try:
            loaded = await loop.run_in_executor(self._loader, self._load, found, source)
            if isinstance(loaded, LoadedEnsemble):
                loaded = joined(loaded, self.resolve)
        except Exception as error:
            failure = error if isinstance(error, FarthingError) else LoadFailed(f"{source.path}: {error!r}")
            is_ours = not isinstance(error, FarthingError)
            log.error(
                "model %s version %d is unavailable: %s", model.name, source.number, failure, exc_info=is_ours and error
            )
            if version.served is None:
                version.state, version.reason = ModelState.UNAVAILABLE, str(failure)
                self._resolved.clear()
            return failure
        self._replace(model, version, loaded)
        return None

    def _replace(self, model: Model, version: Version, loaded: Loaded) -> None:
        old = version.served
        version.served = self._serve(loaded, version.statistics)
        version.statistics.load_ns = int(loaded.load_s * 1e9)
        version.state, version.reason = ModelState.READY, ""
        self._point(model)
        log.info("model %s version %d is ready (%.2f s)", model.name, version.number, loaded.load_s)
        if old is not None:
            self._end(old)

    def _serve(self, loaded: Loaded, statistics: ModelStatistics) -> Served:
        loop = asyncio.get_running_loop()
        if isinstance(loaded, LoadedLanguageModel):
            return LanguageModel(loaded, loop=loop, statistics=statistics)
        if isinstance(loaded, LoadedEnsemble):
            most = self._queue_requests_max
            return Ensemble(loaded, resolve=self.resolve, requests_max=most, statistics=statistics)
        if loaded.sequences is not None:
            return ServedSequences(
                loaded,
                loaded.sequences,
                queue_requests_max=self._queue_requests_max,
                scheduler=loop,
                statistics=statistics,
            )
        return ServedVersion(loaded, queue_requests_max=self._queue_requests_max, scheduler=loop, statistics=statistics)

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
        log.info("model %s version %d is unloading", model.name, version.number)

    def _end(self, served: Served, version: Version | None = None) -> None:
        task = asyncio.get_running_loop().create_task(self._drain_and_close(served, version))
        self._endings[task] = served
        task.add_done_callback(self._endings.pop)

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
        self.problem(model.name, reason)
        return LoadFailed(reason)

    def _point(self, model: Model) -> None:
        """Lets the empty version mean the highest one that is ready."""
        ready = [number for number, version in model.versions.items() if version.served is not None]
        model.latest = model.versions[max(ready)].served if ready else None
        self._resolved.clear()


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
