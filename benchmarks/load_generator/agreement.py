"""`farthing bench` beside perf_analyzer or MLPerf's LoadGen on the same server, in turn: do they say the same?

    python benchmarks/load_generator/agreement.py --rounds 6 --out FILE     again with --more FILE: rounds add up
    python benchmarks/load_generator/agreement.py --with loadgen --connections 1

Serves a real model (one core) and lets both tools load it alternately over HTTP with binary tensors of zeros, closed
loop; LoadGen as SingleStream, which is one connection. Prints the ratio of their figures with its interval; within 3 %
is what is wanted. Of LoadGen's runs it also tells the ratio of both clocks on them.
A p99 within 3 % wants some thousand requests of each tool: several runs, whose rounds `--more` puts together. What a
shared machine does to the slowest answers of a model that computes is more than that; `--model sleeper` takes times
that are known (lognormal, p50 20 ms, p99 50.7 ms) on a core that is idle meanwhile, so that what differs is the tools.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from farthing.bench.comparison import Side, order, ratio
from farthing.bench.server_process import ServerProcess
from farthing.client import Client
from perf_analyzer import NotObtainable, perf_analyzer

SLEEPER: Final = "sleeper"
SLEEPER_CODE: Final = '''
"""Answers after times of a lognormal distribution. They come in a low-discrepancy order (Weyl's sequence of the golden
ratio), so that any few hundred in a row have its quantiles."""
import time
from math import exp
from statistics import NormalDist
from farthing import Tensor

class Model:
    inputs = [Tensor("x", "FP32", [1])]
    outputs = [Tensor("y", "FP32", [1])]
    max_batch_size = 0

    def load(self, context):
        self.turn = 0

    def infer(self, inputs):
        self.turn += 1
        time.sleep(0.02 * exp(0.4 * NormalDist().inv_cdf((self.turn * 0.6180339887498949 + 0.5) % 1)))
        return {"y": inputs["x"]}
'''
SHAPES: Final = {
    SLEEPER: {"x": ((1,), "float32")},
    "effnet-lite0": {"image": ((1, 3, 224, 224), "float32")},
    "minilm-l6": {"input_ids": ((1, 32), "int64"), "attention_mask": ((1, 32), "int64")},
}
"""Of the models that can be asked: 4 bytes a request, 600 KB, or half of one."""
HAS_OPEN_SHAPES: Final = {"minilm-l6"}
SEARCH_S: Final = 6.0
WARM_UP_S: Final = 0.3
WARM_UP_REQUESTS: Final = 60
"""About as many as the models here answer in that time: neither tool is to count its own beginning."""
FIGURES: Final = {"requests_s": "Inferences/Second", "p50_ms": "p50 latency", "p99_ms": "p99 latency"}


def bench(netloc: str, model: str, seconds: float, folder: Path, *words: str) -> Any:
    """The JSON report of one run of `farthing bench`."""
    out = folder / "report.json"
    command = [sys.executable, "-c", "from farthing.cli.main import main; main()", "bench", f"http://{netloc}"]
    zeros: dict[str, Any] = {name: np.zeros(shape, dtype) for name, (shape, dtype) in SHAPES[model].items()}
    np.savez(folder / "zeros.npz", **zeros)
    command += ["-m", model, "--input", str(folder / "zeros.npz"), "-d", str(seconds), "--warmup", str(WARM_UP_S)]
    command += ["--json", str(out), *words]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads(out.read_text())


def by_farthing(netloc: str, model: str, connections: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Our figures, as a user gets them."""
    found = bench(netloc, model, seconds, folder, "-c", str(connections))["runs"][0]["figures"]
    at = {one["percent"]: one["value"] for one in found["latency"]["percentiles"]}
    return {"requests_s": found["rate"]["value"], "p50_ms": at[50.0] * 1e3, "p99_ms": at[99.0] and at[99.0] * 1e3}


def by_perf_analyzer(netloc: str, model: str, connections: int, seconds: float) -> dict[str, Any]:
    """Its figures from its CSV."""
    windows = ["--input-data", "zero", "--warmup-request-count", str(WARM_UP_REQUESTS)]
    windows += ["--measurement-interval", str(int(seconds * 1000 / 3)), "--stability-percentage", "50"]
    for name, (shape, _) in SHAPES[model].items() if model in HAS_OPEN_SHAPES else ():
        windows += ["--shape", f"{name}:{','.join(map(str, shape[1:]))}"]
    args = ["-m", model, "-u", netloc, "-i", "http", "--concurrency-range", str(connections), *windows]
    status, rows, output = perf_analyzer(args)
    if status or not rows:
        sys.exit(f"error: perf_analyzer: {output}")
    row = rows[0]
    return {name: float(row[column]) / (1 if name == "requests_s" else 1000) for name, column in FIGURES.items()}


