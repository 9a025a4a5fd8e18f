"""Runs in Triton's python back end: all waiting requests' rows go through onnxruntime in one run."""

import json

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            config["parameters"]["file"]["string_value"], options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def execute(self, requests):
        rows = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        if len(rows) == 1:
            return [self._response(self.session.run(self.outputs, rows[0]), slice(None))]
        feed = {name: np.concatenate([row[name] for row in rows]) for name in self.inputs}
        results = self.session.run(self.outputs, feed)
        responses, at = [], 0
        for row in rows:
            n = len(row[self.inputs[0]])
            responses.append(self._response(results, slice(at, at + n)))
            at += n
        return responses

    def _response(self, results, rows):
        tensors = [pb_utils.Tensor(name, result[rows]) for name, result in zip(self.outputs, results, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)
