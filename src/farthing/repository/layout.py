"""How a folder or a file becomes a model: where its versions are and which file of each is the model.

    NAME/config.pbtxt or NAME/model.toml    optional
    NAME/1/model.onnx                       a folder a version, as Triton has it
    NAME/model.onnx                         no version folders: version 1
    anything.onnx                           a file alone: version 1 of a model named after it
    NAME/pipeline.toml or NAME/pipeline.py  a pipeline of models that lie elsewhere; may be given as a file alone

A folder in Hugging Face's layout (config.json with *.safetensors) is a model as a whole, wherever a model file may be.
Which names a model file may have is for the engines to say; they are handed in.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from farthing.config.model import ModelConfig, check_model_config
from farthing.config.pipeline import scheduling_of
from farthing.repository.config_files import PBTXT, TOML, read_config
from farthing.repository.listing import Listing, check_inside, fingerprint, is_beside, list_folder, real_path
from farthing.repository.names import check_model_name, version_number
from farthing.repository.pipeline_files import FILES as PIPELINES
from farthing.repository.pipeline_files import PipelineFiles, file_version, pipeline_file
from farthing.repository.snapshot import FoundModel, FoundVersion
from farthing.repository.versions import versions_to_serve
from farthing.types.errors import LoadFailed

Filenames = Mapping[str, Sequence[str]]
"""Engine name, or another name it answers to -> names its model files have by default, best first."""

_COMPANIONS = ("{stem}.bin", "{name}.data", "{name}_data", "{stem}.data")
"""Files that belong to a model file beside them: OpenVINO's and ONNX's weights."""


def is_model_folder(folder: Path, filenames: Filenames) -> bool:
    """Whether a folder an operator names is one model, not a repository of several. Raises `OSError`."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".") and not is_beside(entry.name)]
    files = {entry.name for entry in visible if entry.is_file()}
    folders = {entry.name for entry in visible if entry.is_dir()}
    if files & {PBTXT, TOML, *PIPELINES} or is_hugging_face(files) or any(version_number(name) for name in folders):
        return True
    if files & _defaults(filenames):
        return True
    return not folders and bool(_by_ending(sorted(files), _defaults(filenames)))


def is_hugging_face(files: Iterable[str]) -> bool:
    """Whether these are the files of a language model in Hugging Face's layout."""
    names = set(files)
    return "config.json" in names and any(name.endswith(".safetensors") for name in names)


def model_in_folder(
    folder: Path,
    root: Path,
    filenames: Filenames,
    pipelines: PipelineFiles,
    *,
    name: str,
    config: ModelConfig | None = None,
) -> FoundModel:
    """The model in a folder. Raises `InvalidInput`, `LoadFailed`, `OSError`.

    `config` takes the place of the configuration file. Links may lead anywhere in `root` (resolved).
    """
    check_model_name(name)
    listing = list_folder(folder, root)
    if file := pipeline_file(folder, listing.files):
        if beside := {PBTXT, TOML} & listing.files.keys():
            raise LoadFailed(f"{folder} has both {file.name} and {min(beside)}", hint="keep the one that is right")
        return _pipeline(file, listing.fingerprint, pipelines, name=name, config=config)
    written = read_config(folder) if config is None else config
    said = written or ModelConfig()
    check_model_config(said, name)
    return FoundModel(
        name=name,
        folder=folder,
        config=replace(said, name=name),
        has_config=written is not None,
        versions=_versions(listing, said, filenames),
        fingerprint=listing.fingerprint,
        content=fingerprint((name, facts) for name, facts in listing.files.items() if name not in {PBTXT, TOML}),
    )


def model_from_file(
    path: Path, pipelines: PipelineFiles, *, name: str, config: ModelConfig | None = None
) -> FoundModel:
    """The model that is one file (with its weights beside it). Raises `LoadFailed`, `OSError`."""
    check_model_name(name)
    if path.name in PIPELINES:
        return _pipeline(path, file_version(path), pipelines, name=name, config=config)
    if config is not None:
        check_model_config(config, name)
    companions = (path.with_name(form.format(stem=path.stem, name=path.name)) for form in _COMPANIONS)
    parts = [path, *(part for part in companions if part.is_file())]
    for part in parts:
        if part != path and part.is_symlink():
            check_inside(part, real_path(path).parent)
    print_of_files = fingerprint((part.name, part.stat()) for part in parts)
    return FoundModel(
        name=name,
        folder=path.parent,
        config=replace(config or ModelConfig(), name=name),
        has_config=config is not None,
        versions=(FoundVersion(1, path),),
        fingerprint=print_of_files,
        content=print_of_files,
    )


