"""What the engine alone can do: onnxruntime in process, one thread, one core, rows per second at each batch size.

A program of its own (`yardstick.py FILE-NAME SECONDS BATCH...`), so that it starts as fresh as a server does; prints
one line of JSON. `serve` runs it just before and just after each server, because the machine drifts.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

import models

BATCHES: Final = (1, 2, 4, 8, 16, 32)


def rows_per_s(model: models.Model, batch: int, seconds: float) -> float:
    """Rows per second of back-to-back runs of one batch size."""
    engine = models.session(model.file)
    outputs = list(model.answer)
    feed = {name: np.repeat(row, batch, axis=0) for name, row in model.row.items()}
    engine.run(outputs, feed)
    runs, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or runs < 3:
        engine.run(outputs, feed)
        runs += 1
    return runs * batch / elapsed


def measure(model: models.Model, *, core: int, seconds: float, batches: tuple[int, ...]) -> dict[int, float]:
    """Batch size -> rows per second, measured by a fresh process on one core."""
    program = ["taskset", "-c", str(core), sys.executable, str(Path(__file__)), model.name, str(seconds)]
    output = subprocess.run([*program, *map(str, batches)], capture_output=True, text=True, check=True).stdout
    return {int(batch): rate for batch, rate in json.loads(output).items()}


if __name__ == "__main__":
    chosen = models.load(sys.argv[1])
    print(json.dumps({b: rows_per_s(chosen, b, float(sys.argv[2])) for b in map(int, sys.argv[3:])}))
