"""Flat JSON objects to requests of tensors, and answers back."""

import json
import re
from contextlib import suppress
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.protocols.kserve import WireLimits
from farthing.protocols.kserve.generate_tensors import generate_answer, generate_request, parse_members, shape_of
from farthing.types.errors import InvalidInput
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, Timing
from farthing.types.tensors import NUMPY_DTYPES, TensorSpec

LIMITS = WireLimits(body_bytes_max=1 << 20)


def model(**inputs: tuple[str, tuple[int, ...]]) -> ModelSpec:
    specs = tuple(TensorSpec(name=name, datatype=kind, shape=shape) for name, (kind, shape) in inputs.items())
    return ModelSpec(name="m", version=1, platform="p", inputs=specs, outputs=(), batch_rows_max=0)


SPEC = model(n=("INT32", (1,)), x=("FP32", (-1, 2)), word=("BYTES", (1,)), flag=("BOOL", (-1,)))


def read(text: str | bytes, spec: ModelSpec = SPEC) -> InferRequest:
    body = text if isinstance(text, bytes) else text.encode()
    return generate_request(parse_members(body), spec, model_version="", limits=LIMITS)


def written(**outputs: Any) -> Any:
    response = InferResponse(
        model_name="m", model_version="1", id="a", outputs=outputs, timing=Timing(0, 0, 0, 0, 1, 1)
    )
    return json.loads(generate_answer(response))


def test_members_that_name_inputs_are_tensors_and_all_others_parameters() -> None:
    request = read(
        '{"n": 3, "x": [1, 2.5, 3, 4], "word": "café", "flag": [true, false], "id": "a", "k": 1, "timeout": 5,'
        ' "parameters": {"seed": "s", "hot": true, "priority": 2}}'
    )
    assert {name: tensor.tolist() for name, tensor in request.inputs.items()} == {
        "n": [3],
        "x": [[1, 2.5], [3, 4]],
        "word": ["café".encode()],
        "flag": [True, False],
    }
    assert request.inputs["x"].dtype == np.float32
    assert (request.id, request.timeout_us, request.priority) == ("a", 5, 2)
    assert request.parameters == {"k": 1, "seed": "s", "hot": True}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "failed to parse the request JSON buffer"),
        ("[1]", "expected an object, got an array"),
        ('{"n": 1, "n": 2}', "key `n` already exists in request"),
        ('{"parameters": {"a": 1, "a": 2}}', "key `a` already exists in request"),
        ('{"a": 1, "parameters": {"a": 2}}', "stands in the object and in `parameters`"),
        ('{"parameters": [1]}', "`parameters`: expected an object, got an array"),
        ('{"n": null}', "`n` is null; expected a string, number or boolean, or a flat list"),
        ('{"n": {"a": 1}}', "`n` is an object"),
        ('{"n": [[1]]}', "`n`: an element is an array"),
        ('{"k": null}', "`k` is null; a parameter is a string, number or boolean"),
        ('{"k": [1]}', "`k` is an array; a parameter"),
        ('{"n": [1, 2]}', "`n`: 2 elements do not fill shape [1]"),
        ('{"n": []}', "`n`: 0 elements do not fill shape [1]"),
        ('{"x": [1, 2, 3]}', "`x`: 3 elements do not fill shape [-1, 2]"),
        ('{"n": 1.5}', "`n`: Expected `int`, got `float`"),
        ('{"n": "1"}', "`n`: Expected `int`, got `str`"),
        ('{"n": 3000000000}', "`n`: element 0 is 3000000000; INT32 holds"),
        ('{"word": 1}', "`word`: Expected `str`, got `int`"),
        ('{"id": 1}', "`id`: expected a string"),
        ('{"triton_x": 1}', "this name is reserved"),
        ('{"word": "\\ud800"}', "half a surrogate pair"),
        (b'{"word": "\xff"}', "not UTF-8"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"k": ' + "9" * 5000 + "}", "failed to parse"),
    ],
)
def test_what_is_wrong_is_said_by_name(text: str | bytes, told: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(told)):
        read(text)


