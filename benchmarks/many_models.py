"""How long until a hundred small models are served, and what each costs? From the start of the process to READY.

    python benchmarks/many_models.py [--models 100] [--rounds 3]

Two repositories: tiny ONNX models with a `config.pbtxt`, and half of them LightGBM forests (30 trees of 15 leaves) with
nothing configured. Both cores are the server's.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

import models

FOLDER = models.CACHE / "many"
WAIT_S = 120
CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
"""


def build(folder: Path, count: int, forests: int) -> None:
    """`count` models, of which the last so many are forests."""
    import lightgbm
    from onnx import TensorProto, helper, numpy_helper, save

    generator = np.random.default_rng(0)
    rows = generator.standard_normal((500, 8))
    labels = (rows[:, 0] * rows[:, 1] > 0).astype(int)
    for place in range(count):
        version = folder / f"m{place:03d}" / "1"
        version.mkdir(parents=True)
        if place >= count - forests:
            settings = {"objective": "binary", "num_leaves": 15, "verbose": -1, "seed": place, "num_threads": 1}
            forest = lightgbm.train(settings, lightgbm.Dataset(rows, labels), num_boost_round=30)
            forest.save_model(version / "model.txt")
            continue
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "factor"], ["y"])],
            "times",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
            [numpy_helper.from_array(np.array([place], np.float32), "factor")],
        )
        save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), version / "model.onnx"
        )
        (version.parent / "config.pbtxt").write_text(CONFIG)


def start(repository: Path, *options: str) -> tuple[float, int, int]:
    """Seconds to READY, resident bytes then, threads."""
    ready = FOLDER / "ready.json"
    ready.unlink(missing_ok=True)
    command = [str(Path(sys.executable).with_name("farthing")), "serve", "--repository", str(repository)]
    command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--ready-file", str(ready), *options]
    began = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not ready.exists():
            if process.poll() is not None or time.monotonic() - began > WAIT_S:
                raise RuntimeError(f"no server: {' '.join(command)}")
            time.sleep(0.005)
        seconds = time.monotonic() - began
        facts = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        return seconds, int(facts["VmRSS"].split()[0]) << 10, int(facts["Threads"])
    finally:
        process.terminate()
        process.wait(WAIT_S)


def main() -> None:
    """One line a repository; the last one as JSON for the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    results = {}
    for name, forests in (("onnx", 0), ("half LightGBM", asked.models // 2)):
        one, all_of_them = FOLDER / name / "one", FOLDER / name / "all"
        build(one, 1, 1 if forests else 0)
        build(all_of_them, asked.models, forests)
        for budget in ((), ("--model-memory", "8GB")):
            alone = min(start(one, *budget)[1] for _ in range(asked.rounds))
            runs = [start(all_of_them, *budget) for _ in range(asked.rounds)]
            seconds, resident = median(run[0] for run in runs), median(run[1] for run in runs)
            each = (resident - alone) / (asked.models - 1)
            title = f"{name}{', with a budget' if budget else ''}"
            results[title] = {"seconds": seconds, "resident_mb": resident / 1e6, "model_kb": each / 1e3}
            print(
                f"{title:28} {asked.models} models ready in {seconds:.2f} s, {resident / 1e6:.0f} MB resident, "
                f"{each / 1e3:.0f} kB a model, {runs[0][2]} threads",
                flush=True,
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
