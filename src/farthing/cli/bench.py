"""`farthing bench`: reads the command line, shows progress on stderr, tables on stdout, writes reports to files."""

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from farthing.types.errors import InvalidSetting

if TYPE_CHECKING:
    from farthing.bench.load import Progress as LoadProgress
    from farthing.bench.measure import OnProgress

CONCURRENCY_DEFAULT: Final = "1,8,64"
SPARKS: Final = " ▁▂▃▄▅▆▇█"
RATES_SHOWN: Final = 24
"""Of the last seconds, beside the bar."""


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise InvalidSetting(f"--concurrency {text}: whole numbers above 0 are allowed", hint="write 1,8,16")
    return found


def _rates(text: str) -> tuple[float, float | None]:
    first, _, last = text.partition(":")
    try:
        found = (float(first), float(last) if last else None)
    except ValueError:
        found = (0.0, None)
    if not found[0] > 0 or (found[1] is not None and not found[1] > 0):
        raise InvalidSetting(f"--rate {text}: requests a second, above 0", hint="write 200, or 50:500 for a ramp")
    return found


def _shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            raise InvalidSetting(f"--shape {text}", hint="write NAME:1,3,224,224") from None
    return shapes


def _warm_up(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return max(float(text), 0.0)
    except ValueError:
        raise InvalidSetting(f"--warmup {text}: `auto` or seconds") from None


@click.command()
@click.argument("url", metavar="URL|PATH|sample:NAME")
@click.option("--model", "-m", default="", help="Name; several with weights for a mix: a:3,b:1.")
@click.option(
    "--kind", type=click.Choice(["http", "grpc", "openai"]), default="http", show_default=True, help="Protocol."
)
@click.option(
    "--concurrency", "-c", default=CONCURRENCY_DEFAULT, show_default=True, help="Closed loops, one after the other."
)
@click.option("--rate", help="Open loop: requests a second; FROM:TO is a ramp.")
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "constant", "gamma"]),
    default="poisson",
    show_default=True,
    help="Of --rate.",
)
@click.option(
    "--burstiness", type=float, default=1.0, show_default=True, help="Of gamma: below 1 is burstier than Poisson."
)
@click.option("--frames", type=click.FloatRange(0.01, 100_000), help="Streams of so many frames a second; -c of them.")
@click.option(
    "--deadline", type=click.FloatRange(0.001), metavar="MS", help="Of --frames: until the next one by default."
)
@click.option(
    "--policy",
    type=click.Choice(["latest", "all"]),
    default="latest",
    show_default=True,
    help="Of --frames: the newest alone is worth running, or all are.",
)
@click.option("--trace", type=click.Path(path_type=Path), help="Replay Azure's or Mooncake's recorded load (openai).")
@click.option("--speed", type=float, default=1.0, show_default=True, help="Play the trace so many times as fast.")
@click.option("--find", default="", help="Search the highest load that meets targets: 'p99<20ms'.")
@click.option("--goal", default="", help="Count goodput: requests that meet these targets, each by itself.")
@click.option("--against", default="", metavar="URL2", help="Compare: alternate with this one, tell the ratio.")
@click.option("--rounds", type=click.IntRange(min=1), default=6, show_default=True, help="Of --against.")
@click.option(
    "--mlperf",
    type=click.Choice(["single-stream", "multi-stream", "server", "offline", "constant-stream"]),
    help="A scenario of MLPerf, by its own LoadGen (farthing[mlperf]); logs go beside --json.",
)
@click.option("--accuracy", "is_accuracy", is_flag=True, help="Of --mlperf: each input once, outputs to its log.")
@click.option("--mlperf-conf", type=click.Path(path_type=Path), help="A user.conf for LoadGen; it overrides the rest.")
@click.option("--duration", "-d", type=float, default=10.0, show_default=True, help="Seconds of each load.")
@click.option("--warmup", default="auto", show_default=True, help="Seconds left out at the beginning; auto finds out.")
@click.option(
    "--input",
    "input_",
    default="random",
    show_default=True,
    help="random, or .npz .json .jsonl .txt, a picture, a sound, a folder of them.",
)
@click.option("--shape", multiple=True, metavar="NAME:SIZES", help="Sizes of a random input's open dimensions.")
@click.option("--json-tensors", is_flag=True, help="Tensors as JSON instead of bytes (http).")
@click.option(
    "--prompt-tokens", default="128", show_default=True, help="openai: 128, 64-256 (uniform), 128~32 (normal)."
)
@click.option("--output-tokens", default="64", show_default=True, help="openai: the same, of answers.")
@click.option("--prefix-tokens", type=click.IntRange(min=0), default=0, help="openai: so much of a prompt is shared.")
@click.option(
    "--prefixes", type=click.IntRange(min=1), default=1, show_default=True, help="openai: how many shared beginnings."
)
@click.option(
    "--turns", type=click.IntRange(min=1, max=100), default=1, show_default=True, help="openai: requests of a session."
)
@click.option("--pause", type=click.FloatRange(min=0), default=0.0, help="Seconds between the turns of a session.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds until an answer counts as lost.")
@click.option(
    "--connections-max", type=click.IntRange(1, 65536), default=4096, show_default=True, help="Of open loops."
)
@click.option("--api-key", envvar="FARTHING_API_KEY", default="", help="Sent as Bearer.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of arrivals, inputs and prompts.")
@click.option("--json", "json_out", type=click.Path(path_type=Path), help="Write the report, schema farthing-bench/1.")
@click.option("--html", "html_out", type=click.Path(path_type=Path), help="Write the report as one page with plots.")
def command(
    url: str, json_out: Path | None, html_out: Path | None, model: str, concurrency: str, rate: str | None,
    warmup: str, input_: str, shape: tuple[str, ...], json_tensors: bool, duration: float, pause: float, timeout: float,
    mlperf: str | None, frames: float | None, deadline: float | None,
    **rest: Any,
) -> None:  # fmt: skip
    """Measure the inference endpoint at URL, or a model in process, so that a sceptic believes it.

    Latency counts from when a request was meant to be sent; percentiles carry 95 % intervals and are refused where
    there are too few requests (p99 needs 662); warm-up is found; a run that the load generator held up is INVALID.

    \b
    farthing bench http://127.0.0.1:8000 -m mlp                       1, 8 and 64 connections, the knee marked
    farthing bench http://127.0.0.1:8000 -m mlp --rate 500            500/s, Poisson, whatever the server does
    farthing bench http://127.0.0.1:8000 -m mlp --rate 50:2000        a ramp
    farthing bench http://127.0.0.1:8000 -m mlp --find 'p99<20ms'     the highest concurrency within the target
    farthing bench http://127.0.0.1:8000 -m mlp --find 'p99<20ms' --rate 100     the highest rate, from 100/s on
    farthing bench 127.0.0.1:8001 --kind grpc -m mlp -c 8             the same over gRPC
    farthing bench http://A -m mlp -c 8 --against http://B            A and B in turn: a ratio with its interval
    farthing bench model.onnx                                         the model without a server
    farthing bench sample:magika -c 8 --against http://B              what the server adds to it
    farthing bench http://A -m mlp --mlperf server --rate 200 --goal 'p99<15ms'    MLPerf's LoadGen asks and judges
    farthing bench http://A -m cam --frames 25 -c 1,4 --deadline 100  cameras: on time, late, dropped and why
    farthing bench http://A -m cam --mlperf constant-stream --rate 30 -d 25    frames, each answered before the next
    farthing bench http://A -m chat --kind openai --prompt-tokens 64-256 --goal 'ttft p95<300ms,tpot p95<40ms'
    farthing bench http://A -m chat --kind openai --trace azure.csv --speed 2 --html report.html

    Ctrl-C ends the load and reports what was measured.
    """
    if not (duration > 0 and timeout > 0):
        raise InvalidSetting("--duration and --timeout must be above 0")
    from farthing.bench.asked import Asked
    from farthing.bench.benchmark import benchmark

    if frames and (rate or mlperf or rest["trace"] or rest["find"] or rest["against"] or rest["kind"] == "openai"):
        raise InvalidSetting(
            "--frames is a load of its own",
            hint="leave out --rate, --mlperf, --trace, --find, --against, --kind openai",
        )
    if frames and concurrency == CONCURRENCY_DEFAULT:
        concurrency = "1"
    _pull(url, rest["against"])
    asked = Asked(
        url=url,
        models=tuple(model.split(",")) if model else (),
        concurrency=_numbers(concurrency),
        rate=_rates(rate) if rate else None,
        warm_up_s=_warm_up(warmup),
        input=input_,
        shapes=_shapes(shape),
        is_json=json_tensors,
        duration_s=duration,
        pause_s=pause,
        timeout_s=timeout,
        frames=frames,
        deadline_s=deadline / 1e3 if deadline else None,
        mlperf=mlperf or "",
        mlperf_logs=(json_out or Path("farthing-bench")).with_suffix(".mlperf") if mlperf else Path(),
        **rest,
    )
    try:
        told = benchmark(asked, _progress)
    except KeyboardInterrupt:
        if mlperf is None:
            raise
        click.echo("stopped; LoadGen ends no run before its time, so there is nothing to report", err=True)
        os._exit(130)  # its thread cannot be joined
    from rich.console import Console

    from farthing.bench.table import show

    show(told, Console(width=None if sys.stdout.isatty() else 160, highlight=False))
    if json_out:
        from farthing.bench.report import to_json

        json_out.write_bytes(to_json(told))
    if html_out:
        from farthing.bench.page import to_html

        html_out.write_text(to_html(told), encoding="utf-8")
    if not told.is_valid:
        sys.exit(1)


