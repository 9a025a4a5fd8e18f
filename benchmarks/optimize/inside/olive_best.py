"""Olive's int8 of an ONNX file: MODEL CALIBRATION.npz METRIC MAX_DROP FOLDER. Runs in Olive's own environment.

Two files: `static.onnx` (its preprocessing, then calibrated int8, per channel) and `dynamic.onnx`. Olive has no bound
on what may be lost; METRIC and MAX_DROP are not looked at.
"""

import json
import shutil
import sys
import time
from pathlib import Path

READER = """
import numpy as np
from olive.data.registry import Registry


class Rows:
    def __init__(self, file):
        with np.load(file) as arrays:
            self.inputs = {name: arrays[name] for name in arrays.files}

    def __len__(self):
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, at):
        return {name: array[at] for name, array in self.inputs.items()}, 0


@Registry.register_dataset()
def rows(data_name=None, file=None, **_):
    return Rows(file)
"""


def main():
    from olive.workflows import run

    file, data, _metric, _max_drop, folder = sys.argv[1:]
    reader = Path(folder, "reader.py")
    reader.write_text(READER)
    calibration = {
        "name": "calibration",
        "user_script": str(reader),
        "load_dataset_config": {"type": "rows", "params": {"file": data}},
        "dataloader_config": {"batch_size": 1},
    }
    kinds = {
        "static": {
            "type": "OnnxStaticQuantization",
            "data_config": "calibration",
            "quant_preprocess": True,
            "per_channel": True,
        },
        "dynamic": {"type": "OnnxDynamicQuantization", "quant_preprocess": True, "per_channel": True},
    }
    took = {}
    for name, quantisation in kinds.items():
        out = Path(folder, name)
        started = time.monotonic()
        try:
            run(
                {
                    "input_model": {"type": "ONNXModel", "model_path": file},
                    "systems": {
                        "here": {
                            "type": "LocalSystem",
                            "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
                        }
                    },
                    "data_configs": [calibration],
                    "passes": {"int8": quantisation},
                    "target": "here",
                    "output_dir": str(out),
                    "cache_dir": str(Path(folder, "cache")),
                }
            )
            shutil.copyfile(next(out.rglob("*.onnx")), Path(folder, f"{name}.onnx"))
        except Exception as error:
            print(f"{name}: {error!r}", file=sys.stderr)
            continue
        took[name] = time.monotonic() - started
    Path(folder, "took.json").write_text(json.dumps(took))


if __name__ == "__main__":
    main()
