"""Two different requests never share a key, equal ones always do."""

import copy
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from farthing.runtime.cache_key import cache_key, request_size
from farthing.telemetry.traces import begin_trace
from farthing.types.requests import InferRequest, RequestedOutput
from farthing.types.tensors import NUMPY_DTYPES, datatype_of
from farthing.types.trace import Trace

OF = ("m", "1", 7, ())

names = st.sampled_from(["a", "b", "ab", ""])
texts = st.binary(max_size=3)


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    """Few bytes in many shapes, so that whatever is not framed collides soon."""
    shape = tuple(draw(st.lists(st.integers(0, 2), max_size=2)))
    datatype = draw(st.sampled_from(list(NUMPY_DTYPES)))
    size = int(np.prod(shape, dtype=int))
    if datatype == "BYTES":
        made = np.empty(size, object)
        made[:] = draw(st.lists(texts, min_size=size, max_size=size))
        return made.reshape(shape)
    raw = draw(st.binary(min_size=size * NUMPY_DTYPES[datatype].itemsize, max_size=size * 8))
    return np.frombuffer(raw, NUMPY_DTYPES[datatype], size).reshape(shape)


requests = st.builds(
    InferRequest,
    model_name=st.just("m"),
    inputs=st.dictionaries(names, tensors(), max_size=3),
    outputs=st.lists(st.builds(RequestedOutput, names), max_size=2).map(tuple),
    parameters=st.dictionaries(names, st.one_of(st.booleans(), st.integers(0, 1), st.sampled_from([0.0, 1.0, "1"]))),
    tenant=st.sampled_from(["", "t"]),
)


def told(request: InferRequest) -> Any:
    """Everything an answer may depend on, as values that compare."""
    return (
        request.tenant,
        sorted({asked.name for asked in request.outputs}),
        sorted((name, type(value).__name__, value) for name, value in request.parameters.items()),
        sorted(
            (name, datatype_of(t), t.shape, t.reshape(-1).tolist() if t.dtype == object else t.tobytes())
            for name, t in request.inputs.items()
        ),
    )


@given(requests, requests)
def test_requests_share_a_key_only_if_they_are_equal(one: InferRequest, other: InferRequest) -> None:
    assert (cache_key(one, OF) == cache_key(other, OF)) == (told(one) == told(other))


@given(requests)
def test_an_equal_request_has_the_same_key_however_its_parts_are_ordered(request: InferRequest) -> None:
    twin = copy.deepcopy(request)
    twin.inputs = dict(reversed(twin.inputs.items()))
    twin.parameters = dict(reversed(twin.parameters.items()))
    twin.outputs = twin.outputs[::-1]
    twin.id, twin.priority, twin.timeout_us, twin.trace = "7", 3, 4, Trace(begin_trace(is_sampled=True))
    assert cache_key(request, OF) == cache_key(twin, OF)


def of_texts(*elements: bytes) -> InferRequest:
    made = np.empty(len(elements), object)
    made[:] = elements
    return InferRequest(model_name="m", inputs={"x": made})


@given(st.lists(texts, min_size=1, max_size=4), st.lists(texts, min_size=1, max_size=4))
def test_texts_are_told_apart_wherever_one_ends_and_the_next_begins(one: list[bytes], other: list[bytes]) -> None:
    assert (cache_key(of_texts(*one), OF) == cache_key(of_texts(*other), OF)) == (one == other)


def test_a_byte_cannot_move_from_one_input_to_the_next() -> None:
    def request(*sizes: int) -> InferRequest:
        return InferRequest(
            model_name="m", inputs={name: np.zeros(n, np.uint8) for name, n in zip("ab", sizes, strict=True)}
        )

    assert len({cache_key(request(*sizes), OF) for sizes in ((0, 3), (1, 2), (2, 1), (3, 0))}) == 4


def test_model_version_and_load_are_part_of_the_key() -> None:
    request = of_texts(b"x")
    others = [("n", "1", 7, ()), ("m", "2", 7, ()), ("m", "1", 8, ()), ("m", "1", 7, (OF,))]
    assert len({cache_key(request, of) for of in (OF, *others)}) == 5


def test_a_tensor_that_is_a_view_has_the_key_of_its_values() -> None:
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (whole[:, ::2], whole.T, whole[1:]):
        ask = InferRequest(model_name="m", inputs={"x": view})
        own = InferRequest(model_name="m", inputs={"x": np.ascontiguousarray(view)})
        assert cache_key(ask, OF) == cache_key(own, OF)


def test_the_size_counts_the_bytes_of_texts() -> None:
    assert request_size({"x": np.array([b"ab", b"c"], object), "y": np.zeros(3, np.int16)}) == 9
