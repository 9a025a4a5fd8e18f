"""How near are two engines in float32, and how far is bf16? The figures of docs/decisions/0020.

    python benchmarks/optimize/nearness.py [SAMPLES]

Largest difference of any output from ONNX Runtime's, in parts of that output's standard deviation, over so many samples
(48): what `optimizer.agreement.SAME_RELATIVE` (a thousandth) has to lie between.
"""

import sys
from typing import Final

import numpy as np
from tasks import TASKS, Task

from farthing.engines.cores import cores_available
from farthing.optimizer.agreement import SAME_RELATIVE, output_errors
from farthing.optimizer.loaded import Loaded
from farthing.optimizer.recipes import Recipe, original_of
from farthing.optimizer.samples import divide, fit_samples
from farthing.optimizer.timing import answers
from farthing.types.errors import FarthingError

OTHERS: Final = (Recipe(engine="openvino", precision="f32"), Recipe(engine="openvino", precision="bf16"))


def line(task: Task, count: int) -> str:
    """A line of the table."""
    loaded = Loaded(task.file, cores_available())
    try:
        original = loaded.load(original_of("onnxruntime"), cores_available())
        has_batch_axis = original.batch_axis is not False
        samples = divide(fit_samples(task.data(), original.inputs, has_batch_axis=has_batch_axis))[1]
        samples = samples.take(np.arange(min(count, len(samples))))
        truth = answers(original, samples, rows=1, has_batch_axis=has_batch_axis)
        cells = []
        for recipe in OTHERS:
            try:
                given = answers(loaded.load(recipe, cores_available()), samples, rows=1, has_batch_axis=has_batch_axis)
                cells.append(f"{max(error.relative for error in output_errors(truth, given)):.2g}")
            except FarthingError as error:
                cells.append(str(error).partition("\n")[0])
        return f"| {task.name} | {len(samples)} | " + " | ".join(cells) + " |"
    finally:
        loaded.close()


def main() -> None:
    """Prints the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 48
    print(f"Largest difference in parts of an output's spread; under {SAME_RELATIVE:g} answers count as the same.\n")
    print("| model | samples | OpenVINO f32 | OpenVINO bf16 |\n|---|---|---|---|")
    for task in TASKS.values():
        if task.file.suffix == ".onnx":
            print(line(task, count), flush=True)


if __name__ == "__main__":
    main()
