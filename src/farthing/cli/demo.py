"""`farthing demo`: serve sample models with a real server, send them real inputs, check the answers.

The server is a process of its own, started as a user would start it, and everything goes through its socket. What is
asked and what is right is in `demo_tasks`; pulling is `repository.samples`' work.
"""

import json
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any, Final

import click
import msgspec

from farthing.cli.demo_server import serving
from farthing.cli.demo_tasks import DEFAULT_TASKS, TASKS, Finding, Task, task_named
from farthing.cli.progress import progress_shown
from farthing.cli.pull import stop
from farthing.client import Client
from farthing.repository.samples import input_folder, sample_paths
from farthing.types.errors import FarthingError

LATENCY_ASKS: Final = 30
"""Pieces of work timed one after the other; the median of so many is steady."""
MEASURE_S: Final = 1.5
"""How long latency and rate are measured, each, for one task; slow work is timed at least three times."""
RATE_CLIENTS: Final = 4
"""Threads that ask at the same time while requests a second are counted."""


class Outcome(msgspec.Struct, kw_only=True):
    """What came of one task."""

    sample: str
    question: str
    findings: list[Finding] = []
    latency_ms: float = 0.0
    requests_per_s: float = 0.0
    error: str = ""

    @property
    def is_right(self) -> bool:
        return not self.error and bool(self.findings) and all(finding.is_right for finding in self.findings)


@click.command()
@click.argument("names", nargs=-1, metavar="[SAMPLE]...")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=MEASURE_S,
    show_default=True,
    help="How long to time each task.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the same as JSON on stdout.")
def command(names: tuple[str, ...], seconds: float, is_json: bool) -> None:
    """Serve the sample models, send them real inputs, check the answers.

    Without names: every task but nanodet-g, whose package is large. Latency is the median of one client asking;
    requests/s is what four clients get together, on this machine, beside the server. Exit status 0 only if every
    answer is right.
    """
    chosen = list(dict.fromkeys(name.removeprefix("sample:") for name in names)) or list(DEFAULT_TASKS)
    signal.signal(signal.SIGTERM, stop)  # the server has to go too
    started = time.monotonic()
    tasks = _prepare(chosen)
    click.echo(f"starting a server with {', '.join(chosen)}", err=True)
    with serving(chosen) as url, Client(url) as client:
        outcomes = [_run(task, client, seconds) for task in tasks]
    is_right = all(outcome.is_right for outcome in outcomes)
    took_s = time.monotonic() - started
    if is_json:
        click.echo(json.dumps(_as_json(outcomes, took_s, is_right=is_right), indent=2))
    else:
        for outcome in outcomes:
            _show(outcome)
        right = sum(outcome.is_right for outcome in outcomes)
        click.echo(f"{right} of {len(outcomes)} tasks right, {took_s:.0f} s in all")
    if not is_right:
        sys.exit(1)


def _prepare(chosen: list[str]) -> list[Task]:
    unknown = [name for name in chosen if name not in TASKS]
    if unknown:
        raise click.UsageError(f"no task called {', '.join(unknown)}; tasks: {', '.join(TASKS)}")
    with progress_shown() as progress:
        for name in chosen:
            sample_paths(name, progress=progress)
        for name in dict.fromkeys(name for task in chosen for name in TASKS[task].inputs):
            input_folder(name, progress=progress)
    return [task_named(name) for name in chosen]


def _run(task: Task, client: Client, seconds: float) -> Outcome:
    outcome = Outcome(sample=task.sample, question=task.question)
    click.echo(f"{task.sample}: {task.question}", err=True)
    try:
        outcome.findings = task.check(client)
        outcome.latency_ms = _latency_ms(task, client, seconds)
        outcome.requests_per_s = _requests_per_s(task, client, seconds)
    except FarthingError as error:  # this model's trouble: the others still get their say
        outcome.error = str(error)
    return outcome


def _latency_ms(task: Task, client: Client, seconds: float) -> float:
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < LATENCY_ASKS and (len(times) < 3 or time.perf_counter() - begun < seconds):
        start = time.perf_counter()
        task.ask(client)
        times.append(time.perf_counter() - start)
    return median(times) * 1e3


def _requests_per_s(task: Task, client: Client, seconds: float) -> float:
    begun = time.perf_counter()

    def ask_until_the_end(_: int) -> tuple[int, float]:
        count = 0
        while time.perf_counter() - begun < seconds:
            task.ask(client)
            count += 1
        return count, time.perf_counter() - begun

    with ThreadPoolExecutor(RATE_CLIENTS) as clients:
        done = list(clients.map(ask_until_the_end, range(RATE_CLIENTS)))
    # Over the time until the last answer, since work begun within the window is counted when it ends after it.
    return sum(count for count, _ in done) / max(end for _, end in done)


def _show(outcome: Outcome) -> None:
    click.echo(f"{outcome.sample}: {outcome.question}")
    for finding in outcome.findings:
        mark = "right" if finding.is_right else "WRONG"
        click.echo(f"  {mark}  {finding.input}: {finding.answer}   (expected {finding.expected})")
    if outcome.error:
        click.echo(f"  FAILED  {outcome.error}")
    else:
        click.echo(f"  {outcome.latency_ms:.1f} ms, {outcome.requests_per_s:,.0f} requests/s")
    click.echo()


def _as_json(outcomes: list[Outcome], took_s: float, *, is_right: bool) -> dict[str, Any]:
    described = [{**msgspec.to_builtins(outcome), "is_right": outcome.is_right} for outcome in outcomes]
    return {"is_right": is_right, "seconds": round(took_s, 1), "tasks": described}
