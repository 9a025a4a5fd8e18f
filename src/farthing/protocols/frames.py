"""Streams of frames on the wire: what opens one, what its messages hold, what is said of each frame.

A message is a KServe request, in one of three forms, and so are the answers:

    text      JSON, tensors and all
    binary    length of the JSON (32 bits, little-endian), the JSON, the binary tensors without gaps
              length 0: the one tensor of a model with one input, and nothing else

What became of a frame stands in its answer's parameters, whose names begin with `frame`, over WebSocket and gRPC alike.
Framing and sockets belong to `server.websocket`, tensors to `protocols.kserve`.
"""

from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from farthing.protocols.kserve import WireLimits, decode_infer
from farthing.types.errors import FarthingError, InvalidInput
from farthing.types.frames import DEADLINE_MS_MAX, WAITING_MAX, DropReason, FrameOptions, FramePolicy
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, Parameter, Regions, RequestedOutput, Timing

PREFIX_BYTES: Final = 4
COMMAND_BYTES_MAX: Final = 64
"""A text message no longer than this may be a command; no request is so short."""
SUMMARY, END = "summary", "end"

_encode: Final = msgspec.json.Encoder().encode


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream is opened with."""

    options: FrameOptions
    outputs: tuple[RequestedOutput, ...] = ()
    """For requests that name none."""


class _Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: str


_commands: Final = msgspec.json.Decoder(_Command)


def parse_opening(query: bytes) -> Opening:
    """What stands in the query of a stream's address. Raises `InvalidInput`."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=8)
    except ValueError as wrong:
        raise InvalidInput(
            f"the query cannot be read: {wrong}", hint="such as ?policy=latest&deadline_ms=100"
        ) from None
    said = dict(pairs)
    if len(said) < len(pairs):
        raise InvalidInput("the query says something twice")
    outputs = said.pop("outputs", "")
    options = frame_options(said)
    return Opening(options=options, outputs=tuple(RequestedOutput(name) for name in outputs.split(",") if name))


def frame_options(said: Mapping[str, str]) -> FrameOptions:
    """How frames are to be treated: `policy`, `deadline_ms`, `queue_max`, each optional. Raises `InvalidInput`."""
    policy, deadline_ns, waiting_max = FramePolicy.LATEST, 0, FrameOptions().waiting_max
    for name, value in said.items():
        match name:
            case "policy":
                if value not in {policy.value for policy in FramePolicy}:
                    raise InvalidInput(f"policy: `{value[:32]}` is none; allowed: {', '.join(FramePolicy)}")
                policy = FramePolicy(value)
            case "deadline_ms":
                deadline_ns = round(_number(name, value, DEADLINE_MS_MAX) * 1e6)
            case "queue_max":
                waiting_max = int(_number(name, value, WAITING_MAX))
                if not waiting_max:
                    raise InvalidInput("queue_max: 0 frames may wait; allowed: 1 or more")
            case _:
                raise InvalidInput(
                    f"a stream of frames has no parameter `{name[:32]}`",
                    hint="allowed: policy, deadline_ms, queue_max, outputs",
                )
    return FrameOptions(policy=policy, deadline_ns=deadline_ns, waiting_max=waiting_max)


def command_of(text: bytes) -> str:
    """The command in a text message; empty if it is a request. Raises `InvalidInput` for one that there is not."""
    if len(text) > COMMAND_BYTES_MAX:
        return ""
    try:
        command = _commands.decode(text).command
    except msgspec.DecodeError:
        return ""
    if command not in (SUMMARY, END):
        raise InvalidInput(f"there is no command `{command}`; allowed: {SUMMARY}, {END}")
    return command


def decode_frame(
    data: bytes,
    opening: Opening,
    *,
    is_text: bool,
    model_name: str,
    model_version: str,
    spec: Callable[[], ModelSpec],
    limits: WireLimits,
    regions: Regions | None = None,
) -> InferRequest:
    """The request in a message. Raises as `decode_infer` does, and `InvalidInput` for a prefix that is wrong."""
    body: bytes | memoryview = data
    header_length = None
    if not is_text:
        if len(data) < PREFIX_BYTES:
            raise InvalidInput(
                f"a binary message of {len(data)} bytes; the first {PREFIX_BYTES} are the length of its JSON",
                hint="32 bits, little-endian, then the JSON, then the tensors",
            )
        header_length = int.from_bytes(data[:PREFIX_BYTES], "little")
        body = memoryview(data)[PREFIX_BYTES:]
        if header_length > len(body):
            raise InvalidInput(
                f"the message's JSON should have {header_length} bytes, and {len(body)} follow its length"
            )
    request = decode_infer(
        body,
        model_name=model_name,
        model_version=model_version,
        header_length=header_length,
        spec=spec,
        limits=limits,
        regions=regions,
    )
    if not request.outputs:
        request.outputs = opening.outputs
    return request


def prefixed_json(header_length: int) -> bytes:
    """What a binary message begins with."""
    return header_length.to_bytes(PREFIX_BYTES, "little")


def answered_parameters(number: int, timing: Timing, latency_ns: int, *, is_on_time: bool) -> dict[str, Parameter]:
    """What is said of a frame that ran."""
    return {
        "frame": number,
        "frame_status": "ok",
        "frame_on_time": is_on_time,
        "frame_latency_ms": round(latency_ns / 1e6, 3),
        "frame_queue_ms": round(timing.queue_ns / 1e6, 3),
        "frame_compute_ms": round(timing.compute_ns / 1e6, 3),
    }


def dropped_parameters(number: int, reason: DropReason, latency_ns: int) -> dict[str, Parameter]:
    """What is said of a frame that did not."""
    return {
        "frame": number,
        "frame_status": "dropped",
        "frame_reason": reason.value,
        "frame_latency_ms": round(latency_ns / 1e6, 3),
    }


def failed_parameters(number: int) -> dict[str, Parameter]:
    """What is said of a frame answered with an error."""
    return {"frame": number, "frame_status": "error"}


def dropped_text(spec: ModelSpec, request_id: str, parameters: Mapping[str, Parameter]) -> bytes:
    """The answer to a frame that was dropped: a response without outputs."""
    said = {"model_name": spec.name, "model_version": str(spec.version), "id": request_id}
    return _encode({**said, "parameters": parameters, "outputs": []})


def failed_text(request_id: str, parameters: Mapping[str, Parameter], error: FarthingError) -> bytes:
    """The answer to a frame that failed."""
    return _encode({"id": request_id, "error": str(error), "parameters": parameters})


def summary_text(summary: msgspec.Struct) -> bytes:
    """The answer to the command of that name, and the last message of a stream that ends well."""
    return _encode({"summary": summary})


def summary_parameters(received: int, counts: Mapping[str, float]) -> dict[str, Parameter]:
    """The same, flat, as a response's parameters."""
    return {"frame_status": SUMMARY, "frame_received": received, **{f"frame_{name}": n for name, n in counts.items()}}


def _number(name: str, value: str, high: int) -> float:
    # Decimal digits and at most one point: `float` takes `1e9`, `nan` and `_` too.
    whole, _, fraction = value.partition(".")
    if not (whole.isascii() and whole.isdigit() and len(whole) <= 12 and (not fraction or fraction.isdigit())):
        raise InvalidInput(f"{name}: `{value[:32]}` is not a number from 0 to {high}")
    number = float(value)
    if number > high:
        raise InvalidInput(f"{name}: {value[:32]} is over {high}")
    return number
