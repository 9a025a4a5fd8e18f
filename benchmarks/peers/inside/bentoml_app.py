"""Runs inside BentoML: an onnxruntime model behind one API method."""

import os
from typing import Any

import bentoml
from onnx_json import OnnxModel


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class OnnxService:
    def __init__(self) -> None:
        self.model = OnnxModel(os.environ["MODEL_FILE"])

    @bentoml.api(route="/infer")
    def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"outputs": self.model.document(self.model.run(self.model.feed(inputs)))}
