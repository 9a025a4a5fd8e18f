"""Runs KServe's model server with one onnxruntime predictor."""

import os

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

NAMES = {"float32": "FP32", "int64": "INT64"}


class OnnxModel(Model):
    def __init__(self, name: str, file: str) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        results = self.session.run(self.outputs, {i.name: i.as_numpy() for i in payload.inputs})
        outputs = []
        for name, result in zip(self.outputs, results, strict=True):
            output = InferOutput(name=name, shape=list(result.shape), datatype=NAMES[result.dtype.name])
            output.set_data_from_numpy(result, binary_data=bool(payload.use_binary_outputs))
            outputs.append(output)
        return InferResponse(response_id=payload.id or "", model_name=self.name, infer_outputs=outputs)


if __name__ == "__main__":
    server = ModelServer(access_log_format=None)
    server.start([OnnxModel(os.environ["MODEL_NAME"], os.environ["MODEL_FILE"])])
