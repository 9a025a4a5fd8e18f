"""What most people write: a FastAPI handler that runs the model on each request as it comes. FILE PORT.

ONNX Runtime with its default settings (LightGBM with its own, for a file of trees), no batching. KServe v2 binary
tensors in and out, read by a few lines that check nothing, on uvloop and httptools: as cheap as such a server gets.
"""

import sys

import numpy as np
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
HEAD = "inference-header-content-length"


def runner(file):
    """Input arrays by name -> output arrays by name."""
    if file.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(file)
        outputs = [output.name for output in session.get_outputs()]
        return lambda feed: dict(zip(outputs, session.run(outputs, feed), strict=True))
    import lightgbm

    booster = lightgbm.Booster(model_file=file)
    return lambda feed: {"output__0": booster.predict(next(iter(feed.values()))).astype(np.float32)[:, None]}


app = FastAPI()
run = runner(sys.argv[1])


@app.get("/v2/health/ready")
async def ready():
    return {}


@app.post("/v2/models/{model}/infer")
async def infer(model: str, request: Request):
    body = await request.body()
    at = int(request.headers[HEAD])
    feed = {}
    for tensor in orjson.loads(body[:at])["inputs"]:
        size = tensor["parameters"]["binary_data_size"]
        feed[tensor["name"]] = np.frombuffer(
            body, DTYPES[tensor["datatype"]], size // np.dtype(DTYPES[tensor["datatype"]]).itemsize, at
        ).reshape(tensor["shape"])
        at += size
    answers = run(feed)
    outputs = [
        {
            "name": name,
            "datatype": NAMES[array.dtype],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in answers.items()
    ]
    head = orjson.dumps({"outputs": outputs})
    return Response(
        head + b"".join(array.tobytes() for array in answers.values()),
        media_type="application/octet-stream",
        headers={HEAD: str(len(head))},
    )


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
