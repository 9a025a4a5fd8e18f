"""Where models are looked for: the folders and files an operator named.

Looking changes nothing and holds nothing but what each `pipeline.py` gave: two scans of the same files are equal, and
`snapshot.changes` says what is different between two that are not. When to look, and what to do then, belongs to
`runtime`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from farthing.config.model import ModelConfig
from farthing.repository.config_files import read_config
from farthing.repository.layout import Filenames, is_model_folder, model_from_file, model_in_folder
from farthing.repository.listing import check_inside, is_beside, list_folder, real_path
from farthing.repository.names import check_model_name, made_legal, name_from_file
from farthing.repository.namespaces import ambiguous, meant
from farthing.repository.pipeline_files import PipelineFiles, file_version, pipeline_file
from farthing.repository.snapshot import FoundModel, Problem, Snapshot
from farthing.types.errors import FarthingError, LoadFailed, NotFound

MODELS_MAX: Final = 10_000
"""Models one repository folder may hold."""

LANGUAGE_MODELS: Final[Filenames] = {"llm": ("model.gguf",)}
"""Language models are nobody's engine: `runtime` loads them."""

DEFAULT_FILENAMES: Final[Filenames] = {
    "onnxruntime": ("model.onnx",),
    "openvino": ("model.xml",),
    "trees": ("model.txt", "model.json", "model.ubj", "xgboost.json", "xgboost.ubj"),
    "python": ("model.py",),
}
"""For callers who do not ask the engines."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A place where a model should be. `root` (resolved) is what its links may not leave."""

    name: str
    path: Path
    root: Path
    namespace: str = ""


class Repository:
    """The models under some paths: repository folders, single model folders and model files, in any mix.

    `default_filenames` maps engine names (and the other names they answer to) to the names of their model files. With
    `has_namespaces`, models of different folders may have one name.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        default_filenames: Filenames = DEFAULT_FILENAMES,
        has_namespaces: bool = False,
    ) -> None:
        self._pipelines = PipelineFiles()
        # Not resolved: a link `net.onnx` to a blob with a number for a name is still the model `net`.
        self._paths = tuple(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))  # noqa: PTH100
        self._filenames = {**default_filenames, **LANGUAGE_MODELS}
        self._has_namespaces = has_namespaces

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where it looks; absolute."""
        return self._paths

    def scan(self) -> Snapshot:
        """Everything there is now. What is wrong with a model is a `Problem` of that model alone."""
        candidates, problems, unread = self._candidates()
        return self._looked_at(candidates, None, problems, unread)

    def find(self, name: str, *, config: ModelConfig | None = None) -> FoundModel:
        """The model of that name as it is now, with `config` in place of its configuration file if given.

        Its neighbours are not read: of a hundred models, loading each in turn looks at each once. Raises `InvalidInput`
        for a name no model can have or several have, `NotFound`, or `LoadFailed` with the problem.
        """
        found = self.find_all(name, config=config)
        if len(found) > 1:
            raise ambiguous(name, [model.namespace for model in found])
        return found[0]

    def find_all(
        self, name: str, *, config: ModelConfig | None = None, within: str = "", near: str | None = None
    ) -> list[FoundModel]:
        """The models that a name may stand for (see `namespaces.meant`), one at least. Raises as `find`."""
        check_model_name(name)
        candidates, problems, unread = self._candidates()
        named = [candidate for candidate in candidates if candidate.name == name]
        places = meant(dict.fromkeys(candidate.namespace for candidate in named), within=within, near=near)
        named = [candidate for candidate in named if candidate.namespace in places]
        snapshot = self._looked_at(named, config, problems, unread)
        for problem in snapshot.problems.values():
            if problem.name == name:
                raise LoadFailed(problem.reason)
        if not snapshot.models:
            found = sorted({candidate.name for candidate in candidates})
            raise NotFound(
                f"no model `{name}` in the repository; looked in {within or ', '.join(map(str, self._paths))}",
                hint=f"found there: {', '.join(found[:20]) or 'nothing'}",
            )
        return list(snapshot.models.values())

    def _looked_at(
        self,
        candidates: Sequence[_Candidate],
        config: ModelConfig | None,
        problems: Sequence[Problem],
        unread: Sequence[Path],
    ) -> Snapshot:
        problems = list(problems)
        found: dict[str, list[FoundModel]] = {}
        for candidate in candidates:
            try:
                model = self._look(candidate, config)
            except (FarthingError, OSError) as error:
                problems.append(_problem(candidate.name, error, candidate.path, candidate.namespace))
            else:
                found.setdefault(model.key, []).append(model)
        return _snapshot(found, problems, unread)

    def look_in(self, folder: Path, *, name: str, config: ModelConfig) -> FoundModel:
        """The model in a folder that is not in the repository. Raises `InvalidInput`, `LoadFailed`, `OSError`."""
        return model_in_folder(folder, real_path(folder), self._filenames, self._pipelines, name=name, config=config)

    def _candidates(self) -> tuple[list[_Candidate], list[Problem], list[Path]]:
        candidates: list[_Candidate] = []
        problems: list[Problem] = []
        unread: list[Path] = []
        for path in self._paths:
            try:
                candidates += self._candidates_at(path)
            except (FarthingError, OSError) as error:
                problems.append(_problem(str(path), error, path))
                unread.append(path)
        return candidates, problems, unread

    def _candidates_at(self, path: Path) -> list[_Candidate]:
        if path.is_file():
            name = self._pipeline_name(path) or name_from_file(path)
            return [_Candidate(name, path, path.parent, self._namespace(path.parent))]
        root = real_path(path)
        if is_model_folder(path, self._filenames):
            hub, namespace = _hub_folder(path), self._namespace(path.parent)
            if hub is not None:
                name = _said_name(path) or made_legal(hub.name.rpartition("--")[2])
                return [_Candidate(name, path, real_path(hub), namespace)]
            return [_Candidate(_said_name(path) or self._pipeline_name(path) or path.name, path, root, namespace)]
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".") and not is_beside(entry.name)]
            names = sorted(entry.name for entry in visible if entry.is_dir())
        if len(names) > MODELS_MAX:
            raise LoadFailed(f"{path}: {len(names)} folders; a repository may have {MODELS_MAX}")
        return [_Candidate(name, path / name, root, self._namespace(path)) for name in names]

    def _namespace(self, folder: Path) -> str:
        return str(folder) if self._has_namespaces else ""

    def _pipeline_name(self, path: Path) -> str:
        """The name that a pipeline's file, or one in this folder, gives itself; empty if there is none."""
        try:
            folder = path if path.is_dir() else path.parent
            file = pipeline_file(folder, os.listdir(folder) if path.is_dir() else [path.name])  # noqa: PTH208
            if file is None:
                return ""
            version = list_folder(folder, real_path(folder)).fingerprint if path.is_dir() else file_version(file)
            return self._pipelines.read(file, version).name
        except (FarthingError, OSError):
            return ""  # looking at the model finds the fault again, and tells it

    def _look(self, candidate: _Candidate, config: ModelConfig | None) -> FoundModel:
        return replace(self._read(candidate, config), namespace=candidate.namespace)

    def _read(self, candidate: _Candidate, config: ModelConfig | None) -> FoundModel:
        if candidate.path.is_file():
            return model_from_file(candidate.path, self._pipelines, name=candidate.name, config=config)
        if candidate.path.is_symlink():
            check_inside(candidate.path, candidate.root)
        return model_in_folder(
            candidate.path, candidate.root, self._filenames, self._pipelines, name=candidate.name, config=config
        )


