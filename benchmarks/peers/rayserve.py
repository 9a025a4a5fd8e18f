"""Ray Serve: one replica behind its HTTP proxy, KServe v2 JSON by hand, no batching. Eleven processes, nearly a
gigabyte and ten seconds to start.
"""

from dataclasses import replace
from pathlib import Path

import wire
from models import Model
from peers.contract import INSIDE, Launch, Peer, python


def encode(model: Model, wire_name: str) -> wire.Request:
    return replace(wire.encode(model, wire_name), path="/infer")


def launch(model: Model, port: int, _work: Path) -> Launch:
    command = [python("rayserve"), str(INSIDE / "rayserve_app.py"), str(model.file), str(port)]
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(INSIDE)}
    return Launch(command=command, environment=environment)


PEERS = (
    Peer(
        name="rayserve",
        about="Ray Serve, one replica, KServe v2 JSON by hand, no batching, no validation",
        launch=launch,
        environment="rayserve",
        main_package="ray",
        wires=("json",),
        models=("mlp", "minilm"),
        ready_path="/-/healthz",
        encode=encode,
    ),
)
