"""Farthing, from this checkout, as a user starts it: a file, a port, and nothing configured."""

from pathlib import Path

from models import Model
from peers.contract import Launch, Peer, python


def launch(model: Model, port: int, _folder: Path) -> Launch:
    command = [python(""), "-c", "from farthing.cli.main import main; main()"]  # what the `farthing` script does
    return Launch(command=[*command, "serve", str(model.file), "--http", f"127.0.0.1:{port}", "--no-grpc"])


PEERS = (
    Peer(
        name="farthing",
        about="this checkout, nothing configured: validation, batching, metrics, limits and deadlines on",
        launch=launch,
        main_package="farthing",
    ),
)
