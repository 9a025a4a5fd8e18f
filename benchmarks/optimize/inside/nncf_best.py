"""NNCF's own best of an ONNX file: MODEL CALIBRATION.npz METRIC MAX_DROP FOLDER. Runs in NNCF's own environment.

Two files: `plain.xml`, post-training int8 as the documentation shows it, and `controlled.xml`, the same under NNCF's
accuracy control, which puts layers back to float until the metric has lost no more than MAX_DROP on these samples.
"""

import json
import sys
import time
from pathlib import Path

import nncf
import numpy as np
import openvino

BATCH = 8


def score(metric, truth, given):
    if metric == "top1":
        return float((truth.argmax(-1) == given.argmax(-1)).reshape(len(truth), -1).all(1).mean())
    flat, other = truth.reshape(len(truth), -1), given.reshape(len(given), -1)
    lengths = np.linalg.norm(flat, axis=1) * np.linalg.norm(other, axis=1)
    return float(((flat * other).sum(1) / lengths).mean())


def main():
    file, data, metric, max_drop, folder = sys.argv[1:]
    with np.load(data) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(inputs.values())))
    rows = [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(count)]
    model = openvino.Core().read_model(file)
    kinds = {operation.get_type_name() for operation in model.get_ops()}
    kind = nncf.ModelType.TRANSFORMER if {"Softmax", "MVN"} <= kinds else None
    options = {"preset": nncf.QuantizationPreset.MIXED, "model_type": kind, "subset_size": count}

    def answers(compiled):
        return np.concatenate([compiled(row)[0] for row in rows])

    truth = answers(openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))
    took = {}

    started = time.monotonic()
    openvino.save_model(nncf.quantize(model, nncf.Dataset(rows), **options), f"{folder}/plain.xml", False)
    took["plain"] = time.monotonic() - started
    Path(folder, "took.json").write_text(json.dumps(took))  # the next may not come to its end

    def validate(compiled, _samples):
        return score(metric, truth, answers(compiled)), None

    started = time.monotonic()
    controlled = nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset(rows),
        validation_dataset=nncf.Dataset(rows),
        validation_fn=validate,
        max_drop=float(max_drop),
        drop_type=nncf.DropType.ABSOLUTE,
        **options,
    )
    openvino.save_model(controlled, f"{folder}/controlled.xml", False)
    took["controlled"] = time.monotonic() - started
    Path(folder, "took.json").write_text(json.dumps(took))


if __name__ == "__main__":
    main()