def by_loadgen(netloc: str, model: str, seconds: float, folder: Path) -> dict[str, Any]:
    """LoadGen's own figures of SingleStream, and ours of the same requests."""
    pairs = bench(netloc, model, seconds, folder, "--mlperf", "single-stream")["mlperf"]["pairs"]
    names = {"requests_s": ("queries/s", 1.0), "p50_ms": ("p50 latency", 1e3), "p99_ms": ("p99 latency", 1e3)}
    row: dict[str, Any] = {name: pairs[key]["loadgen"] * unit for name, (key, unit) in names.items()}
    return row | {
        "same_requests": {key: pair["farthing"] and pair["farthing"] / pair["loadgen"] for key, pair in pairs.items()}
    }


def served(model: str, connections: int, folder: Path) -> str:
    """What `farthing serve` is told to serve."""
    if model != SLEEPER:
        return f"sample:{model}"
    version = folder / SLEEPER / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(SLEEPER_CODE)
    (version.parent / "config.pbtxt").write_text(f"instance_group [ {{ count: {connections} kind: KIND_CPU }} ]\n")
    return str(version.parent)


def spent(netloc: str, model: str, pid: int) -> tuple[float, float]:
    """CPU seconds of the server so far, and requests it answered: how it was asked may change what an answer costs."""
    with Client(f"http://{netloc}") as client:
        answered = sum(int(one["inference_stats"]["success"]["count"]) for one in client.statistics(model))
    return ServerProcess(pid=pid).cpu_s(), answered


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="effnet-lite0")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--with", dest="tool", choices=["perf_analyzer", "loadgen"], default="perf_analyzer")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--more", type=Path, help="an --out of before, whose rounds these are added to")
    options = parser.parse_args()
    if options.tool == "loadgen" and options.connections != 1:
        parser.error("LoadGen's SingleStream is one connection: --connections 1")
    found: dict[str, list[dict[str, Any]]] = {"farthing": [], options.tool: []}
    if options.more:
        found = json.loads(options.more.read_text())["rounds"]
        options.out = options.out or options.more
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ready = folder / "ready.json"
        serve = [
            sys.executable,
            "-c",
            "from farthing.cli.main import main; main()",
            "serve",
            served(options.model, options.connections, folder),
        ]
        serve += ["--http", "127.0.0.1:0", "--no-grpc", "--ready-file", str(ready)]
        log = (folder / "log").open("wb")
        server = subprocess.Popen(["taskset", "-c", "0", *serve], stdout=log, stderr=log)
        os.sched_setaffinity(0, {1})
        try:
            while not ready.exists():
                time.sleep(0.1)
                if server.poll() is not None:
                    sys.exit((folder / "log").read_text())
            netloc = json.loads(ready.read_text())["http"]
            # Not measured: the server looks for its batch size, and only the first tool would meet that.
            by_farthing(netloc, options.model, options.connections, SEARCH_S, folder)
            for side in order(options.rounds):
                before = spent(netloc, options.model, server.pid)
                if side is Side.A:
                    row = by_farthing(netloc, options.model, options.connections, options.seconds, folder)
                elif options.tool == "loadgen":
                    row = by_loadgen(netloc, options.model, options.seconds, folder)
                else:
                    row = by_perf_analyzer(netloc, options.model, options.connections, options.seconds)
                cpu_s, count = (
                    now - then for now, then in zip(spent(netloc, options.model, server.pid), before, strict=True)
                )
                row["server_cpu_us"] = cpu_s / count * 1e6
                found["farthing" if side is Side.A else options.tool].append(row)
                print(side.name, row, flush=True)
        except NotObtainable as reason:
            sys.exit(f"error: {reason}")
        finally:
            server.terminate()
            server.wait()
    ratios: dict[str, Any] = {}
    for figure in (*FIGURES, "server_cpu_us"):
        if any(row.get(figure) is None for rows in found.values() for row in rows):
            print(f"{figure}: too few requests for it; make --seconds longer")
            continue
        of = ratio(*([row[figure] for row in found[tool]] for tool in found))
        if of.low is None or of.high is None:
            print(f"{figure}: too few rounds for an interval")
            continue
        ratios[figure] = {"value": of.value, "low": of.low, "high": of.high}
        print(f"{figure}: farthing / {options.tool} {of.value:.4f} ({of.low:.4f} to {of.high:.4f}): {of.verdict.value}")
    if options.out:
        options.out.write_text(json.dumps({"ratios": ratios, "rounds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
