"""The whole server without a socket: start it, ask it, change it, stop it.

Joins the repository (what is on disk), the catalog (what is loaded) and the operator's wish (model control). It lives
on an event loop and never blocks it. Bytes, ports, keys and admission belong to `protocols` and `server`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from farthing.config.model import ModelConfig
from farthing.config.server import ModelControl, ServerConfig
from farthing.repository import FoundModel, Repository, Snapshot, ambiguous, changes, model_key, settled
from farthing.runtime.catalog import Catalog
from farthing.runtime.graph import models_of, waves, with_parts
from farthing.runtime.language_model import LanguageModel
from farthing.runtime.load_any import load_any
from farthing.runtime.memory import Promises
from farthing.runtime.overrides import Overrides
from farthing.runtime.served import Served
from farthing.runtime.shared_memory import SharedMemory
from farthing.runtime.subrequests import RuntimeSubrequests
from farthing.telemetry.clock import Clock, MonotonicClock
from farthing.telemetry.metrics import ModelSample
from farthing.telemetry.statistics import StatisticsSnapshot
from farthing.telemetry.watchdog import Hung, progress
from farthing.types.errors import FarthingError, Unavailable
from farthing.types.models import ModelStatus
from farthing.types.requests import InferRequest, InferResponse

LOADERS: Final = 2
"""Models loaded at the same time: graph compilation uses all cores by itself, reading files does not."""

Value = TypeVar("Value")

log = logging.getLogger(__name__)


class Runtime:
    """Models behind one door. All methods belong to the event loop that `start` ran on."""

    def __init__(self, repository: Repository, config: ServerConfig, clock: Clock | None = None) -> None:
        self._repository = repository
        self._config = config
        self._clock = clock or MonotonicClock()
        self._loader = ThreadPoolExecutor(LOADERS, thread_name_prefix="load")
        self._subrequests = RuntimeSubrequests(self.resolve, self._clock)
        self.catalog = Catalog(
            loader=self._loader,
            queue_requests_max=config.admission.queue_requests_max,
            drain_s=config.exit_timeout_s,
            scheduling=config.scheduling,
            load=partial(load_any, config.language, config.admission.queue_requests_max, Promises(), self._subrequests),
            memory_bytes=config.model_memory_bytes,
            pinned=config.pinned_models,
        )
        self.shared_memory = SharedMemory(is_open=config.model_control is ModelControl.EXPLICIT)
        self._overrides = Overrides(config.load_overrides, may_be_code=config.keys is not None, repository=repository)
        self._seen = Snapshot(models={}, problems={})
        self._drops: set[asyncio.Task[None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._is_started = False
        self._is_stopping = False

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads what should be loaded. What cannot be is UNAVAILABLE with its reason; the others serve."""
        self._subrequests.start(asyncio.get_running_loop())
        self._seen = await self._scan()
        control = self._config.model_control
        wanted = with_parts(self._config.load_models, self._seen.models)
        is_all = control is not ModelControl.EXPLICIT or "*" in wanted
        for key, found in self._seen.models.items():
            self.catalog.announce(found.name, is_wanted=is_all or key in wanted, namespace=found.namespace)
        for key, problem in self._seen.problems.items():
            if is_all or key in wanted or problem.name in wanted:
                log.error("model %s is unavailable: %s", key, problem.reason)
                self.catalog.problem(problem.name, problem.reason, namespace=problem.namespace)
        known = {found.name for found in self._seen.models.values()} | self._seen.models.keys()
        for name in wanted - {"*"} - known - {problem.name for problem in self._seen.problems.values()}:
            self.catalog.problem(name, f"no model `{name}` in the repositories")
        await self._load_all(found for key, found in self._seen.models.items() if is_all or key in wanted)
        self._is_started = True
        if control is ModelControl.POLL:
            self._poller = asyncio.get_running_loop().create_task(self._poll())

    def begin_stop(self) -> None:
        """Turns readiness red; requests are still answered."""
        self._is_stopping = True
        if self._poller is not None:
            self._poller.cancel()

    async def close(self) -> None:
        """Answers what is under way and unloads everything."""
        self.begin_stop()
        await self.catalog.close()
        self._overrides.close()
        self._loader.shutdown(wait=False, cancel_futures=True)

    # -- inference -----------------------------------------------------------------------------------------------

    def resolve(self, name: str, version: str = "", within: str = "", *, near: str | None = None) -> Served:
        """The model version that answers; its `submit` takes requests. Raises as `Catalog.resolve`."""
        return self.catalog.resolve(name, version, within, near)

    def language_models(self) -> list[LanguageModel]:
        """Those that answer now, the latest version of each, by name; without those whose name is not clear."""
        latest = {served.spec.name for _, served in self.catalog.served() if isinstance(served, LanguageModel)}
        found = (self.catalog.resolve(name) for name in sorted(latest) if len(self.catalog.namespaces(name)) == 1)
        return [model for model in found if isinstance(model, LanguageModel)]

    async def infer(self, request: InferRequest) -> InferResponse:
        """One request, awaited. Raises the `FarthingError` it was answered with; cancelling withdraws it."""
        served = self.resolve(request.model_name, request.model_version)
        future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()

        def done(answer: InferResponse | FarthingError) -> None:
            if future.done():
                return
            if isinstance(answer, FarthingError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        withdraw = served.submit(request, *served.check(request), self._clock.now_ns(), done)
        try:
            return await future
        except asyncio.CancelledError:
            withdraw()
            raise

    @property
    def regions(self) -> SharedMemory | None:
        """Shared memory that requests may name; None where it is closed."""
        return self.shared_memory if self.shared_memory.is_open else None

    # -- what there is -------------------------------------------------------------------------------------------

    def index(self, *, only_ready: bool = False) -> list[ModelStatus]:
        """The repository index: every model known, a line a version."""
        return [line for line in self.catalog.status() if not only_ready or line.state == "READY"]

    def statistics(self, name: str = "", version: str = "") -> list[StatisticsSnapshot]:
        """Of one version, of all ready versions of a model, or of all models."""
        if version:
            asked = [self.resolve(name, version)]
        else:
            if name:
                self.resolve(name)
            asked = [served for _, served in self.catalog.served() if not name or served.spec.name == name]
        return [one.statistics.snapshot(one.spec.name, one.version, one.spec.namespace) for one in asked]

    def model_samples(self) -> Iterable[ModelSample]:
        """For the metrics."""
        return self.catalog.samples()

    def memory_bytes(self) -> tuple[int, int] | None:
        """What the models hold together and what they may; None without a budget."""
        room = self.catalog.room
        return None if room is None else (room.held_bytes, room.budget_bytes)

    def not_ready(self) -> str:
        """Why the server is not ready; empty when it is."""
        if self._is_stopping:
            return "the server is stopping"
        if not self._is_started and self._config.strict_readiness:
            return "models are being loaded"
        return self.catalog.not_ready() if self._config.strict_readiness else ""

    def hung(self) -> Hung | None:
        """A batch that has been inside its engine for too long."""
        return progress(self._clock.now_ns(), self.catalog.running(), int(self._config.hang_timeout_s * 1e9))

    # -- control -------------------------------------------------------------------------------------------------

    async def load(
        self, name: str, config: ModelConfig | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Loads or reloads a model from its repository, with another configuration if one is given, or from `files`
        (path in its folder to content) in place of the repository's. Where several repositories have the name, all
        of them, and nothing may be given.

        Raises `Unavailable` unless models are controlled explicitly, `Forbidden` for what a load may not bring,
        `NotFound` or `LoadFailed` with the reason.
        """
        self._require_explicit_control()
        self._overrides.check(has_config=config is not None, files=files or ())
        if files:
            assert config is not None, "files come with their configuration"
            await self._load_brought(name, config, files)
            return
        models = await self._blocking(partial(self._repository.find_all, name, config=config))
        if config is not None and len(models) > 1:
            raise ambiguous(name, [found.namespace for found in models])
        for found in models:
            await self._load_all(await self._missing_models(found))
            await self.catalog.load(found)
            self._drop_later(self._overrides.keep(found.key, None))
        for namespace in set(self.catalog.namespaces(name)) - {found.namespace for found in models}:
            await self._unload(name, namespace)  # its repository has it no more
            self.catalog.forget(name, namespace=namespace)

    async def _load_brought(self, name: str, config: ModelConfig, files: Mapping[str, bytes]) -> None:
        namespaces = self.catalog.namespaces(name)
        if len(namespaces) > 1:
            raise ambiguous(name, namespaces)
        found = await self._blocking(partial(self._overrides.write, name, config, files))
        found = replace(found, namespace=namespaces[0] if namespaces else "")
        try:
            await self._load_all(await self._missing_models(found))
            await self.catalog.load(found)
        except BaseException:
            self._drop_later(found.folder)
            raise
        self._drop_later(self._overrides.keep(found.key, found))

    def _drop_later(self, folder: Path | None) -> None:
        """Removes files that clients brought, once what was loaded from them is closed."""
        if folder is not None:
            task = asyncio.get_running_loop().create_task(self._drop(folder))
            self._drops.add(task)
            task.add_done_callback(self._drops.discard)

    async def _drop(self, folder: Path) -> None:
        await self.catalog.ended()
        await asyncio.get_running_loop().run_in_executor(None, self._overrides.drop, folder)

    async def _blocking(self, call: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._loader, call)

    async def unload(self, name: str) -> None:
        """Stops serving all models of this name; returns at once, while requests under way are answered."""
        self._require_explicit_control()
        for namespace in self.catalog.namespaces(name):
            await self._unload(name, namespace)

    async def _unload(self, name: str, namespace: str) -> None:
        await self.catalog.unload(name, namespace=namespace)
        self._drop_later(self._overrides.keep(model_key(name, namespace), None))

    def _require_explicit_control(self) -> None:
        if self._is_stopping:
            raise Unavailable("Server is stopping")
        if self._config.model_control is not ModelControl.EXPLICIT:
            raise Unavailable(
                "explicit model load / unload is not allowed if polling is enabled",
                hint="start with --model-control-mode explicit",
            )

    # -- the repository ------------------------------------------------------------------------------------------

    async def _scan(self) -> Snapshot:
        return await asyncio.get_running_loop().run_in_executor(self._loader, self._repository.scan)

    async def _load_all(self, models: Iterable[FoundModel]) -> None:
        """All at once, but an ensemble after the models it is made of."""
        for wave in waves(models):
            results = await asyncio.gather(*(self.catalog.load(found) for found in wave), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException) and not isinstance(result, FarthingError):
                    raise result

    async def _missing_models(self, ensemble: FoundModel) -> list[FoundModel]:
        """The models of an ensemble that do not answer yet, and those of ensembles among them."""
        missing: dict[str, FoundModel] = {}
        left = [(ensemble.namespace, *step) for step in models_of(ensemble)]
        while left:
            near, name, within = left.pop()
            if model_key(name, near) in missing or self.catalog.ready_versions(name, within, near):
                continue
            for found in await self._blocking(partial(self._repository.find_all, name, within=within, near=near)):
                if found.key in missing or found.key == ensemble.key or self._is_ready(found):
                    continue
                missing[found.key] = found
                left += [(found.namespace, *step) for step in models_of(found)]
        return list(missing.values())

    def _is_ready(self, found: FoundModel) -> bool:
        return bool(self.catalog.ready_versions(found.name, found.namespace))

    async def _poll(self) -> None:
        """Follows the repositories: what came is loaded, what changed reloaded, what went unloaded."""
        while True:
            await asyncio.sleep(self._config.poll_s)
            try:
                await self.look_again()
            except Exception:
                log.exception("looking at the model repositories failed; trying again in %g s", self._config.poll_s)

    async def look_again(self) -> None:
        """One look at the repositories, in poll mode every `poll_s` seconds."""
        seen = await self._scan()
        before, self._seen = self._seen, settled(self._seen, seen)
        difference = changes(before, seen)
        for key, problem in seen.problems.items():
            if before.problems.get(key) != problem:
                log.error("model %s cannot be read: %s", key, problem.reason)
                self.catalog.problem(problem.name, problem.reason, namespace=problem.namespace)
        for key in difference.removed:  # a model, or a path or name that was nothing but a problem
            gone = before.models.get(key) or before.problems[key]
            await self.catalog.unload(gone.name, namespace=gone.namespace)
            self.catalog.forget(gone.name, namespace=gone.namespace)
        wanted = {*difference.added, *difference.changed}
        # Mended without a change to its files: it may be serving still, or never have been loaded.
        if wanted or difference.removed:  # what an ensemble lacked may be there now
            wanted |= {key for key, found in seen.models.items() if models_of(found) and not self._is_ready(found)}
        mended = [found for key, found in seen.models.items() if key in before.problems]
        wanted |= {one.key for one in mended if not self.catalog.mended(one.name, namespace=one.namespace)}
        await self._load_all(seen.models[key] for key in sorted(wanted))
