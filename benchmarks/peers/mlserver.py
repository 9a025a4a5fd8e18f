"""Seldon's MLServer with a custom runtime, in one process (`parallel_workers` 0: its default worker process costs
three times as much and adds nothing on one core). uvloop is pinned to 0.21: its workers break with later ones.

Its HTTP side has no binary tensors. Adaptive batching is measured as its own line.
"""

import json
from pathlib import Path

from models import Model
from peers.contract import INSIDE, Launch, Peer, folder, free_port


def _launch(model: Model, port: int, work: Path, *, batch_rows: int) -> Launch:
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,
    }
    model_settings = {
        "name": model.name,
        "implementation": "mlserver_runtime.OnnxModel",
        "parameters": {"uri": str(model.file)},
        **({"max_batch_size": batch_rows, "max_batch_time": 0.002} if batch_rows else {}),
    }
    (work / "settings.json").write_text(json.dumps(settings))
    (work / "model-settings.json").write_text(json.dumps(model_settings))
    command = [str(folder("mlserver") / "bin" / "mlserver"), "start", str(work)]
    return Launch(command=command, environment={"PYTHONPATH": str(INSIDE)})


PEERS = (
    Peer(
        name="mlserver",
        about="MLServer, one process, custom onnxruntime runtime, no batching",
        launch=lambda model, port, work: _launch(model, port, work, batch_rows=0),
        environment="mlserver",
        main_package="mlserver",
        wires=("json",),
        models=("mlp", "minilm"),
    ),
    Peer(
        name="mlserver-batch",
        about="the same with adaptive batching: 8 rows, 2 ms",
        launch=lambda model, port, work: _launch(model, port, work, batch_rows=8),
        environment="mlserver",
        main_package="mlserver",
        wires=("json",),
        models=("minilm",),
    ),
)
