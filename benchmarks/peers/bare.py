"""Floors, not products: what one core can do when nothing is validated, limited, batched or counted.

`protocol-bare` is asyncio.Protocol with httptools, `uvicorn-bare` the same handler as a raw ASGI application.
`echo` answers fixed bytes without looking: the rate at which the load generator itself gives out.
"""

from models import Model
from peers.contract import INSIDE, Launch, Peer, python


def _launch(script: str, model: Model, port: int) -> Launch:
    return Launch(command=[python("bare"), str(INSIDE / script), str(model.file), str(port)])


PEERS = (
    Peer(
        name="protocol-bare",
        about="floor, validates nothing: asyncio.Protocol, httptools, orjson, onnxruntime on the event loop",
        launch=lambda model, port, _work: _launch("bare_protocol.py", model, port),
        environment="bare",
        main_package="httptools",
    ),
    Peer(
        name="uvicorn-bare",
        about="floor, validates nothing: the same handler as a raw ASGI application under uvicorn",
        launch=lambda model, port, _work: _launch("bare_asgi.py", model, port),
        environment="bare",
        main_package="uvicorn",
    ),
    Peer(
        name="echo",
        about="no server at all: fixed bytes for every request, the ceiling of the load generator",
        launch=lambda model, port, _work: _launch("bare_echo.py", model, port),
        environment="bare",
        main_package="uvloop",
        wires=("json",),
        models=("mlp",),
        is_echo=True,
    ),
)
