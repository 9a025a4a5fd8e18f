"""What the engine alone can do: onnxruntime in process, one thread, one core, at each batch size.

A program of its own (`yardstick.py FILE-NAME SECONDS BATCH...`), so that it starts as fresh as a server does; prints
one line of JSON. `serve` runs it just before and just after each server, because the machine drifts.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

import models

BATCHES: Final = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """The engine with nobody around it, at one batch size."""

    rows_per_s: float
    cpu_us_per_row: float
    """CPU time, which strangers on the machine do not lengthen as they do wall time."""


def alone(model: models.Model, batch: int, seconds: float) -> Alone:
    """Back-to-back runs of one batch size for so long, three at least."""
    engine = models.session(model.file)
    outputs = list(model.answer)
    # As many rows in memory as 16 connections bring: one row over and over would stay in the cache, and flatter.
    feeds = [
        {name: np.repeat(row, batch, axis=0) for name, row in model.row.items()} for _ in range(max(1, 16 // batch))
    ]
    engine.run(outputs, feeds[0])
    runs, started, cpu_started = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - started) < seconds or runs < 3:
        engine.run(outputs, feeds[runs % len(feeds)])
        runs += 1
    cpu_s = time.process_time() - cpu_started
    return Alone(rows_per_s=runs * batch / elapsed, cpu_us_per_row=cpu_s / (runs * batch) * 1e6)


def measure(model: models.Model, *, core: int, seconds: float, batches: tuple[int, ...]) -> dict[int, Alone]:
    """Batch size -> what it does, measured by a fresh process on one core."""
    program = ["taskset", "-c", str(core), sys.executable, str(Path(__file__)), model.name, str(seconds)]
    output = subprocess.run([*program, *map(str, batches)], capture_output=True, text=True, check=True).stdout
    return {int(batch): Alone(**figures) for batch, figures in json.loads(output).items()}


if __name__ == "__main__":
    chosen = models.load(sys.argv[1])
    lasting, sizes = float(sys.argv[2]), map(int, sys.argv[3:])
    print(json.dumps({size: asdict(alone(chosen, size, lasting)) for size in sizes}))
