"""gRPC's rate on the tiny MLP: Farthing on one core, h2load on another, closed loop, one prepared request.

    python benchmarks/grpc_rate.py                     1 and 64 connections, 64 streams of one connection, and between
    python benchmarks/grpc_rate.py --seconds 2 64:1    CONNECTIONS:STREAMS

h2load counts HTTP statuses, and gRPC says everything with 200; so one answer is read and held against onnxruntime
before each load, and the server's own count of OK answers against h2load's after it. The request and its answer are
written and read field by field, apart from `farthing.protocols` on purpose.
"""

import argparse
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Final

import numpy as np

import machine
import models

PATH: Final = "/inference.GRPCInferenceService/ModelInfer"
LOADS: Final = ("1:1", "1:64", "8:8", "64:1")
READY_MAX_S: Final = 60


def field(number: int, data: bytes) -> bytes:
    """A protobuf field of bytes; short ones, as all here are."""
    assert len(data) < 1 << 14
    size = bytes((len(data),)) if len(data) < 128 else bytes((len(data) & 127 | 128, len(data) >> 7))
    return bytes((number << 3 | 2,)) + size + data


def request(model: models.Model) -> bytes:
    """One row of the model, framed."""
    ((name, row),) = model.row.items()
    tensor = field(1, name.encode()) + field(2, b"FP32") + field(3, bytes(row.shape))
    message = field(1, model.name.encode()) + field(5, tensor) + field(7, row.tobytes())
    return b"\0" + struct.pack(">I", len(message)) + message


def is_right(model: models.Model, address: str, body: Path) -> bool:
    """Whether an answer, fetched by curl, ends with the model's output (`raw_output_contents` comes last)."""
    command = ["curl", "--silent", "--http2-prior-knowledge", "--data-binary", f"@{body}"]
    command += ["--header", "content-type: application/grpc", "--header", "te: trailers", f"http://{address}{PATH}"]
    answer = subprocess.run(command, capture_output=True, check=True).stdout
    ((name, want),) = model.answer.items()
    return model.is_right({name: np.frombuffer(answer[-want.nbytes :], "<f4").reshape(want.shape)})


def answered(http: str) -> int:
    """Inferences the server says it answered with OK."""
    with urllib.request.urlopen(f"http://{http}/metrics") as reply:
        text = reply.read().decode()
    found = re.search(r'farthing_grpc_requests_total\{route="infer",code="OK"\} (\d+)', text)
    return int(found[1]) if found else 0


def load(address: str, body: Path, connections: str, streams: str, seconds: float) -> tuple[int, str]:
    """Requests answered, and what h2load says of their times."""
    command = ["taskset", "-c", "1", "h2load", "-D", f"{seconds:g}", "-c", connections, "-m", streams, "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{address}{PATH}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = re.search(r"(\d+) done, (\d+) succeeded", said)
    times = re.search(r"time for request: +(.*)", said)
    if counts is None or times is None or counts[1] != counts[2]:
        sys.exit(f"h2load failed:\n{said}")
    return int(counts[1]), " ".join(times[1].split()[:3])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("loads", nargs="*", default=LOADS, metavar="CONNECTIONS:STREAMS")
    options.add_argument("--seconds", type=float, default=4)
    asked = options.parse_args()
    for tool in ("h2load", "curl", "taskset"):
        if shutil.which(tool) is None:
            sys.exit(f"`{tool}` is not installed; on Debian: apt-get install nghttp2-client curl util-linux")
    models.CACHE.mkdir(parents=True, exist_ok=True)
    model = models.load("mlp")
    body, ready = models.CACHE / "grpc-body", models.CACHE / "grpc-ready.json"
    body.write_bytes(request(model))
    ready.unlink(missing_ok=True)
    serve = [sys.executable, "-c", "from farthing.cli.main import main; main()", "serve", str(model.file)]
    serve += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--ready-file", str(ready)]
    with (models.CACHE / "grpc.log").open("wb") as log:
        server = subprocess.Popen(["taskset", "-c", "0", *serve], stdin=subprocess.DEVNULL, stderr=log)
    try:
        deadline = time.monotonic() + READY_MAX_S
        while not ready.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not start; see {log.name}")
            time.sleep(0.05)
        where = json.loads(ready.read_text())
        print("| connections | streams each | requests/s | CPU-us a request | min, max, mean time |")
        print("|---|---|---|---|---|")
        for spec in asked.loads:
            connections, _, streams = spec.partition(":")
            if not is_right(model, where["grpc"], body):
                sys.exit("the server answers wrongly")
            before, cpu_before_s = answered(where["http"]), machine.cpu_s(server.pid)
            count, times = load(where["grpc"], body, connections, streams, asked.seconds)
            used_s = machine.cpu_s(server.pid) - cpu_before_s
            if answered(where["http"]) - before < count:
                sys.exit("not every answer was OK")
            print(
                f"| {connections} | {streams} | {count / asked.seconds:,.0f} | {used_s / count * 1e6:.1f} | {times} |"
            )
        memory = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text())
        print(f"\n{os.cpu_count()} cores; peak memory {int(memory[1]) >> 10 if memory else 0} MiB")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