def test_an_input_called_parameters_cannot_be_given_here() -> None:
    with pytest.raises(InvalidInput, match="model `m` has an input `parameters`"):
        read('{"parameters": {}}', model(parameters=("INT32", (1,))))


def test_what_json_cannot_say_is_refused_by_the_input_s_name() -> None:
    with pytest.raises(InvalidInput, match="`h`: FP16 cannot be written in JSON"):
        read('{"h": 1.0}', model(h=("FP16", (1,))))


@pytest.mark.parametrize(
    ("elements", "shape", "expected"),
    [
        (1, (), ()),
        (1, (-1, 1), (1, 1)),
        (3, (-1, 1), (3, 1)),
        (6, (-1, -1, 2), (1, 3, 2)),
        (4, (2, -1), (2, 2)),
        (0, (-1, 2), (0, 2)),
        (0, (0,), (0,)),
        (0, (0, -1), (0, 0)),
    ],
)
def test_the_innermost_free_dimension_takes_what_is_left(
    elements: int, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert shape_of(elements, TensorSpec(name="x", datatype="FP32", shape=shape)) == expected


@given(st.integers(0, 200), st.lists(st.integers(-1, 5), max_size=5))
def test_a_derived_shape_holds_its_elements_and_fits(elements: int, dimensions: list[int]) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=tuple(dimensions))
    try:
        shape = shape_of(elements, spec)
    except InvalidInput:
        fixed = prod(d for d in dimensions if d >= 0)
        assert elements % fixed if fixed and -1 in dimensions else elements != fixed
        return
    assert prod(shape) == elements
    assert all(want in (-1, found) for want, found in zip(dimensions, shape, strict=True))


def test_outputs_stand_under_their_names_and_one_element_by_itself() -> None:
    said = written(
        one=np.array([[7]], np.int32),
        many=np.array([[1, 2], [3, 4]], np.float32),
        none=np.empty((0,), np.int64),
        word=np.array([b"hi"], object),
        half=np.array([1.5], np.float16),
        brain=np.array([1.5, 2], ml_dtypes.bfloat16),
        flag=np.array([True]),
    )
    assert said == {
        "id": "a",
        "model_name": "m",
        "model_version": "1",
        "one": 7,
        "many": [1, 2, 3, 4],
        "none": [],
        "word": "hi",
        "half": 1.5,
        "brain": [1.5, 2],
        "flag": True,
    }


def test_a_text_that_is_none_cannot_be_answered_with() -> None:
    with pytest.raises(InvalidInput, match="not UTF-8"):
        written(word=np.array([b"\xff"], object))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("aé\0\u2028", max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["n", "x", "word", "flag", "id", "k", "parameters", "timeout"]), ANYTHING))
def test_any_object_is_a_request_that_fits_or_an_error_that_says_so(said: dict[str, Any]) -> None:
    try:
        request = read(json.dumps(said))
    except InvalidInput:
        return
    specs = {spec.name: spec for spec in SPEC.inputs}
    for name, tensor in request.inputs.items():
        assert tensor.dtype == NUMPY_DTYPES[specs[name].datatype]
        assert name in said


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0dnx1. ', max_size=60).map(str.encode))
def test_any_bytes_are_a_request_or_an_error(body: bytes) -> None:
    with suppress(InvalidInput):
        read(body)


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.lists(st.floats(width=32, allow_nan=False), max_size=6).filter(lambda v: len(v) % 2 == 0),
)
def test_what_was_said_comes_back(n: int, x: list[float]) -> None:
    request = read(json.dumps({"n": n, "x": x}))
    said = written(**request.inputs)
    assert said["n"] == n
    assert np.array(said["x"], np.float32).tolist() == x
