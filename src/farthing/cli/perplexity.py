"""`farthing perplexity`: how well a language model foresees a text, in the precision it would be served in."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, cast

import click

from farthing.types.errors import InvalidInput, LoadFailed

if TYPE_CHECKING:
    from farthing.llm.checkpoints.checkpoint import Checkpoint
    from farthing.llm.perplexity import Foresight
    from farthing.llm.runners.runner import Runner

WINDOW_TOKENS: Final = 2_048
"""Where the model's context is no shorter: what published figures mostly use."""
TEXT_CHARACTERS_MAX: Final = 64 << 20

Weights = Literal["q8", "q4", "f32"]
Kv = Literal["int8", "bf16", "f32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    foresight: "Foresight"
    seconds: float


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--text", type=click.File("r", encoding="utf-8"), required=True, help="The text; - reads stdin.")
@click.option("--weights", type=click.Choice(["q8", "q4", "f32"]), default="q8", show_default=True, help="Precision.")
@click.option("--kv", type=click.Choice(["int8", "bf16", "f32"]), help="Of keys and values.  [default: as served]")
@click.option("--reference", is_flag=True, help="Compare with the plain float32 forward pass (slow).")
@click.option("--tokens", "tokens_max", type=click.IntRange(min=2), help="Read so many tokens of the text, not all.")
@click.option("--window", type=click.IntRange(min=2), help="Tokens of context.  [default: 2048, or the model's]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with.  [default: the cores there are]")
@click.option("--json", "is_json", is_flag=True, help="Answer with JSON on stdout.")
def command(
    model: str,
    text: TextIO,
    weights: str,
    kv: str | None,
    reference: bool,
    tokens_max: int | None,
    window: int | None,
    threads: int | None,
    is_json: bool,
) -> None:
    """Tell how well MODEL foresees a text: its perplexity, lower being better.

    MODEL is a .gguf file, a Hugging Face folder, a model folder with versions, or sample:NAME. With --reference, the
    same text is also run in plain float32, and the share of tokens is told on which both find the same one likeliest.
    Packed weights are kept beside the model for the next time, as `serve` keeps them.

    \b
    farthing perplexity sample:smollm2-135m --text book.txt
    farthing perplexity model.gguf --text book.txt --weights q4 --reference
    """
    from farthing.llm.checkpoints.opening import open_checkpoint

    checkpoint = open_checkpoint(_place(model))
    words = text.read(TEXT_CHARACTERS_MAX + 1)
    if len(words) > TEXT_CHARACTERS_MAX:
        raise InvalidInput(f"the text is longer than {TEXT_CHARACTERS_MAX} characters", hint="give a part of it")
    ids = checkpoint.tokenizer().encode(words)[:tokens_max]
    context = window or min(WINDOW_TOKENS, checkpoint.spec.context_tokens)
    fast = _fast(checkpoint, cast("Weights", weights), cast("Kv | None", kv), context, threads)
    runs = {weights: _run(fast, ids, context, weights)}
    if reference:
        runs["reference"] = _run(_plain(checkpoint, context), ids, context, "reference")
    told = _told(runs, context)
    click.echo(json.dumps(told, indent=2) if is_json else _sentence(told))


def _run(runner: "Runner", ids: list[int], context: int, name: str) -> _Run:
    from farthing.llm.perplexity import foresee, rows_of

    window = min(context, max(2, len(ids)))
    with _progress(f"{name}: reading {len(ids)} tokens", rows_of(len(ids), window)) as on_progress:
        start = perf_counter()
        try:
            foresight = foresee(runner, ids, window_tokens=window, on_progress=on_progress)
        finally:
            runner.close()
    return _Run(foresight=foresight, seconds=perf_counter() - start)


def _fast(checkpoint: "Checkpoint", weights: Weights, kv: Kv | None, context: int, threads: int | None) -> "Runner":
    from farthing.engines.cores import cores_available

    try:
        from farthing.llm.runners.cpu import CpuRunner
    except ImportError as missing:
        if weights != "f32":
            raise LoadFailed(
                f"weights in {weights} need the native core, which was not built: {missing}",
                hint="install farthing with a C++ compiler at hand, or ask for --weights f32",
            ) from missing
        return _plain(checkpoint, context)
    threads = threads or cores_available()
    return CpuRunner(checkpoint, weights=weights, kv=kv, kv_blocks=_blocks(context), threads=threads)


def _plain(checkpoint: "Checkpoint", context: int) -> "Runner":
    from farthing.llm.runners.reference import ReferenceRunner

    return ReferenceRunner(checkpoint, blocks=_blocks(context))


def _blocks(context: int) -> int:
    from farthing.llm.runners.runner import BLOCK_TOKENS

    return -(-context // BLOCK_TOKENS)


def _place(model: str) -> Path:
    """The file or folder of weights. Of a folder with versions, the highest."""
    from farthing.repository.names import version_number
    from farthing.repository.samples import sample_path

    if model.startswith("sample:"):
        from farthing.cli.progress import progress_shown

        with progress_shown() as progress:
            path = sample_path(model.removeprefix("sample:"), progress=progress)
    else:
        path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        versions = [folder for folder in path.iterdir() if folder.is_dir() and version_number(folder.name)]
        return max(versions, key=lambda folder: version_number(folder.name), default=path)
    return path


def _told(runs: dict[str, _Run], context: int) -> dict[str, Any]:
    first = next(iter(runs.values())).foresight
    told: dict[str, Any] = {"tokens": first.tokens, "window_tokens": context}
    for name, run in runs.items():
        told[name] = {"perplexity": run.foresight.perplexity, "seconds": round(run.seconds, 3)}
    if "reference" in runs:
        told["agreement"] = first.agreement(runs["reference"].foresight)
    return told


def _sentence(told: dict[str, Any]) -> str:
    lines = [
        f"{name}: perplexity {run['perplexity']:.3f} over {told['tokens']:,} tokens ({run['seconds']:.1f} s)"
        for name, run in told.items()
        if isinstance(run, dict)
    ]
    if "agreement" in told:
        lines.append(f"the same token is likeliest in {told['agreement']:.1%} of places")
    return "\n".join(lines)


@contextmanager
def _progress(what: str, rows: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=rows)
        yield lambda done: bars.advance(task, done)
