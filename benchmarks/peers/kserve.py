"""KServe's Python SDK: a custom predictor behind its model server, one worker, access log off."""

import json
from pathlib import Path

from models import Model
from peers.contract import INSIDE, Launch, Peer, python

QUIET = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING", "handlers": []}}
"""A logging configuration without handlers: uvicorn then formats no access line for each request."""


def launch(model: Model, port: int, work: Path) -> Launch:
    (work / "log.json").write_text(json.dumps(QUIET))
    script = str(INSIDE / "kserve_app.py")
    arguments = ["--http_port", str(port), "--enable_grpc", "false", "--workers", "1", "--enable_docs_url", "false"]
    arguments += ["--log_config_file", str(work / "log.json")]
    environment = {"MODEL_FILE": str(model.file), "MODEL_NAME": model.name}
    return Launch(command=[python("kserve"), script, *arguments], environment=environment)


PEERS = (
    Peer(
        name="kserve",
        about="KServe SDK, custom predictor, no batching (it has none in process)",
        launch=launch,
        environment="kserve",
        main_package="kserve",
    ),
)
