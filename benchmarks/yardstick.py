"""What the engine alone can do: onnxruntime in process, one thread, one core, at each batch size.

A program of its own (`yardstick.py MODEL SECONDS HOW BATCH...`), so that it starts as fresh as a server does; prints
one line of JSON. `serve` runs it just before and just after each measurement, because the machine drifts.

Two yardsticks, because "what the engine does in process" can mean two things. As it comes: onnxruntime as anybody
calls it, whole batches ready in memory; the targets are held against this one, so that a server is not excused for
putting rows together, and is free to run the engine better than it comes. Served: rows come singly and are put together
for each batch, as for any server, and memory is in huge pages, as a Farthing's is after a moment; what is missing to
this one is what serving costs, and nothing else.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import models
from farthing.runtime import huge_pages

BATCHES: Final = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """The engine with nobody around it, at one batch size."""

    rows_per_s: float
    cpu_us_per_row: float
    """CPU time, which strangers on the machine do not lengthen as they do wall time."""
    served_rows_per_s: float = 0.0
    """The same with rows that come singly, in huge pages; 0 where it was not asked for."""


def rate(engine: Any, model: models.Model, batch: int, seconds: float, *, is_served: bool) -> tuple[float, float]:
    """Rows/s and CPU microseconds a row of back-to-back runs of one batch size for so long, three at least."""
    outputs = list(model.answer)
    # As many rows in memory as 16 connections bring: one row over and over would stay in the cache, and flatter.
    rows = [{name: row.copy() for name, row in model.row.items()} for _ in range(max(16, batch))]
    parts = [rows[start : start + batch] for start in range(0, len(rows) - batch + 1, batch)]
    feeds = [_together(part) for part in parts]
    engine.run(outputs, feeds[0])
    runs, started, cpu_started = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - started) < seconds or runs < 3:
        at = runs % len(feeds)
        engine.run(outputs, _together(parts[at]) if is_served else feeds[at])
        runs += 1
    cpu_s = time.process_time() - cpu_started
    return runs * batch / elapsed, cpu_s / (runs * batch) * 1e6


def _together(rows: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return rows[0] if len(rows) == 1 else {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def all_of(model: models.Model, sizes: list[int], seconds: float, *, is_served_too: bool) -> dict[int, Alone]:
    """Batch size -> what the engine does in this process."""
    engine = models.session(model.file)
    found = {}
    for size in sizes:
        rows_per_s, cpu_us = rate(engine, model, size, seconds, is_served=False)
        found[size] = Alone(rows_per_s=rows_per_s, cpu_us_per_row=cpu_us)
    if is_served_too:
        page_bytes = huge_pages.huge_page_bytes()
        if page_bytes:
            huge_pages.collapse(page_bytes)
        for size in sizes:
            served, _ = rate(engine, model, size, seconds, is_served=True)
            found[size] = replace(found[size], served_rows_per_s=served)
    return found


def measure(
    model: models.Model, *, core: int, seconds: float, batches: tuple[int, ...], is_served_too: bool = False
) -> dict[int, Alone]:
    """Batch size -> what it does, measured by a fresh process on one core."""
    how = "both" if is_served_too else "alone"
    program = ["taskset", "-c", str(core), sys.executable, str(Path(__file__)), model.name, str(seconds), how]
    output = subprocess.run([*program, *map(str, batches)], capture_output=True, text=True, check=True).stdout
    return {int(batch): Alone(**figures) for batch, figures in json.loads(output).items()}


if __name__ == "__main__":
    name, lasting, how, *sizes = sys.argv[1:]
    figures = all_of(models.load(name), [int(size) for size in sizes], float(lasting), is_served_too=how == "both")
    print(json.dumps({size: asdict(one) for size, one in figures.items()}))
