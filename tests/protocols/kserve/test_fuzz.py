"""Whatever comes over the wire ends in a tensor or in an error that is the client's, and nothing else."""

import contextlib
import json
import struct
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from farthing.protocols.kserve import (
    WireLimits,
    decode,
    decode_infer,
    encode_infer,
    parse_header_length,
    parse_index_request,
    parse_load_request,
    parse_unload_request,
)
from farthing.protocols.kserve.bytes_tensor import object_tensor, pack_bytes
from farthing.types.errors import InvalidInput, Unsupported
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, Timing
from farthing.types.tensors import NUMPY_DTYPES, Tensor, TensorSpec, datatype_of

LIMITS = WireLimits(body_bytes_max=1 << 16)
MANY = settings(max_examples=300, deadline=None)

SPEC = ModelSpec(
    name="m",
    version=1,
    platform="p",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
    outputs=(),
    batch_rows_max=4,
)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(list(NUMPY_DTYPES))
)
anything: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
parameters = st.dictionaries(
    st.sampled_from(
        [
            "binary_data_size",
            "binary_data",
            "classification",
            "shared_memory_region",
            "priority",
            "timeout",
            "sequence_id",
            "binary_data_output",
            "triton_x",
            "a",
        ]
    ),
    scalars,
    max_size=3,
)
dimensions = st.integers(0, 4) | st.integers(-1, 1 << 66)
almost_inputs = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y"]) | scalars,
        "datatype": st.sampled_from(list(NUMPY_DTYPES)) | scalars,
        "shape": st.lists(dimensions, max_size=4) | scalars,
        "data": st.lists(scalars, max_size=4) | anything,
        "parameters": parameters | anything,
    },
)
almost_requests = st.fixed_dictionaries(
    {"inputs": st.lists(almost_inputs, max_size=3) | anything},
    optional={
        "id": scalars,
        "parameters": parameters | anything,
        "outputs": st.lists(st.fixed_dictionaries({"name": scalars}, optional={"parameters": parameters}), max_size=3)
        | anything,
    },
)


def decode_or_refuse(body: bytes, header_length: int | None) -> InferRequest | None:
    try:
        return decode_infer(
            body, model_name="m", model_version="", header_length=header_length, spec=lambda: SPEC, limits=LIMITS
        )
    except (InvalidInput, Unsupported) as error:
        if len(str(error)) > 5000:
            raise
        return None


@MANY
@given(body=st.binary(max_size=200), header_length=st.none() | st.integers(0, 200))
@example(body=b"[" * 100_000, header_length=None)
@example(
    body=b'{"inputs":[{"name":"x","shape":[' + b"9" * 5000 + b'],"datatype":"FP32","data":[]}]}', header_length=None
)
@example(
    body=b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[' + b"9" * 5000 + b"]}]}", header_length=None
)
@example(body=b'{"inputs":[],"parameters":{"a":' + b"9" * 5000 + b"}}", header_length=None)
@example(body=b'{"inputs":[],"parameters":{"a":1e999}}', header_length=None)
def test_random_bytes_are_refused(body, header_length) -> None:
    decode_or_refuse(body, None if header_length is None else min(header_length, len(body)))


@MANY
@given(request_=almost_requests, tail=st.none() | st.binary(max_size=24))
def test_almost_right_requests_are_answered_or_refused(request_, tail) -> None:
    text = json.dumps(request_).encode()
    request = decode_or_refuse(text + (tail or b""), None if tail is None else len(text))
    if request is not None:
        for tensor in request.inputs.values():
            assert tensor.flags.c_contiguous
            assert tensor.dtype in NUMPY_DTYPES.values()


HEADER = b'{"id":"abc","inputs":[{"name":"x","shape":[1],"datatype":"INT8","parameters":{"binary_data_size":1}}]}'
PIECES = [
    b'"',
    b"\\",
    b'"id":"z",',
    b'{"id":"',
    b'","',
    b"{",
    b"}",
    b"\n",
    b"\xff",
    b"\\u0041",
    b" ",
    b"1",
    b'"\\u0069d":"y",',
    b"",
]
changes = st.lists(st.tuples(st.integers(0, len(HEADER)), st.integers(0, 12), st.sampled_from(PIECES)), max_size=2)


def outcome(header: bytes) -> tuple[str, str]:
    try:
        request = decode_infer(
            header + b"7", model_name="m", model_version="", header_length=len(header), spec=lambda: SPEC, limits=LIMITS
        )
    except (InvalidInput, Unsupported) as error:
        return "refused", str(error)
    return request.id, str(request.inputs)


@MANY
@given(requests=st.lists(changes, min_size=1, max_size=4))
def test_what_is_kept_of_a_header_never_changes_an_answer(requests) -> None:
    outcome(HEADER)
    for request in requests:
        header = HEADER
        for start, length, piece in request:
            header = header[:start] + piece + header[start + length :]
        if not header:
            continue
        warm = outcome(header)
        for memo in (decode._plans, decode._plans_after_id):
            memo.clear()
        assert outcome(header) == warm
        outcome(HEADER)


@MANY
@given(
    datatype=st.sampled_from(list(NUMPY_DTYPES)),
    shape=st.lists(st.integers(0, 3), max_size=3),
    size=st.integers(0, 30),
    data=st.binary(max_size=30),
)
def test_random_binary_tensors_are_read_or_refused(datatype, shape, size, data) -> None:
    text = json.dumps(
        {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}]}
    ).encode()
    request = decode_or_refuse(text + data, len(text))
    if request is not None:
        assert request.inputs["x"].shape == tuple(shape)


