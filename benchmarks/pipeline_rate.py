"""What does joining models cost? Two tiny ones apart and as a pipeline, and a page of text beside its networks.

    python benchmarks/pipeline_rate.py

The server has one core, the load the other. `tiny`: a perceptron (32-64-8) and a layer (8-8), each asked for by itself,
then both as one pipeline, in turns: machines drift, so the pipeline is held against the slower one of the same round,
and the median of the rounds is told with its 95 % interval. `inside`: the same without a socket, in this process, where
differences of a tenth of a microsecond show. `page`: `sample:ppocr-v4` with page.png (5 lines), beside how long ONNX
Runtime alone, on that core and in one thread, takes for what one page gives each network.
"""

import argparse
import asyncio
import json
import os
import shutil
import time
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import load
import models
from ensemble_rate import answer, request, serving
from wire import Request

FOLDER = models.CACHE / "pipeline"
CONNECTIONS = 64
PAGE_CONNECTIONS = 4
PIPELINE = """
inputs = ["x"]
outputs = ["z"]
step = [
  { model = "mlp", inputs = { x = "x" }, outputs = { y = "y" } },
  { model = "layer", inputs = { y = "y" }, outputs = { z = "z" } },
]
"""


def build_layer(file: Path) -> None:
    """`z` = relu(`y` w), FP32 [batch, 8]."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(models.SEED).normal(0, 8**-0.5, (8, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["y", "w"], ["h"]), helper.make_node("Relu", ["h"], ["z"])],
        "layer",
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(weights, "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)


def build_tiny() -> None:
    """The two small models and the pipeline."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ("mlp", "layer"):
        (FOLDER / name / "1").mkdir(parents=True)
    models.build_mlp(FOLDER / "mlp" / "1" / "model.onnx")
    build_layer(FOLDER / "layer" / "1" / "model.onnx")
    (FOLDER / "joined").mkdir()
    (FOLDER / "joined" / "pipeline.toml").write_text(PIPELINE)


def tiny(rounds: int, seconds: int) -> None:
    """Requests a second of two small models apart and joined."""
    build_tiny()
    x = np.random.default_rng(models.SEED).uniform(-1, 1, (1, 32)).astype(np.float32)
    with serving(FOLDER) as port:
        y = np.frombuffer(answer(port, request("mlp", "x", x)), np.float32)[None]
        asked = {
            name: request(name, *of) for name, of in {"mlp": ("x", x), "layer": ("y", y), "joined": ("x", x)}.items()
        }
        assert answer(port, asked["layer"]) == answer(port, asked["joined"]), "joined, they answer something else"
        rates: dict[str, list[float]] = {name: [] for name in asked}
        for asks in asked.values():
            load.run(port, asks, connections=CONNECTIONS, seconds=2, core=1)
        for _ in range(rounds):
            for name, asks in asked.items():
                seen = load.run(port, asks, connections=CONNECTIONS, seconds=seconds, core=1)
                assert not seen.errors
                rates[name].append(seen.rate)
    for name, seen_rates in rates.items():
        middle = median(seen_rates)
        spread = f"{min(seen_rates):,.0f} to {max(seen_rates):,.0f}"
        print(f"{name:8} {middle:9,.0f} requests/s ({spread}), {1e6 / middle:.1f} us")
    slowest = min(("mlp", "layer"), key=lambda name: median(rates[name]))
    ratios = [whole / step for whole, step in zip(rates["joined"], rates[slowest], strict=True)]
    low, high = interval(ratios)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"joined, {median(ratios):.3f} of `{slowest}` alone; 95 % interval {low:.3f} to {high:.3f}, all {spread}")
    costs = [1e6 / whole - 1e6 / step for whole, step in zip(rates["joined"], rates[slowest], strict=True)]
    low, high = interval(costs)
    print(f"the other step, {median(costs):.2f} us a request; 95 % interval {low:.2f} to {high:.2f}")


def inside(rounds: int, requests: int) -> None:
    """What the second step costs without a socket, on one core, with so many requests in a turn of the event loop."""
    import uvloop

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    build_tiny()
    costs = uvloop.run(_costs_inside(rounds, requests))
    for name, seen in costs.items():
        print(f"{name:8} {median(seen):6.2f} us a request, {requests} in a turn")
    beyond = [whole - first for whole, first in zip(costs["joined"], costs["mlp"], strict=True)]
    low, high = interval(beyond)
    print(f"the other step, {median(beyond):.2f} us a request; 95 % interval {low:.2f} to {high:.2f}")