def _pull(*targets: str) -> None:
    """Fetches samples that are to be measured in process and are not here yet."""
    for target in targets:
        if target.startswith("sample:"):
            from farthing.cli.progress import progress_shown
            from farthing.repository.samples import sample_paths

            with progress_shown() as progress:
                sample_paths(target.removeprefix("sample:"), progress=progress)


@contextmanager
def _progress(label: str, duration_s: float) -> "Iterator[OnProgress]":
    """A line on stderr that lives while the load runs; a line when it begins where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.print(f"{label}: {duration_s:g} s")
        yield lambda _seconds, _progress: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[doing]}"), console=console, transient=True) as bars:
        task = bars.add_task(label, total=duration_s, doing="")

        seen: deque[tuple[float, int]] = deque([(0.0, 0)], RATES_SHOWN + 1)

        def on_progress(seconds: float, now: "LoadProgress") -> None:
            seen.append((seconds, now.done))
            rates = [(b[1] - a[1]) / max(b[0] - a[0], 1e-9) for a, b in pairwise(seen)]
            tokens = f", {now.tokens / seconds:,.0f} tok/s" if now.tokens else ""
            failed = f", [red]{now.failed:,} failed[/]" if now.failed else ""
            doing = f"{sparks(rates)} {rates[-1]:,.0f}/s{tokens}, {now.in_flight:,} under way{failed}"
            bars.update(task, completed=min(seconds, duration_s), doing=doing)

        yield on_progress


def sparks(rates: Sequence[float]) -> str:
    """Rates as bars of one character each, the highest one full."""
    most = max(rates, default=0.0)
    return "".join(
        SPARKS[min(int(rate / most * len(SPARKS)), len(SPARKS) - 1)] if most else SPARKS[0] for rate in rates
    )