def _pipeline(
    file: Path, version: str, pipelines: PipelineFiles, *, name: str, config: ModelConfig | None
) -> FoundModel:
    if config is not None:
        raise LoadFailed(f"{file}: a pipeline takes no other configuration", hint=f"change {file.name}")
    graph = pipelines.read(file, version)
    if graph.name and graph.name != name:
        raise LoadFailed(f"{file}: it calls itself `{graph.name}`, and its folder `{name}`", hint="take `name` out")
    return FoundModel(
        name=name,
        folder=file.parent,
        config=ModelConfig(name=name, ensemble_scheduling=scheduling_of(graph)),
        has_config=True,
        versions=(FoundVersion(1, file),),
        fingerprint=version,
        pipeline=graph,
    )


def _versions(listing: Listing, config: ModelConfig, filenames: Filenames) -> tuple[FoundVersion, ...]:
    """All versions that have a model file; each one that is to be served must."""
    places = {version_number(name): name for name in listing.folders if version_number(name)}
    if not places:
        places = {1: ""}
    wanted = versions_to_serve(config.version_policy, places)
    if not wanted:
        raise LoadFailed(
            f"{listing.folder}: version_policy picks none of the versions found: {_joined(sorted(places))}",
            hint="add a version it names, or change version_policy",
        )
    versions = []
    for number, place in sorted(places.items()):
        try:
            file = _model_file(listing, place, config, filenames)
        except LoadFailed:
            if number in wanted:
                raise
            continue
        versions.append(FoundVersion(number, listing.folder / place / file))
    return tuple(versions)


def _model_file(listing: Listing, place: str, config: ModelConfig, filenames: Filenames) -> str:
    """The name of the model file in a version's folder; "" where the folder itself is the model."""
    where = listing.folder / place
    if config.ensemble_scheduling is not None:
        return ""
    if said := config.default_model_filename:
        path = f"{place}/{said}" if place else said
        if path in listing.files or path in listing.folders:
            return said
        raise LoadFailed(f"{where} holds no `{said}`, the default_model_filename of its configuration")
    if is_hugging_face(listing.files_in(place)):
        return ""
    labels = {output.label_filename for output in config.output}
    files = [name for name in listing.files_in(place) if name not in {PBTXT, TOML, *labels}]
    expected = _expected(config, filenames)
    named = [name for name in expected if name in files]
    found = named[:1] if config.backend or config.platform else named
    found = found or _by_ending(files, expected) or files
    if len(found) == 1:
        return found[0]
    if not found and not place:
        raise LoadFailed(
            f"{where} holds no version folder and no model file",
            hint=f"put the model at {listing.folder.name}/1/{expected[0] if expected else 'model.onnx'}",
        )
    looked_for = f"; looked for {_joined(expected)}" if expected else ""
    raise LoadFailed(
        f"{where}: {_joined(found)} could each be the model" if found else f"{where} holds no model file{looked_for}",
        hint="say which with default_model_filename or backend, or serve each file by its own path",
    )


def _expected(config: ModelConfig, filenames: Filenames) -> list[str]:
    """Default names to look for: the named engine's, or everybody's."""
    for engine in (config.backend, config.platform):
        if engine in filenames:
            return list(filenames[engine])
    return list(dict.fromkeys(name for names in filenames.values() for name in names))


def _by_ending(files: Iterable[str], expected: Iterable[str]) -> list[str]:
    endings = {Path(name).suffix for name in expected}
    return [name for name in files if Path(name).suffix in endings]


def _defaults(filenames: Filenames) -> set[str]:
    return {name for names in filenames.values() for name in names}


def _joined(things: Sequence[object]) -> str:
    shown = ", ".join(str(thing) for thing in things[:10])
    return shown if len(things) <= 10 else f"{shown} and {len(things) - 10} more"
