"""The one model file behind what a person typed: a path, a model's folder, or sample:NAME."""

from pathlib import Path

from farthing.types.errors import InvalidInput, LoadFailed


def model_file(said: str) -> Path:
    """The file of the version that would be served. Raises `LoadFailed`, `InvalidInput` where there are several."""
    from farthing.engines.registry import default_filenames
    from farthing.repository import Repository
    from farthing.repository.samples import sample_path

    if said.startswith("sample:"):
        from farthing.cli.progress import progress_shown

        with progress_shown() as progress:
            path = sample_path(said.removeprefix("sample:"), progress=progress)
    else:
        path = Path(said)
    if not path.exists():
        raise LoadFailed(f"{said}: no such file or folder", hint="sample:NAME fetches one; `farthing pull --list`")
    if path.is_file():
        return path
    found = Repository([path], default_filenames=default_filenames()).scan()
    if found.problems and not found.models:
        raise LoadFailed(next(iter(found.problems.values())).reason)
    if len(found.models) != 1:
        names = ", ".join(sorted(found.models)) or "none"
        raise InvalidInput(f"{said} is not one model; found: {names}", hint="name the folder or file of one of them")
    [model] = found.models.values()
    return model.versions[-1].path
