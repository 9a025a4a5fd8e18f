"""BentoML: one service, one worker, no batching; KServe v2's `inputs` list is its API's argument."""

import os
from dataclasses import replace
from pathlib import Path

import wire
from models import Model
from peers.contract import INSIDE, Launch, Peer, folder


def encode(model: Model, wire_name: str) -> wire.Request:
    return replace(wire.encode(model, wire_name), path="/infer")


def launch(model: Model, port: int, work: Path) -> Launch:
    home = folder("bentoml")
    command = [
        *(str(home / "bin" / "bentoml"), "serve", "bentoml_app:OnnxService", "--working-dir", str(INSIDE)),
        *("--host", "127.0.0.1", "--port", str(port), "--api-workers", "1"),
    ]
    environment = {
        "MODEL_FILE": str(model.file),
        "BENTOML_HOME": str(work / "home"),
        "BENTOML_DO_NOT_TRACK": "true",
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
    }
    return Launch(command=command, environment=environment)


PEERS = (
    Peer(
        name="bentoml",
        about="BentoML, one worker, its own schema, no batching",
        launch=launch,
        environment="bentoml",
        main_package="bentoml",
        wires=("json",),
        models=("mlp", "minilm"),
        ready_path="/readyz",
        encode=encode,
    ),
)
