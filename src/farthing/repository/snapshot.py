"""What a look at the repository found, and what is different from the look before.

Values only. Looking is `repository`'s, loading and unloading what changed is `runtime`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from farthing.config.model import ModelConfig
from farthing.config.pipeline import PipelineGraph
from farthing.repository.namespaces import model_key


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """A version and its model file (a folder, for ensembles and formats that are folders)."""

    number: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A model that could be loaded: its configuration makes sense and every version to serve has a file."""

    name: str
    folder: Path
    """Where it lives; nothing outside is read on its behalf."""
    config: ModelConfig
    has_config: bool
    """Whether somebody wrote a configuration."""
    versions: tuple[FoundVersion, ...]
    """All that have a model file, ascending; `versions_to_serve` picks."""
    fingerprint: str
    """Changes when a file of the model does."""
    content: str = ""
    """Changes when a file other than its configuration does; empty where nobody looked."""
    pipeline: PipelineGraph | None = None
    """Of a pipeline what its file says; `config` then has what Triton's words can say of it."""
    namespace: str = ""
    """The repository it is in, where names need not be unique; else empty."""

    @property
    def key(self) -> str:
        """Its name, or what it is called among all namespaces."""
        return model_key(self.name, self.namespace)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something in the repository cannot be served."""

    name: str
    reason: str
    path: Path = Path()
    namespace: str = ""

    @property
    def key(self) -> str:
        """As a model's."""
        return model_key(self.name, self.namespace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The repository at one moment, by key. A scan puts one in `models` or in `problems`, `settled` maybe in both."""

    models: Mapping[str, FoundModel] = field(default_factory=dict)
    problems: Mapping[str, Problem] = field(default_factory=dict)
    unread: tuple[Path, ...] = ()
    """Paths given by the operator that could not be read at all; each is also a problem, named by its path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Keys of models to load, to unload and to load again."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def changes(before: Snapshot, after: Snapshot) -> Changes:
    """What to do to go from one state to the other.

    A model that has a problem now, or whose whole repository cannot be read, is not removed: it was fine when it
    was loaded, and a half-written update or a disk that is away for a moment must not take it down. So that this
    holds over several looks, `before` is what `settled` made of the looks up to now.
    """
    before_places = {name: problem.path for name, problem in before.problems.items()}
    before_places |= {name: model.folder for name, model in before.models.items()}
    return Changes(
        added=tuple(sorted(after.models.keys() - before.models.keys())),
        removed=tuple(
            sorted(
                name
                for name in before_places.keys() - after.models.keys() - after.problems.keys()
                if not _is_under(before_places[name], after.unread)
            )
        ),
        changed=tuple(
            sorted(
                name
                for name in after.models.keys() & before.models.keys()
                if before.models[name].fingerprint != after.models[name].fingerprint
            )
        ),
    )


def settled(before: Snapshot, after: Snapshot) -> Snapshot:
    """The state once `changes(before, after)` are carried out: `after`, and what was kept of `before`."""
    gone = changes(before, after).removed
    models = {name: model for name, model in before.models.items() if name not in gone}
    problems = {name: it for name, it in before.problems.items() if name not in gone and name not in after.models}
    return Snapshot(
        models=models | dict(after.models),
        problems=problems | dict(after.problems),
        unread=after.unread,
    )


def _is_under(place: Path, roots: tuple[Path, ...]) -> bool:
    return any(place == root or root in place.parents for root in roots)
