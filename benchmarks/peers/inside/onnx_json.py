"""For servers with no schema of their own: a KServe v2 JSON document in, one out, through onnxruntime, unchecked."""

import numpy as np
import onnxruntime

DTYPES = {"FP32": np.float32, "INT64": np.int64}
NAMES = {"float32": "FP32", "int64": "INT64"}


class OnnxModel:
    def __init__(self, file):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.outputs = [o.name for o in self.session.get_outputs()]

    def feed(self, inputs):
        """The document's `inputs` as arrays."""
        return {t["name"]: np.array(t["data"], DTYPES[t["datatype"]]).reshape(t["shape"]) for t in inputs}

    def run(self, feed):
        return self.session.run(self.outputs, feed)

    def run_many(self, feeds):
        """One run for several requests' rows; each gets its own back."""
        if len(feeds) == 1:
            return [self.run(feeds[0])]
        results = self.run({name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]})
        ends = np.cumsum([len(next(iter(f.values()))) for f in feeds])[:-1]
        return list(zip(*(np.split(result, ends) for result in results), strict=True))

    def document(self, results):
        """The arrays as a document's `outputs`."""
        return [
            {"name": n, "datatype": NAMES[r.dtype.name], "shape": list(r.shape), "data": r.ravel().tolist()}
            for n, r in zip(self.outputs, results, strict=True)
        ]
