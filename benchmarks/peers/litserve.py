"""Lightning's LitServe: one API server, one worker process. It has no schema of its own, so it is given KServe v2
JSON and answers in it, through its decode and encode hooks and without validation.
"""

from models import Model
from peers.contract import INSIDE, Launch, Peer, python


def _launch(model: Model, port: int, batch_rows: int) -> Launch:
    arguments = [str(model.file), f"/v2/models/{model.name}/infer", str(port), str(batch_rows)]
    return Launch(command=[python("litserve"), str(INSIDE / "litserve_app.py"), *arguments])


PEERS = (
    Peer(
        name="litserve",
        about="LitServe, one worker, its own hooks for KServe v2 JSON, no batching, no validation",
        launch=lambda model, port, _work: _launch(model, port, 1),
        environment="litserve",
        main_package="litserve",
        wires=("json",),
        models=("mlp", "minilm"),
        ready_path="/health",
    ),
    Peer(
        name="litserve-batch",
        about="the same with batches of up to 8, 2 ms",
        launch=lambda model, port, _work: _launch(model, port, 8),
        environment="litserve",
        main_package="litserve",
        wires=("json",),
        models=("minilm",),
        ready_path="/health",
    ),
)