def _hub_folder(path: Path) -> Path | None:
    """Of a snapshot in Hugging Face's cache the model's folder there, which the snapshot's links may lead to.

    models--ORGANISATION--NAME/snapshots/REVISION/config.json -> ../../blobs/...
    """
    hub = path.parent.parent
    return hub if path.parent.name == "snapshots" and hub.name.startswith("models--") else None


def _said_name(folder: Path) -> str:
    """The name in a folder's configuration; empty if there is none, or none that can be read."""
    try:
        config = read_config(folder)
    except FarthingError:
        return ""  # looking at the model finds the fault again, and tells it
    return config.name if config is not None else ""


def _problem(name: str, error: FarthingError | OSError, path: Path, namespace: str = "") -> Problem:
    reason = str(error) if isinstance(error, FarthingError) else f"{error.filename}: {error.strerror}"
    # Names of files need not be UTF-8; what is told to clients must be.
    name, reason = (text.encode("utf-8", "backslashreplace").decode() for text in (name, reason))
    return Problem(name, reason, path, namespace)


def _snapshot(found: Mapping[str, list[FoundModel]], problems: Sequence[Problem], unread: Sequence[Path]) -> Snapshot:
    """Puts every key in one place: two models of one name are a problem of both, unless namespaces part them."""
    places: dict[str, list[FoundModel | Problem]] = {}
    for problem in problems:
        places.setdefault(problem.key, []).append(problem)
    for key, models in found.items():
        places.setdefault(key, []).extend(models)
    wrong = {problem.key: problem for problem in problems}
    for key, those in places.items():
        if len(those) > 1:
            first, paths = those[0], [one.path if isinstance(one, Problem) else _place(one) for one in those]
            reason = f"two models are called `{first.name}`: {' and '.join(map(str, sorted(paths)))}"
            wrong[key] = Problem(first.name, f"{reason}\nhint: rename one of them", paths[0], first.namespace)
    return Snapshot(
        models={key: models[0] for key, models in found.items() if key not in wrong},
        problems=wrong,
        unread=tuple(unread),
    )


def _place(model: FoundModel) -> Path:
    """What the operator would have to rename."""
    file = model.versions[0].path
    return file if file.parent == model.folder else model.folder