@MANY
@given(value=st.binary(max_size=12) | st.text(max_size=12), body_bytes=st.integers(0, 1000))
def test_random_header_lengths_are_within_the_body_or_refused(value, body_bytes) -> None:
    with contextlib.suppress(InvalidInput):
        assert 0 <= parse_header_length(value, body_bytes) <= body_bytes


@MANY
@given(
    body=st.binary(max_size=60)
    | anything.map(lambda value: json.dumps(value).encode())
    | parameters.map(lambda value: json.dumps({"parameters": value}).encode())
)
@example(body=b"[" * 250_000)
@example(body=b'{"ready":' + b"[" * 250_000 + b"]" * 250_000 + b"}")
@example(body=b'{"parameters":' + b"[" * 250_000)
@example(body=json.dumps({"parameters": {"config": "[" * 250_000}}).encode())
@example(body=json.dumps({"parameters": {"config": '{"a":' * 250_000}}).encode())
@example(body=b'{"parameters":{"config":"\\ud800"}}')
def test_random_repository_requests_are_read_or_refused(body) -> None:
    for parse in (parse_index_request, parse_load_request, parse_unload_request):
        with contextlib.suppress(InvalidInput):
            parse(body)


def tensors(datatypes: list[str]) -> st.SearchStrategy[Tensor]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)

    def of(datatype: str) -> st.SearchStrategy[Tensor]:
        if datatype == "BYTES":
            elements = st.binary(max_size=6)
            return shapes.flatmap(
                lambda shape: st.lists(elements, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
                    lambda values: object_tensor(values, shape)
                )
            )
        if datatype == "BF16":
            return hnp.arrays(np.uint16, shapes).map(lambda bits: bits.view(NUMPY_DTYPES["BF16"]))
        return hnp.arrays(NUMPY_DTYPES[datatype], shapes)

    return st.sampled_from(datatypes).flatmap(of)


def answered(tensor: Tensor, *, is_binary: bool) -> tuple[bytes, int | None]:
    response = InferResponse(model_name="m", model_version="1", outputs={"x": tensor}, timing=Timing(0, 0, 0, 0, 1, 1))
    body, header_length = encode_infer(response, InferRequest(model_name="m", inputs={}, binary_output=is_binary), SPEC)
    return body if isinstance(body, bytes) else b"".join(body), header_length


def asked_again(body: bytes, header_length: int | None) -> Tensor:
    """The tensor after sending an answer's outputs back as inputs: the two have one form."""
    end = len(body) if header_length is None else header_length
    text = body[:end].replace(b'"outputs":', b'"inputs":', 1)
    whole = text + body[end:]
    request = decode_or_refuse(whole, None if header_length is None else len(text))
    assert request is not None
    return request.inputs["x"]


def assert_same(found: Tensor, tensor: Tensor, *, is_exact: bool) -> None:
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    if is_exact and tensor.dtype.kind != "O":
        assert found.tobytes() == tensor.tobytes()
    elif tensor.dtype.kind == "f":
        np.testing.assert_array_equal(found, tensor)  # NaN is NaN, whichever bits it had
    else:
        assert found.tolist() == tensor.tolist()


@MANY
@given(tensor=tensors(list(NUMPY_DTYPES)))
def test_every_tensor_survives_the_binary_form_bit_by_bit(tensor) -> None:
    assert_same(asked_again(*answered(tensor, is_binary=True)), tensor, is_exact=True)


@MANY
@given(tensor=tensors([name for name in NUMPY_DTYPES if name not in ("FP16", "BF16", "BYTES")]))
def test_every_tensor_survives_json(tensor) -> None:
    assert_same(asked_again(*answered(tensor, is_binary=False)), tensor, is_exact=False)


@MANY
@given(words=st.lists(st.text(max_size=6), min_size=1, max_size=6))
def test_every_text_survives_json(words) -> None:
    tensor = object_tensor([word.encode() for word in words], (len(words),))
    assert_same(asked_again(*answered(tensor, is_binary=False)), tensor, is_exact=True)


@MANY
@given(values=st.lists(st.binary(max_size=300), max_size=8))
def test_strings_are_packed_as_length_and_bytes(values) -> None:
    expected = b"".join(struct.pack("<I", len(value)) + value for value in values)
    assert pack_bytes(object_tensor(values, (len(values),)), "x") == expected


def test_round_trips_cover_every_datatype() -> None:
    assert {datatype_of(np.empty(0, dtype)) for dtype in NUMPY_DTYPES.values()} == set(NUMPY_DTYPES)
