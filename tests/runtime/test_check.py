"""Does a request fit the model? Each rule of the protocol checklist (V12 to V19, V26, V27) by its number."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.batching.queue import FIXED_SHAPES, SIGNATURE_ALONE
from farthing.runtime.check import RequestCheck
from farthing.types.errors import InvalidInput, Unsupported
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, RequestedOutput
from farthing.types.tensors import NUMPY_DTYPES, TensorSpec


def spec(*inputs: tuple[str, str, tuple[int, ...]], rows_max: int = 8, optional: tuple[str, ...] = ()) -> ModelSpec:
    return ModelSpec(
        name="net",
        version=1,
        platform="p",
        inputs=tuple(
            TensorSpec(name=name, datatype=datatype, shape=shape, is_optional=name in optional)
            for name, datatype, shape in inputs
        ),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
        batch_rows_max=rows_max,
    )


FIXED = spec(("a", "FP32", (-1, 4)), ("b", "INT64", (-1,)))
FREE = spec(("a", "FP32", (-1, -1)), ("b", "INT64", (-1,)))
UNBATCHED = spec(("a", "FP32", (-1, 4)), rows_max=0)
OPTIONAL = spec(("a", "FP32", (-1, 4)), ("b", "INT64", (-1,)), ("c", "INT64", (-1,)), optional=("b", "c"))


def check(model: ModelSpec, *, outputs: tuple[str, ...] = (), **inputs: Any) -> tuple[int, Any]:
    request = InferRequest(model_name="net", inputs=inputs, outputs=tuple(RequestedOutput(name) for name in outputs))
    return RequestCheck(model)(request)


def a(rows: int = 1, columns: int = 4, dtype: str = "FP32") -> Any:
    return np.zeros((rows, columns), NUMPY_DTYPES[dtype])


def b(rows: int = 1) -> Any:
    return np.zeros(rows, np.int64)


def test_a_request_that_fits_is_told_its_rows_and_who_it_may_ride_with() -> None:
    assert check(FIXED, a=a(3), b=b(3)) == (3, FIXED_SHAPES)
    assert check(FREE, a=a(3, 5), b=b(3)) == (3, (("a", (5,)), ("b", ())))


def test_requests_ride_together_only_if_their_rows_have_one_shape() -> None:
    assert check(FREE, a=a(1, 5), b=b())[1] == check(FREE, a=a(2, 5), b=b(2))[1]
    assert check(FREE, a=a(1, 5), b=b())[1] != check(FREE, a=a(1, 6), b=b())[1]


@pytest.mark.parametrize("model", [FIXED, FREE])
def test_v12_the_number_of_inputs_is_wrong(model: ModelSpec) -> None:
    with pytest.raises(InvalidInput, match="expected 2 inputs but got 1 inputs for model 'net'; missing: b"):
        check(model, a=a())


@pytest.mark.parametrize("model", [FIXED, FREE])
def test_v13_an_input_is_unknown(model: ModelSpec) -> None:
    with pytest.raises(InvalidInput, match="unexpected inference input 'c' for model 'net'") as refused:
        check(model, a=a(), c=b())
    assert refused.value.hint == "inputs of this model: a, b"


def test_v14_an_output_is_unknown() -> None:
    with pytest.raises(InvalidInput, match="unexpected inference output 'z' for model 'net'") as refused:
        check(FIXED, a=a(), b=b(), outputs=("y", "z"))
    assert refused.value.hint == "outputs of this model: y"


@pytest.mark.parametrize("model", [FIXED, FREE])
def test_v16_a_datatype_is_not_the_model_s(model: ModelSpec) -> None:
    with pytest.raises(InvalidInput, match="'a' data-type is 'FP64', but model 'net' expects 'FP32'"):
        check(model, a=a(dtype="FP64"), b=b())


def test_v16_a_dtype_the_protocol_lacks_is_named_as_numpy_does() -> None:
    with pytest.raises(InvalidInput, match="data-type is 'complex64'"):
        check(FIXED, a=np.zeros((1, 4), np.complex64), b=b())


@pytest.mark.parametrize("shape", [(1, 5), (4,), (1, 1, 4), ()])
def test_v17_a_shape_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"unexpected shape for input 'a' for model 'net'. Expected \[-1,4\], got"):
        check(FIXED, a=np.zeros(shape, np.float32), b=b())


@pytest.mark.parametrize("model", [FIXED, FREE])
def test_v18_inputs_have_different_numbers_of_rows(model: ModelSpec) -> None:
    with pytest.raises(InvalidInput, match="input 'b' batch size does not match other inputs for 'net': 3 rows, but"):
        check(model, a=a(2), b=b(3))
    with pytest.raises(InvalidInput, match="batch size does not match"):
        check(model, a=a(0), b=b(1))


@pytest.mark.parametrize("model", [FIXED, FREE])
def test_v19_a_request_brings_more_rows_than_the_model_takes(model: ModelSpec) -> None:
    assert check(model, a=a(8), b=b(8))[0] == 8
    with pytest.raises(InvalidInput, match="batch-size must be <= 8 for 'net', got 9"):
        check(model, a=a(9), b=b(9))


def test_v26_a_decoupled_model_is_not_for_infer() -> None:
    with pytest.raises(Unsupported, match="doesn't support models with decoupled transaction policy"):
        RequestCheck(FIXED, is_decoupled=True)(InferRequest(model_name="net", inputs={"a": a(), "b": b()}))


def test_v27_an_optional_input_may_be_missing() -> None:
    assert check(OPTIONAL, a=a(2))[0] == 2
    assert check(OPTIONAL, a=a(2), c=b(2))[0] == 2


def test_requests_with_different_optional_inputs_never_ride_together() -> None:
    signatures = {check(OPTIONAL, a=a(), **more)[1] for more in ({}, {"b": b()}, {"c": b()}, {"b": b(), "c": b()})}
    assert len(signatures) == 4


def test_the_order_in_which_inputs_are_named_does_not_matter() -> None:
    assert check(OPTIONAL, a=a(), b=b())[1] == check(OPTIONAL, b=b(), a=a())[1]


@pytest.mark.parametrize("model", [FIXED, FREE])
def test_a_request_without_rows_rides_alone(model: ModelSpec) -> None:
    assert check(model, a=a(0), b=b(0)) == (0, SIGNATURE_ALONE)


def test_a_model_without_batches_takes_one_request_at_a_time() -> None:
    assert check(UNBATCHED, a=a(5)) == (1, SIGNATURE_ALONE)


def test_a_request_without_any_tensor_has_nothing_to_put_after_another() -> None:
    assert check(spec(rows_max=8)) == (1, SIGNATURE_ALONE)
    assert check(spec(rows_max=0)) == (1, SIGNATURE_ALONE)
    assert check(spec(("b", "INT64", (-1,)), optional=("b",))) == (1, SIGNATURE_ALONE)


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.builds(np.zeros, shapes, st.sampled_from([np.float32, np.int64, np.float64]))


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), tensors),
    st.sampled_from([FIXED, FREE, UNBATCHED, OPTIONAL]),
)
def test_a_request_is_refused_with_400_or_can_be_run(inputs: dict[str, Any], model: ModelSpec) -> None:
    try:
        rows, signature = check(model, **inputs)
    except InvalidInput:
        return
    known = {tensor.name: tensor for tensor in model.inputs}
    assert {name for name, tensor in known.items() if not tensor.is_optional} <= inputs.keys() <= known.keys()
    if model.batch_rows_max:
        assert {tensor.shape[0] for tensor in inputs.values()} == {rows}
        assert rows <= model.batch_rows_max
    else:
        assert signature is SIGNATURE_ALONE


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans(), st.booleans()), min_size=2, max_size=2))
def test_two_requests_of_one_signature_can_be_put_one_after_the_other(asked: Any) -> None:
    model = spec(("a", "FP32", (-1, -1)), ("b", "INT64", (-1,)), ("c", "INT64", (-1,)), optional=("b", "c"), rows_max=8)
    requests = []
    for rows, columns, has_b, has_c in asked:
        inputs = {"a": a(rows, columns)} | ({"b": b(rows)} if has_b else {}) | ({"c": b(rows)} if has_c else {})
        requests.append((inputs, check(model, **inputs)))
    (one, (rows_one, signature_one)), (two, (rows_two, signature_two)) = requests
    if signature_one == signature_two and signature_one is not SIGNATURE_ALONE:
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            assert np.concatenate([tensor, two[name]]).shape[0] == rows_one + rows_two
