"""How much the load generator of `farthing bench` can do on one core, against a server that does nothing on another.

    python benchmarks/load_generator/rate.py [--server-core 0] [--load-core 1] [--out FILE]

Compiles `nothing.c` beside this file (needs a C compiler), and loads it with requests in closed and open loops and with
2,000 token streams at once. The figures stand in docs/decisions/0018.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.bench.arrivals import OpenLoad, arrivals
from farthing.bench.load import Load, Work
from farthing.bench.native_driver import NativeDriver
from farthing.bench.wire import http_message

SOURCE: Final = Path(__file__).with_name("nothing.c")
BODY: Final = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[1]}]}'
STREAMS: Final = 2_000
STREAM_HZ: Final = 25
TOKENS: Final = 150


def compiled(folder: Path) -> Path:
    """The server, built for this machine."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("error: no C compiler\nhint: install gcc")
    program = folder / "nothing"
    subprocess.run([compiler, "-O2", "-o", str(program), str(SOURCE)], check=True)
    return program


def measure(program: Path, core: int, work: Work, load: Load, *extra: str) -> dict[str, Any]:
    """One load against a fresh server; what came back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(["taskset", "-c", str(core), str(program), str(port), *extra])
    try:
        time.sleep(0.3)
        found = NativeDriver("127.0.0.1", port, work, load).run()
    finally:
        server.kill()
        server.wait()
    latency = found.latency_s[found.is_answered]
    return {
        "requests_s": round(float(found.is_answered.sum() / found.wall_s)),
        "errors": int((~found.is_answered).sum()),
        "tokens_s": round(len(found.event_ns) / found.wall_s),
        "generator_cpu_share": round(found.cpu_s / found.wall_s, 3),
        "generator_starved_share": round(found.starved_s / found.wall_s, 3),
        "p50_us": round(float(np.median(latency)) * 1e6, 1),
        "lag_p99_us": round(float(np.percentile(found.lag_s, 99)) * 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.load_core})
    message = http_message("POST", "/v2/models/m/infer", "localhost", {"Content-Type": "application/json"}, BODY)
    once, stream = (Work(wire=wire, chains=[[message]], order=[0]) for wire in ("http", "stream"))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(Path(folder))
        for connections in (1, 8, 64, 256):
            load = Load(connections=connections, duration_s=options.seconds)
            found[f"closed, {connections}"] = measure(program, options.server_core, once, load)
        for rate in (20_000, 60_000):
            times = arrivals(OpenLoad(rate=rate), options.seconds, 1)
            load = Load(connections=512, duration_s=options.seconds, arrivals_s=times)
            found[f"open, {rate}/s"] = measure(program, options.server_core, once, load)
        load = Load(connections=STREAMS, duration_s=options.seconds)
        name = f"{STREAMS} streams of {STREAM_HZ} tokens/s"
        found[name] = measure(program, options.server_core, stream, load, str(STREAM_HZ), str(TOKENS))
    for name, figures in found.items():
        print(name, figures)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
