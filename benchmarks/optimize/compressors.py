"""What NNCF and Olive make of the sample models, judged and timed as `farthing optimize` judges and times its own.

    python benchmarks/optimize/compressors.py                    both, all models
    python benchmarks/optimize/compressors.py nncf minilm-l6

Each tool runs in an environment of its own (`benchmarks/peers/pins/TOOL.txt`; Olive brings torch, some 5 GB) and gets
the samples that calibrate and nothing else. Its files are judged on the samples that took no part, and timed in the
settings that a search tries, two seconds each, the best one kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from tasks import TASKS, Task

from farthing.engines.cores import cores_available
from farthing.optimizer.agreement import Drop, drop
from farthing.optimizer.custom_metric import metric_of
from farthing.optimizer.loaded import Loaded
from farthing.optimizer.recipes import original_of
from farthing.optimizer.samples import Samples, divide, fit_samples
from farthing.optimizer.timing import answers, batches_of, take_turn
from farthing.types.errors import FarthingError
from peers.contract import install, python

TOOLS: Final = ("nncf", "olive")
INSIDE: Final = Path(__file__).with_name("inside")
ROWS: Final = (1, 8, 32)
SECONDS: Final = 2.0
MAKING_SECONDS: Final = 900
"""How long a tool may take, unless said otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One file of one tool."""

    name: str
    took_s: float
    lost: Drop | None
    rows_per_s: float
    setting: str
    failed: str = ""


def compress(tool: str, task: Task, seconds: float) -> list[Made]:
    """What the tool makes of the model, judged and timed."""
    install(tool)
    loaded = Loaded(task.file, cores_available())
    try:
        original = loaded.load(original_of("onnxruntime"), cores_available())
        has_batch_axis = original.batch_axis is not False
        samples = fit_samples(task.data(), original.inputs, has_batch_axis=has_batch_axis)
        calibration, judging = divide(samples)
        truth = answers(original, judging, rows=1, has_batch_axis=has_batch_axis)
        with tempfile.TemporaryDirectory() as scratch:
            data = Path(scratch) / "calibration.npz"
            rows = calibration.inputs
            np.savez(data, **rows)
            script = INSIDE / f"{tool}_best.py"
            command = [
                python(tool),
                str(script),
                str(task.file),
                str(data),
                task.metric_name,
                str(task.drop_max),
                scratch,
            ]
            with (Path(scratch) / "log").open("w+") as log:
                try:
                    subprocess.run(command, stdout=log, stderr=log, timeout=seconds, check=False)
                except subprocess.TimeoutExpired:
                    print(f"{tool} {task.name}: took longer than {seconds:.0f} s", file=sys.stderr)
                log.seek(0)
                said = log.read()
            took = Path(scratch) / "took.json"
            times = json.loads(took.read_text()) if took.exists() else {}
            found = sorted(file for file in Path(scratch).iterdir() if file.suffix in (".xml", ".onnx"))
            if not found:
                last = said.strip().splitlines()[-1:] or ["nothing said"]
                return [Made(name=tool, took_s=0, lost=None, rows_per_s=0, setting="", failed=last[0][-160:])]
            return [
                _judged(loaded, task, file, f"{tool} {file.stem}", times.get(file.stem, 0.0), truth, judging)
                for file in found
            ]
    finally:
        loaded.close()


def _judged(
    loaded: Loaded, task: Task, file: Path, name: str, took_s: float, truth: dict[str, np.ndarray], samples: Samples
) -> Made:
    engine = "openvino" if file.suffix == ".xml" else "onnxruntime"
    # Both tools keep the names of inputs; NNCF's file may name outputs anew, which are then taken in their order.
    best, setting, given = 0.0, "", {}
    cores = cores_available()
    try:
        for threads, instances in {(cores, 1), (1, cores)}:
            executable = loaded.load_file(file, engine, threads, instances)
            outputs = [spec.name for spec in executable.outputs]
            has_batch_axis = executable.batch_axis is not False
            if not given:
                said = answers(executable, samples, rows=8 if has_batch_axis else 1, has_batch_axis=has_batch_axis)
                given = dict(zip(truth, said.values(), strict=True))
            for rows in ROWS if has_batch_axis else (1,):
                batches = batches_of(samples, rows, outputs, has_batch_axis=has_batch_axis)
                turn = take_turn(executable, batches, instances=instances, seconds=SECONDS)
                if turn.rows_per_s > best:
                    best, setting = turn.rows_per_s, f"{instances} x {threads} threads, {rows} rows"
            executable.close()
        lost = drop(
            task.metric if isinstance(task.metric, str) else metric_of(task.metric), truth, given, samples.labels
        )
    except FarthingError as error:
        return Made(name=name, took_s=took_s, lost=None, rows_per_s=best, setting=setting, failed=str(error)[:160])
    return Made(name=name, took_s=took_s, lost=lost, rows_per_s=best, setting=setting)


def main() -> None:
    """Makes, judges and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="TOOL|SAMPLE")
    parser.add_argument("--making", type=float, default=MAKING_SECONDS, help="seconds a tool may take for a model")
    options = parser.parse_args()
    names = options.names
    tools = [tool for tool in TOOLS if tool in names] or TOOLS
    tasks = [TASKS[name] for name in names if name in TASKS] or [t for t in TASKS.values() if t.file.suffix == ".onnx"]
    print("| model | made by | rows/s | setting | lost, on held-out data | allowed | made in, s |")
    print("|---|---|---|---|---|---|---|")
    for task in tasks:
        for tool in tools:
            for made in compress(tool, task, options.making):
                lost = f"{made.lost.mean:.2%}, perhaps {made.lost.upper:.2%}" if made.lost else made.failed
                rate = f"{made.rows_per_s:,.0f}"
                told = f"{task.name} | {made.name} | {rate} | {made.setting} | {lost} | {task.drop_max:.1%}"
                print(f"| {told} | {made.took_s:.0f} |", flush=True)


if __name__ == "__main__":
    main()
