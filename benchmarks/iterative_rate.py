"""What is continuous batching worth, and what does a run cost? Steps a second, in turns on one server.

    python benchmarks/iterative_rate.py

A recurrent step of real size in numpy (a state of 3072, two square matrices of 75 MB together, which a run reads once
however many rows it has), as two Triton models that answer every step of a request. `again` has `iterative_sequence`:
half-done and new requests share runs; `whole` runs each batch of the dynamic batcher to the end of its longest request.
And `empty`, whose step does nothing, for the cost of a run itself. Requests of 4 to 128 steps (geometric, one seed),
`--clients` of them under way at a time.
"""

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from textwrap import dedent

import numpy as np
from tritonclient import grpc

SIDE = 3072

STEP = """
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

class TritonPythonModel:
    def initialize(self, args):
        random = np.random.default_rng(0)
        self.up, self.down = (random.standard_normal((SIDE, SIDE), np.float32) / SIDE**0.5 for _ in range(2))
        self.held = {}

    def step(self, states):
        return np.tanh(np.tanh(states @ self.up) @ self.down) if SIDE > 1 else states

    def say(self, request, flags=0):
        request.get_response_sender().send(
            pb_utils.InferenceResponse([pb_utils.Tensor("LEFT", np.array([[0]], np.int32))]), flags=flags
        )
"""
AGAIN = """
    def execute(self, requests):
        for request in requests:
            number = request.correlation_id()
            if request.flags():
                steps = int(pb_utils.get_input_tensor_by_name(request, "STEPS").as_numpy().item())
                self.held[number] = [steps, np.full(SIDE, number % 7, np.float32)]
        held = [self.held[request.correlation_id()] for request in requests]
        for one, state in zip(held, self.step(np.stack([state for _, state in held]))):
            one[0], one[1] = one[0] - 1, state
        for request, (left, _) in zip(requests, held):
            if left:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                self.say(request)
            else:
                del self.held[request.correlation_id()]
                self.say(request, FINAL)
"""
WHOLE = """
    def execute(self, requests):
        left = [int(pb_utils.get_input_tensor_by_name(r, "STEPS").as_numpy().item()) for r in requests]
        states = np.zeros((len(requests), SIDE), np.float32)
        while any(left):
            states = self.step(states)
            for place, request in enumerate(requests):
                if left[place]:
                    left[place] -= 1
                    self.say(request, 0 if left[place] else FINAL)
"""
CONFIG = """
backend: "python" max_batch_size: %d
model_transaction_policy { decoupled: true }
input [ { name: "STEPS" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "LEFT" data_type: TYPE_INT32 dims: [ 1 ] } ]
%s
"""
ITERATIVE = "sequence_batching { iterative_sequence: true oldest { max_candidate_sequences: %d } }"


def put(folder: Path, name: str, code: str, side: int, batching: str, rows: int) -> None:
    version = folder / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(dedent((STEP + code).replace("SIDE", str(side))))
    (version.parent / "config.pbtxt").write_text(CONFIG % (rows, batching))


def drive(address: str, model: str, lengths: list[int], clients: int) -> tuple[float, float]:
    """Steps a second, and the median milliseconds to a request's first step."""
    said: queue.Queue[tuple[float, str, bool]] = queue.Queue()

    def hear(result: grpc.InferResult | None, error: Exception | None) -> None:
        if error is not None or result is None:
            raise SystemExit(str(error))
        response = result.get_response()
        said.put((time.perf_counter(), response.id, response.parameters["triton_final_response"].bool_param))

    sent: dict[str, float] = {}
    first: dict[str, float] = {}
    waiting = list(enumerate(lengths))
    with grpc.InferenceServerClient(address) as client:
        client.start_stream(hear)

        def send() -> None:
            number, steps = waiting.pop()
            tensor = grpc.InferInput("STEPS", [1, 1], "INT32")
            tensor.set_data_from_numpy(np.array([[steps]], np.int32))
            sent[str(number)] = time.perf_counter()
            client.async_stream_infer(model, [tensor], request_id=str(number))

        began = time.perf_counter()
        for _ in range(min(clients, len(waiting))):
            send()
        ended = 0
        while ended < len(lengths):
            at, name, is_last = said.get(timeout=60)
            first.setdefault(name, at)
            ended += is_last
            if is_last and waiting:
                send()
        took = time.perf_counter() - began
    return sum(lengths) / took, median(1000 * (first[name] - sent[name]) for name in sent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    drawn = np.random.default_rng(1).geometric(1 / 32, asked.requests)
    lengths = [int(steps) for steps in np.clip(drawn, 4, 128)]
    rows = asked.clients
    with tempfile.TemporaryDirectory() as temporary:
        folder, ready = Path(temporary) / "models", Path(temporary) / "ready.json"
        iterative = ITERATIVE % rows
        put(folder, "again", AGAIN, SIDE, iterative, rows)
        put(folder, "whole", WHOLE, SIDE, "dynamic_batching { }", rows)
        put(folder, "empty", AGAIN, 1, iterative, rows)
        command = [sys.executable, "-c", "from farthing.cli.main import main; main()", "serve", str(folder)]
        command += ["--http", "127.0.0.1:0"]
        command += ["--grpc", "127.0.0.1:0", "--ready-file", str(ready)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not ready.exists():
                time.sleep(0.05)
            address = json.loads(ready.read_text())["grpc"]
            figures: dict[str, list[tuple[float, float]]] = {}
            for _ in range(asked.turns):
                for model in ("again", "whole", "empty"):
                    figures.setdefault(model, []).append(drive(address, model, lengths, asked.clients))
                figures.setdefault("empty alone", []).append(drive(address, "empty", [500], 1))
        finally:
            server.terminate()
            server.wait(20)
    for name, turns in figures.items():
        rate, wait = (median(turn[place] for turn in turns) for place in (0, 1))
        low, high = min(turn[0] for turn in turns), max(turn[0] for turn in turns)
        print(f"{name:12} {rate:8.0f} steps/s ({low:.0f} to {high:.0f}), {wait:7.1f} ms to a first step")


if __name__ == "__main__":
    main()
