"""What does an ensemble cost beside its slowest step? Requests a second of both, in turns on one server on one core.

    python benchmarks/ensemble_rate.py

`look` takes a picture as bytes; its first step, `clean`, makes them the normalised planes that EfficientNet-Lite0
reads; its second step is EfficientNet. What passes between the steps is 600 KB a picture.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import load
import models
from wire import HEADER_LENGTH, Request

FOLDER = models.CACHE / "ensemble"
CONNECTIONS = 16
CONFIG = """
platform: "ensemble"
max_batch_size: 64
input [ { name: "picture" data_type: TYPE_UINT8 dims: [ 224, 224, 3 ] } ]
output [ { name: "OUTPUT" data_type: TYPE_FP32 dims: [ 1000 ] } ]
ensemble_scheduling { step [
  { model_name: "clean" model_version: -1
    input_map { key: "picture" value: "picture" } output_map { key: "planes" value: "planes" } },
  { model_name: "effnet" model_version: -1
    input_map { key: "image" value: "planes" } output_map { key: "OUTPUT" value: "OUTPUT" } } ] }
"""


def build_clean(file: Path) -> None:
    """Bytes [batch, 224, 224, 3] to (value - 127) / 128, planes first."""
    from onnx import TensorProto, helper, numpy_helper, save

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["picture"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["numbers", "middle"], ["centred"]),
            helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
            helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        ],
        "clean",
        [helper.make_tensor_value_info("picture", TensorProto.UINT8, ["batch", 224, 224, 3])],
        [helper.make_tensor_value_info("planes", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [
            numpy_helper.from_array(np.float32(127), "middle"),
            numpy_helper.from_array(np.float32(1 / 128), "scale"),
        ],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)


def build_repository(output: str) -> None:
    """The two models and the ensemble."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ("clean", "effnet", "look"):
        (FOLDER / name / "1").mkdir(parents=True)
    build_clean(FOLDER / "clean" / "1" / "model.onnx")
    shutil.copyfile(models.load("effnet").file, FOLDER / "effnet" / "1" / "model.onnx")
    (FOLDER / "look" / "config.pbtxt").write_text(CONFIG.replace("OUTPUT", output))


def request(model: str, name: str, row: np.ndarray[Any, Any]) -> Request:
    """One row in binary, asked for in binary."""
    datatype = {"uint8": "UINT8", "float32": "FP32"}[row.dtype.name]
    tensor = {"name": name, "datatype": datatype, "shape": list(row.shape)}
    document = {
        "parameters": {"binary_data_output": True},
        "inputs": [{**tensor, "parameters": {"binary_data_size": row.nbytes}}],
    }
    head = json.dumps(document).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Request(path=f"/v2/models/{model}/infer", body=head + row.tobytes(), headers=headers)


def answer(port: int, asked: Request) -> bytes:
    """The outputs' bytes."""
    url = f"http://127.0.0.1:{port}{asked.path}"
    with urllib.request.urlopen(urllib.request.Request(url, asked.body, asked.headers)) as told:
        body: bytes = told.read()
        return body[int(told.headers[HEADER_LENGTH]) :]


@contextmanager
def serving(folder: Path, more: tuple[str, ...] = ()) -> Iterator[int]:
    """A server on the first core, over a repository; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [
        sys.executable,
        "-c",
        "from farthing.cli.main import main; main()",
        "serve",
        "--repository",
        str(folder),
        *more,
    ]
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
        yield port
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each load")
    options = parser.parse_args()
    load.check_installed()
    (output,) = models.load("effnet").answer
    build_repository(output)
    picture = np.random.default_rng(models.SEED).integers(0, 256, (1, 224, 224, 3), np.uint8)
    planes = ((picture.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2).copy()
    asked = {
        "effnet": request("effnet", "image", planes),
        "clean": request("clean", "picture", picture),
        "look": request("look", "picture", picture),
    }
    with serving(FOLDER) as port:
        one, other = (np.frombuffer(answer(port, asked[name]), np.float32) for name in ("effnet", "look"))
        assert np.allclose(one, other, atol=1e-4), "the ensemble answers something else"
        rates: dict[str, list[float]] = {name: [] for name in asked}
        for asks in asked.values():
            load.run(port, asks, connections=CONNECTIONS, seconds=2, core=1)
        for _ in range(options.rounds):
            for name, asks in asked.items():
                seen = load.run(port, asks, connections=CONNECTIONS, seconds=options.seconds, core=1)
                assert not seen.errors
                rates[name].append(seen.rate)
    slowest = min(("effnet", "clean"), key=lambda name: median(rates[name]))
    ratios = [whole / step for whole, step in zip(rates["look"], rates[slowest], strict=True)]
    for name, seen_rates in rates.items():
        print(f"{name:8} {median(seen_rates):8.1f} requests/s  ({min(seen_rates):.1f} to {max(seen_rates):.1f})")
    both = 1 / (1 / median(rates["effnet"]) + 1 / median(rates["clean"]))
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"the ensemble runs at {median(ratios):.3f} ({spread}) of its slowest step, `{slowest}`;")
    print(f"one core that does both steps and nothing else: {both:.1f} requests/s, {both / median(rates[slowest]):.3f}")


if __name__ == "__main__":
    main()
