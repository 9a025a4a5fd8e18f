"""From what should be asked to what goes over the wire: the chains of messages of a load, mixes of models too."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from farthing.bench.endpoint import Endpoint, Measurable
from farthing.bench.grpc_call import SERVICE_PATH
from farthing.bench.in_process import InProcess
from farthing.bench.inputs import Inputs
from farthing.bench.load import Message, Work
from farthing.bench.prompts import Turn
from farthing.bench.wire import grpc_message, http_message
from farthing.client.client import HEADER_LENGTH
from farthing.client.tensors import encode_request
from farthing.protocols.kserve_grpc.messages import message_class
from farthing.types.errors import InvalidInput
from farthing.types.requests import InferRequest
from farthing.types.tensors import DATATYPES

MIX_PERIOD = 4_096
"""Requests after which the order of a mix of models repeats."""


def infer_work(
    endpoint: Measurable, models: Mapping[str, Sequence[Inputs]], weights: Mapping[str, float], *, is_json: bool
) -> Work:
    """Inference requests of one model or a mix; each model's requests are sent in turn, models drawn by weight."""
    chains: list[list[Message]] = []
    first: dict[str, int] = {}
    for model, requests in models.items():
        first[model] = len(chains)
        chains += [[_infer(endpoint, model, inputs, is_json=is_json)] for inputs in requests]
    if len(models) == 1:
        order = list(range(len(chains)))
    else:
        names = list(models)
        shares = np.array([weights[name] for name in names])
        drawn = np.random.default_rng(0).choice(len(names), MIX_PERIOD, p=shares / shares.sum())
        order = [first[names[which]] + n % len(models[names[which]]) for n, which in enumerate(drawn)]
    wire = "process" if isinstance(endpoint, InProcess) else "grpc" if endpoint.kind == "grpc" else "http"
    return Work(wire=wire, chains=chains, order=order)


def frame_work(requests: Sequence[Inputs]) -> Work:
    """Frames as they go over a stream of them, in turn."""
    from farthing.client.frames import frame_bytes

    return Work(
        wire="frames", chains=[[Message(data=frame_bytes(inputs))] for inputs in requests], order=range(len(requests))
    )


def _infer(endpoint: Measurable, model: str, inputs: Inputs, *, is_json: bool) -> Message:
    if isinstance(endpoint, InProcess):
        return Message(data=b"", request=InferRequest(model_name=model, inputs=dict(inputs)))
    if endpoint.kind == "grpc":
        message = message_class("ModelInferRequest")(model_name=model)
        for name, tensor in inputs.items():
            datatype = "BYTES" if tensor.dtype.kind in "SUO" else DATATYPES[tensor.dtype]
            message.inputs.add(name=name, datatype=datatype, shape=list(tensor.shape))
            message.raw_input_contents.append(_raw(tensor))
        return grpc_message(SERVICE_PATH + "ModelInfer", endpoint.netloc, endpoint.headers, message.SerializeToString())
    body, json_bytes = encode_request(inputs, (), {}, "", is_binary=not is_json)
    headers = {"Content-Type": "application/json"}
    if json_bytes is not None:
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(json_bytes)}
    path = f"{endpoint.prefix}/v2/models/{quote(model, safe='')}/infer"
    return http_message("POST", path, endpoint.netloc, {**headers, **endpoint.headers}, body)


def _raw(tensor: Any) -> bytes:
    if tensor.dtype.kind not in "SUO":
        return bytes(tensor.tobytes())
    elements = [one.encode() if isinstance(one, str) else bytes(one) for one in tensor.reshape(-1).tolist()]
    return b"".join(len(one).to_bytes(4, "little") + one for one in elements)


def chat_work(endpoint: Endpoint, model: str, chains: Sequence[Sequence[Turn]], extra: Mapping[str, Any]) -> Work:
    """Streamed chat completions. `extra` are fields of the API; answers are held to their length by `ignore_eos` and
    `min_tokens` where the caller puts them there.
    """
    if not chains:
        raise InvalidInput("there is nothing to ask")
    path = f"{endpoint.prefix}/v1/chat/completions"
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **endpoint.headers}
    rendered = []
    for chain in chains:
        messages = []
        for turn in chain:
            body = {
                "model": model,
                "messages": [{"role": role, "content": text} for role, text in turn.messages],
                "max_tokens": turn.output_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
                **extra,
            }
            encoded = json.dumps(body, separators=(",", ":")).encode()
            messages.append(http_message("POST", path, endpoint.netloc, headers, encoded))
        rendered.append(messages)
    return Work(wire="stream", chains=rendered, order=range(len(rendered)))
