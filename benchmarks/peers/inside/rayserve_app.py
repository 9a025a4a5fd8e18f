"""Runs Ray Serve on this machine only: FILE PORT."""

import signal
import sys

import ray
from onnx_json import OnnxModel
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=128, ray_actor_options={"num_cpus": 0})
class OnnxService:
    def __init__(self, file: str) -> None:
        self.model = OnnxModel(file)

    async def __call__(self, request: Request) -> dict:
        document = await request.json()
        return {"outputs": self.model.document(self.model.run(self.model.feed(document["inputs"])))}


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, logging_level="warning", object_store_memory=128 * 2**20)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2]), "access_log": False})
    serve.run(OnnxService.bind(sys.argv[1]), route_prefix="/infer")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
