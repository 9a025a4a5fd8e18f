"""Which models and versions there are, in which state, and which of them a name means.

The table that `runtime.catalog` fills and empties: look-ups, the repository index, what metrics and the watchdog ask.
Lives on the event loop. How versions come and go belongs to the catalog.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from farthing.repository import FoundModel, FoundVersion, ambiguous, meant, model_key
from farthing.runtime.language_model import LanguageModel
from farthing.runtime.room import Memory
from farthing.runtime.served import Served
from farthing.telemetry.metrics import ModelSample
from farthing.telemetry.statistics import ModelStatistics
from farthing.types.errors import FarthingError, InvalidInput, NotFound, Unavailable
from farthing.types.models import ModelState, ModelStatus

VERSION_DIGITS_MAX: Final = 18
"""Digits of a version in a request: what fits 64 bits."""

RESOLVED_MAX: Final = 4096
"""Names and versions whose look-up is remembered."""

UNLOADED: Final = "unloaded"
"""The reason of a version that nobody wants to be served, as Triton words it."""


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


class Models:
    """The table of models."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, Model]] = {}
        """By name, and then by namespace."""
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

    # -- what is known of them -----------------------------------------------------------------------------------

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

    def forget(self, name: str, *, namespace: str = "") -> None:
        """The model's files are gone: it leaves the index once nothing of it serves."""
        model = self._get(name, namespace)
        if model is not None and not any(version.served for version in model.versions.values()):
            del self._models[name][namespace]
            if not self._models[name]:
                del self._models[name]
            self._resolved.clear()

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
