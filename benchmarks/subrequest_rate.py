"""What does it cost when a Python model asks another? Requests a second, in turns on one server on one core.

    python benchmarks/subrequest_rate.py

For the tiny MLP and for EfficientNet-Lite0: the model itself; a Python model that answers by itself with as many
numbers (`alone`); one that asks the model once for its whole batch (`batch`), or once for each request, all at once
from a coroutine (`each`). Server, the models' processes and the engine share one core; the load has the other.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from statistics import median
from typing import Any

import numpy as np

import load
import models
from ensemble_rate import answer, request

FOLDER = models.CACHE / "subrequests"
CONNECTIONS = 16

MODEL = """
import asyncio
import numpy as np
from farthing import Tensor

class Model:
    inputs = [Tensor("INPUT", "FP32", ROW_IN)]
    outputs = [Tensor("OUTPUT", "FP32", ROW_OUT)]
    max_batch_size = 64

    def load(self, context):
        self.other = context.models["OTHER"]

INFER
"""
INFER = {
    "alone": """
    def infer(self, inputs):
        return {"OUTPUT": np.zeros((len(inputs["INPUT"]), *ROW_OUT[1:]), np.float32)}
""",
    "batch": """
    def infer(self, inputs):
        return self.other(inputs)
""",
    "each": """
    async def infer(self, inputs, requests):
        rows, asked = 0, []
        for request in requests:
            own = inputs["INPUT"][rows : rows + request.rows]
            rows += request.rows
            asked.append(self.other.infer_async({"INPUT": own}, request=request))
        answers = await asyncio.gather(*asked)
        return {"OUTPUT": np.concatenate([answer["OUTPUT"] for answer in answers])}
""",
}


def build_repository(names: list[str]) -> None:
    """Each model, and the Python models that ask it."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in names:
        model = models.load(name)
        [(given, row)], [(told, expected)] = model.row.items(), model.answer.items()
        (FOLDER / name / "1").mkdir(parents=True)
        shutil.copyfile(model.file, FOLDER / name / "1" / "model.onnx")
        for way, infer in INFER.items():
            words = {"INPUT": given, "OUTPUT": told, "OTHER": name}
            words |= {"ROW_IN": str([-1, *row.shape[1:]]), "ROW_OUT": str([-1, *expected.shape[1:]])}
            code = MODEL.replace("INFER", infer)
            for word, value in words.items():
                code = code.replace(word, value)
            (FOLDER / f"{name}-{way}" / "1").mkdir(parents=True)
            (FOLDER / f"{name}-{way}" / "1" / "model.py").write_text(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    parser.add_argument("--models", nargs="+", default=["mlp", "effnet"])
    options = parser.parse_args()
    load.check_installed()
    build_repository(options.models)
    asked: dict[str, Any] = {}
    for name in options.models:
        [(given, row)] = models.load(name).row.items()
        asked |= {which: request(which, given, row) for which in (name, *(f"{name}-{way}" for way in INFER))}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [sys.executable, "-c", "from farthing.cli.main import main; main()", "serve", "--repository", str(FOLDER)]
    server = subprocess.Popen(
        ["taskset", "-c", "0", *run, "--http", f"127.0.0.1:{port}", "--no-grpc"], stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready")
                break
            except OSError:
                assert time.monotonic() < until, "the server is not ready"
                time.sleep(0.1)
        for name in options.models:
            [(_, expected)] = models.load(name).answer.items()
            for which in (name, f"{name}-batch", f"{name}-each"):
                told = np.frombuffer(answer(port, asked[which]), np.float32)
                assert np.allclose(told, expected.ravel(), atol=1e-3), f"{which} answers something else"
        rates: dict[str, list[float]] = {name: [] for name in asked}
        for asks in asked.values():
            load.run(port, asks, connections=CONNECTIONS, seconds=1, core=1)
        for _ in range(options.rounds):
            for name, asks in asked.items():
                seen = load.run(port, asks, connections=CONNECTIONS, seconds=options.seconds, core=1)
                assert not seen.errors
                rates[name].append(seen.rate)
    finally:
        server.terminate()
        server.wait()
    for which, seen_rates in rates.items():
        base = median(rates[which.partition("-")[0]])
        rate, spread = median(seen_rates), f"{min(seen_rates):.1f} to {max(seen_rates):.1f}"
        print(f"{which:14} {rate:9.1f} requests/s  {rate / base:.3f} of the model's  ({spread})")


if __name__ == "__main__":
    main()
