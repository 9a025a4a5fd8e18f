"""A request message in a line, for tests of the gRPC wire."""

from collections.abc import Callable
from typing import Any

import pytest

from farthing.protocols.kserve import WireLimits
from farthing.protocols.kserve_grpc import decode_infer, message_class
from farthing.types.requests import InferRequest
from farthing.types.tensors import Tensor


class GrpcWire:
    """Builds `ModelInferRequest`s and decodes them."""

    limits = WireLimits(body_bytes_max=1 << 20)

    def message(self, **fields: Any) -> Any:
        return message_class("ModelInferRequest")(model_name="m", **fields)

    def one(self, datatype: str, shape: list[int], raw: bytes | None = None, **contents: Any) -> Any:
        """A request with the one input `x`, raw or typed."""
        message = self.message()
        item = message.inputs.add(name="x", datatype=datatype, shape=shape)
        for field, values in contents.items():
            getattr(item.contents, field).extend(values)
        if raw is not None:
            message.raw_input_contents.append(raw)
        return message

    def decode(self, message: Any) -> InferRequest:
        return decode_infer(message, self.limits)

    def tensor(self, datatype: str, shape: list[int], raw: bytes | None = None, **contents: Any) -> Tensor:
        """The input `x` of a request."""
        return self.decode(self.one(datatype, shape, raw, **contents)).inputs["x"]


@pytest.fixture
def grpc_wire() -> GrpcWire:
    return GrpcWire()


@pytest.fixture
def with_parameter(grpc_wire: GrpcWire) -> Callable[..., Any]:
    """A valid request with one request parameter."""

    def build(name: str, **choice: Any) -> Any:
        message = grpc_wire.one("INT8", [1], b"\1")
        message.parameters[name].SetInParent()
        for field, value in choice.items():
            setattr(message.parameters[name], field, value)
        return message

    return build
