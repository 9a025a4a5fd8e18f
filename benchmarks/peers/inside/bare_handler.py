"""The least that answers a KServe v2 request rightly: JSON or binary in and out, no check of anything."""

import numpy as np
import onnxruntime
import orjson

DTYPES = {"FP32": np.float32, "INT64": np.int64}
NAMES = {"float32": "FP32", "int64": "INT64"}


class Handler:
    def __init__(self, file):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.outputs = [o.name for o in self.session.get_outputs()]

    def infer(self, body, head_length):
        """The answer's bytes, and the length of its JSON head if it is binary (else 0)."""
        document = orjson.loads(body[:head_length] if head_length else body)
        feed, at = {}, head_length
        for tensor in document["inputs"]:
            dtype = DTYPES[tensor["datatype"]]
            if head_length:
                size = tensor["parameters"]["binary_data_size"]
                array, at = np.frombuffer(body[at : at + size], dtype), at + size
            else:
                array = np.array(tensor["data"], dtype)
            feed[tensor["name"]] = array.reshape(tensor["shape"])
        results = self.session.run(self.outputs, feed)
        outputs = [
            {"name": name, "datatype": NAMES[result.dtype.name], "shape": result.shape}
            | ({"parameters": {"binary_data_size": result.nbytes}} if head_length else {"data": result.ravel()})
            for name, result in zip(self.outputs, results, strict=True)
        ]
        head = orjson.dumps({"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
        if not head_length:
            return head, 0
        return head + b"".join(result.tobytes() for result in results), len(head)