async def _costs_inside(rounds: int, requests: int) -> dict[str, list[float]]:
    """Microseconds a request of each model and of the pipeline: the median turn of each round."""
    from farthing.config.server import ServerConfig
    from farthing.engines.registry import default_filenames
    from farthing.repository import Repository
    from farthing.runtime.runtime import Runtime
    from farthing.types.requests import InferRequest

    runtime = Runtime(Repository([FOLDER], default_filenames=default_filenames()), ServerConfig())
    await runtime.start()

    async def turn(name: str, inputs: dict[str, Any]) -> float:
        answers: list[object] = []
        over = asyncio.get_running_loop().create_future()

        def done(answer: object) -> None:
            answers.append(answer)
            if len(answers) == requests:
                over.set_result(None)

        served = runtime.resolve(name)
        started = time.perf_counter_ns()
        for _ in range(requests):
            asked = InferRequest(model_name=name, inputs=inputs)
            served.submit(asked, *served.check(asked), time.monotonic_ns(), done)
        await over
        return (time.perf_counter_ns() - started) / requests / 1e3

    x = np.random.default_rng(models.SEED).uniform(-1, 1, (1, 32)).astype(np.float32)
    inputs = {"mlp": {"x": x}, "layer": {"y": x[:, :8]}, "joined": {"x": x}}
    costs: dict[str, list[float]] = {name: [] for name in inputs}
    for number in range(rounds + 1):
        for name, tensors in inputs.items():
            seen = median([await turn(name, tensors) for _ in range(400)])
            if number:  # the first warms up
                costs[name].append(seen)
    await runtime.close()
    return costs


def interval(values: list[float]) -> tuple[float, float]:
    """Between which the median lies, of whatever distribution, in 95 of 100 cases; from fewer than 6: all of them.

    Each value is above the median as a coin falls (the sign test's interval).
    """
    ascending = sorted(values)
    count = len(values)
    place = 0
    while sum(comb(count, heads) for heads in range(place + 1)) / 2**count <= 0.025:
        place += 1
    return ascending[max(0, place - 1)], ascending[count - max(1, place)]


def page(rounds: int, seconds: int) -> None:
    """Pages a second, beside what the networks alone would take."""
    from farthing.repository.samples import input_folder, sample_paths

    folders = {path.name: path for path in sample_paths("ppocr-v4")}
    content = (input_folder("photographs") / "page.png").read_bytes()
    asked = _page_request(content)
    with serving(
        next(iter(folders.values())).parent, ("--model-control-mode", "explicit", "--load-model", "ppocr-v4")
    ) as port:
        document = json.loads(answer_json(port, asked))
        lines = document["outputs"][0]["shape"][0]
        assert lines == 5, document
        rates = []
        load.run(port, asked, connections=PAGE_CONNECTIONS, seconds=4, core=1)
        for _ in range(rounds):
            seen = load.run(port, asked, connections=PAGE_CONNECTIONS, seconds=seconds, core=1)
            assert not seen.errors
            rates.append(seen.rate)
    os.sched_setaffinity(0, {0})
    shapes = {"ppocr-det": (1, 3, 736, 1472), "ppocr-cls": (lines, 3, 48, 192), "ppocr-rec": (lines, 3, 48, 1000)}
    took = {name: _alone_s(folders[name] / "1" / "model.onnx", shape) for name, shape in shapes.items()}
    for name, took_s in took.items():
        print(f"{name:10} {took_s * 1e3:7.1f} ms a page by ONNX Runtime alone: {1 / took_s:.2f} pages/s")
    whole = median(rates)
    print(f"pipeline   {1e3 / whole:7.1f} ms a page: {whole:.2f} pages/s ({min(rates):.2f} to {max(rates):.2f})")
    slowest = max(took, key=lambda name: took[name])
    print(f"{whole * took[slowest]:.3f} of its slowest network `{slowest}` alone, which has the whole core then;")
    print(f"{whole * sum(took.values()):.3f} of all networks one after the other and nothing else")


def _page_request(content: bytes) -> Request:
    document = {
        "inputs": [
            {"name": "page", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(content) + 4}}
        ]
    }
    head = json.dumps(document).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    body = head + len(content).to_bytes(4, "little") + content
    return Request(path="/v2/models/ppocr-v4/infer", body=body, headers=headers)


def answer_json(port: int, asked: Request) -> bytes:
    """An answer without binary tensors."""
    import urllib.request

    url = f"http://127.0.0.1:{port}{asked.path}"
    with urllib.request.urlopen(urllib.request.Request(url, asked.body, asked.headers)) as told:
        body: bytes = told.read()
        return body


def _alone_s(file: Path, shape: tuple[int, ...]) -> float:
    session: Any = models.session(file)
    row = np.random.default_rng(models.SEED).uniform(-1, 1, shape).astype(np.float32)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        session.run(None, {"x": row})
        times.append(time.perf_counter() - started)
    return median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="*", choices=["tiny", "inside", "page", []], help="default: all")
    parser.add_argument("--rounds", type=int, help="default: 12; of `page` 5")
    parser.add_argument("--seconds", type=int, help="of each load; default: 2; of `page` 3")
    parser.add_argument("--requests", type=int, default=40, help="in a turn, of `inside`")
    options = parser.parse_args()
    load.check_installed()
    for what in options.what or ["tiny", "inside", "page"]:
        if what == "tiny":
            tiny(options.rounds or 12, options.seconds or 2)
        elif what == "inside":
            inside(options.rounds or 12, options.requests)
        else:
            page(options.rounds or 5, options.seconds or 3)


if __name__ == "__main__":
    main()
