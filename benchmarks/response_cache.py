"""What does the response cache save, and what does looking cost? Requests a second with and without, on one core.

    python benchmarks/response_cache.py

The tiny MLP and EfficientNet-Lite0, each served twice, with and without `response_cache`; one request sent again and
again, so that every one after the first is a hit. Then the time of a key by itself.
"""

import argparse
import hashlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import load
import models
from ensemble_rate import request
from farthing.runtime.cache_key import cache_key
from farthing.types.requests import InferRequest

FOLDER = models.CACHE / "response_cache"
CONNECTIONS = 16
CACHED = "response_cache { enable: true }\n"


def build_repository(names: tuple[str, ...]) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    """Each model twice; answers the input's name and a row."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    rows = {}
    for name in names:
        model = models.load(name)
        [(tensor, row)] = model.row.items()
        for suffix, config in (("", ""), ("_cached", CACHED)):
            folder = FOLDER / (name + suffix)
            (folder / "1").mkdir(parents=True)
            shutil.copyfile(model.file, folder / "1" / "model.onnx")
            (folder / "config.pbtxt").write_text(config)
        rows[name] = (tensor, row)
    return rows


def least_us(call: Callable[[], object], seconds: float = 0.3) -> float:
    """The least of several rounds, microseconds a call."""
    call()
    began = time.perf_counter()
    call()
    count = max(1, int(seconds / 10 / (time.perf_counter() - began)))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter() - began) / count)
    return best * 1e6


def keys() -> None:
    """Prints what hashing costs."""
    print("| input | bytes | key, us | SHA-256 alone, us | BLAKE2b, us |\n| --- | --- | --- | --- | --- |")
    for what, shape in (
        ("MLP", (1, 32)),
        ("sentence", (1, 1024)),
        ("picture", (1, 3, 224, 224)),
        ("4 MiB", (1 << 20,)),
    ):
        row = np.random.default_rng(models.SEED).random(shape, np.float32)
        asked = InferRequest(model_name="m", inputs={"x": row})
        data = row.tobytes()
        times = (
            least_us(lambda asked=asked: cache_key(asked, ("m", "1", 1, ()))),  # type: ignore[misc]
            least_us(lambda data=data: hashlib.sha256(data).digest()),  # type: ignore[misc]
            least_us(lambda data=data: hashlib.blake2b(data, digest_size=32).digest()),  # type: ignore[misc]
        )
        print(f"| {what} | {row.nbytes:,} | " + " | ".join(f"{us:,.1f}" for us in times) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each load")
    options = parser.parse_args()
    keys()
    load.check_installed()
    names = ("mlp", "effnet")
    rows = build_repository(names)
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
        asked = {name + suffix: request(name + suffix, *rows[name]) for name in names for suffix in ("", "_cached")}
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
    print("\n| model | requests/s, median (least to most) |\n| --- | --- |")
    for name, found in rates.items():
        print(f"| {name} | {median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f}) |")


if __name__ == "__main__":
    main()
