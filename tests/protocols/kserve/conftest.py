"""A request and its answer in a line each, for tests of the wire."""

import json
from typing import Any

import numpy as np
import pytest

from farthing.protocols.kserve import WireLimits, decode_infer, encode_infer
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, RequestedOutput, Timing
from farthing.types.tensors import Tensor, TensorSpec, datatype_of


class Wire:
    """Both ends of the protocol, in process."""

    limits = WireLimits(body_bytes_max=1 << 20)

    @staticmethod
    def one(datatype: str, shape: list[Any], **rest: object) -> dict[str, Any]:
        """A request with the one input `x`."""
        return {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, **rest}]}

    @classmethod
    def one_binary(cls, datatype: str, shape: list[Any], size: object) -> dict[str, Any]:
        """A request with the one binary input `x`."""
        return cls.one(datatype, shape, parameters={"binary_data_size": size})

    def decode(self, request: object, *tensors: bytes, spec: ModelSpec | None = None) -> InferRequest:
        """Decodes JSON given as an object or as bytes; with tensors (even with b"") it has a header length."""
        text = request if isinstance(request, bytes) else json.dumps(request).encode()

        def spec_of_model() -> ModelSpec:
            assert spec is not None, "the model may only be asked for raw binary requests"
            return spec

        return decode_infer(
            text + b"".join(tensors),
            model_name="m",
            model_version="",
            header_length=len(text) if tensors else None,
            spec=spec_of_model,
            limits=self.limits,
        )

    def tensor(self, request: object, *tensors: bytes) -> Tensor:
        """The input `x` of a request."""
        return self.decode(request, *tensors).inputs["x"]

    @staticmethod
    def spec_of(outputs: dict[str, Tensor], batch_rows_max: int = 8, labels: tuple[str, ...] = ()) -> ModelSpec:
        """A model that has these outputs."""
        return ModelSpec(
            name="m",
            version=1,
            platform="p",
            inputs=(),
            outputs=tuple(
                TensorSpec(name=name, datatype=datatype_of(tensor), shape=tensor.shape, labels=labels)
                for name, tensor in outputs.items()
            ),
            batch_rows_max=batch_rows_max,
        )

    def encode(
        self,
        outputs: dict[str, Tensor],
        *asked: RequestedOutput,
        spec: ModelSpec | None = None,
        response: dict[str, Any] | None = None,
        **request: Any,
    ) -> tuple[dict[str, Any], bytes, int | None]:
        """The answer with these outputs: its JSON as an object, the bytes after it, the header length."""
        body, header_length = encode_infer(
            InferResponse(
                model_name="m",
                model_version="1",
                outputs=outputs,
                timing=Timing(0, 0, 0, 0, 1, 1),
                **(response or {}),
            ),
            InferRequest(model_name="m", inputs={}, outputs=asked, **request),
            spec or self.spec_of(outputs),
        )
        whole = body if isinstance(body, bytes) else b"".join(body)
        json_bytes = len(whole) if header_length is None else header_length
        return json.loads(whole[:json_bytes]), whole[json_bytes:], header_length

    @staticmethod
    def same(left: Tensor, right: Tensor) -> bool:
        """Equal bit by bit, dtype and shape included."""
        if left.dtype != right.dtype or left.shape != right.shape:
            return False
        if left.dtype.kind == "O":
            return bool(left.tolist() == right.tolist())
        return np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()


@pytest.fixture
def wire() -> Wire:
    return Wire()
