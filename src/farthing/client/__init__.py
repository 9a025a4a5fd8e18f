"""A small client for any server of the Open Inference Protocol (KServe v2) over HTTP, and for OpenAI's chats.

    with Client("http://127.0.0.1:8000") as client:
        outputs = client.infer("minilm-l6", {"input_ids": ids, "attention_mask": mask})
        outputs["embedding"], outputs.timing
        for piece in client.chat("smollm2-135m", [{"role": "user", "content": "hello"}]):
            piece.text

`client` knows the endpoints, `chat` reads streams, `connection` keeps sockets open, `tensors` turns arrays into bytes
and back, `failure` answers into errors.
"""

from farthing.client.client import Client
from farthing.client.result import InferResult, TimingEntry

__all__ = ["Client", "InferResult", "TimingEntry"]
