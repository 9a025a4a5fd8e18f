"""Models written for Triton run as they are."""

import logging
from typing import Any

import numpy as np
import pytest

from farthing.engines.contract import Batch, Member, MemberAnswer
from farthing.types.errors import EngineFailed, InvalidInput, LoadFailed, NotFound
from farthing.types.tensors import TensorSpec

ADD_SUB = """
    import json
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def initialize(self, args):
            self.model_config = json.loads(args["model_config"])
            config = pb_utils.get_output_config_by_name(self.model_config, "SUM")
            assert self.model_config["max_batch_size"] == 0 and "dynamic_batching" not in self.model_config
            self.sum_dtype = pb_utils.triton_string_to_numpy(config["data_type"])
            pb_utils.Logger.log_warn(f"{args['model_name']} {args['model_version']} {args['model_instance_kind']}")

        def execute(self, requests):
            responses = []
            for request in requests:
                a = pb_utils.get_input_tensor_by_name(request, "A").as_numpy()
                b = pb_utils.get_input_tensor_by_name(request, "B").as_numpy()
                responses.append(
                    pb_utils.InferenceResponse(
                        output_tensors=[
                            pb_utils.Tensor("SUM", (a + b).astype(self.sum_dtype)),
                            pb_utils.Tensor("DIFFERENCE", a - b),
                        ]
                    )
                )
            return responses

        def finalize(self):
            print("cleaned up")
"""
ADD_SUB_CONFIG = {
    "name": "add_sub",
    "backend": "python",
    "max_batch_size": None,
    "dynamic_batching": None,
    "input": [{"name": n, "data_type": "TYPE_FP32", "dims": [4]} for n in "AB"],
    "output": [{"name": n, "data_type": "TYPE_FP32", "dims": [4]} for n in ("SUM", "DIFFERENCE")],
}

PER_REQUEST = """
    import json
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        @staticmethod
        def auto_complete_config(config):
            config.add_input({"name": "x", "data_type": "TYPE_STRING", "dims": [1]})
            config.add_output({"name": "y", "data_type": "TYPE_STRING", "dims": [1]})
            config.set_max_batch_size(8)
            config.set_dynamic_batching()
            return config

        def initialize(self, args):
            assert json.loads(args["model_config"])["max_batch_size"] == 8
            assert all(isinstance(value, str) for value in args.values())

        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            command = json.loads(request.parameters()).get("command", "")
            if command == "refuse":
                error = pb_utils.TritonError("not this one", pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=error)
            if command == "miss":
                return pb_utils.InferenceResponse(
                    error=pb_utils.TritonError("where is it", pb_utils.TritonError.NOT_FOUND)
                )
            if command == "fail":
                return pb_utils.InferenceResponse(error=pb_utils.TritonError("an accident"))
            if command == "nonsense":
                return "nonsense"
            if command == "raise":
                raise pb_utils.TritonModelException("it raised")
            if command == "rows":
                x = x[:0]
            y = np.array([[e[0][::-1]] for e in x], dtype=object).reshape(-1, 1)
            if command == "numbers":
                y = np.array([[1]] * len(x), dtype=object)
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor("y", y)],
                parameters={"id": request.request_id(), "sequence": request.correlation_id()},
            )
"""


def strings(*values: bytes) -> Any:
    return np.array([[value] for value in values], object).reshape(-1, 1)


def run_commands(model: Any, *commands: str) -> list[Any]:
    members = tuple(Member(rows=2, id=f"r{i}", parameters={"command": c}) for i, c in enumerate(commands))
    x = strings(*(b"%d%s" % (i, half) for i in range(len(commands)) for half in (b"ab", b"cd")))
    answer = model.execute(Batch({"x": x}, ("y",), members), 0)
    assert isinstance(answer, list)
    assert len(answer) == len(commands)
    return answer


def test_add_sub_runs_from_its_configuration(load_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    def spec(name: str) -> TensorSpec:
        return TensorSpec(name=name, datatype="FP32", shape=(4,))

    with caplog.at_level(logging.INFO):
        model = load_model(
            ADD_SUB,
            name="add_sub",
            inputs=(spec("A"), spec("B")),
            outputs=(spec("SUM"), spec("DIFFERENCE")),
            config=ADD_SUB_CONFIG,
        )
        a, b = np.arange(4, dtype=np.float32), np.full(4, 2, np.float32)
        (answer,) = model.execute(Batch({"A": a, "B": b}, ("SUM", "DIFFERENCE"), (Member(rows=1),)), 0)
        model.close()
    assert model.batch_axis is False
    assert answer.outputs["SUM"].tolist() == [2, 3, 4, 5]
    assert answer.outputs["DIFFERENCE"].tolist() == [-2, -1, 0, 1]
    assert ("farthing.engines.python", logging.WARNING, "add_sub: add_sub 1 CPU") in caplog.record_tuples
    assert "add_sub: cleaned up" in caplog.messages


def test_a_configuration_may_be_left_to_the_model(load_model: Any) -> None:
    model = load_model(PER_REQUEST)
    assert model.inputs == (TensorSpec(name="x", datatype="BYTES", shape=(-1, 1)),)
    assert model.outputs == (TensorSpec(name="y", datatype="BYTES", shape=(-1, 1)),)
    assert model.batch_axis is True
    assert model.batch_rows_max == 8


def test_each_member_of_a_batch_is_a_request_with_its_own_answer(load_model: Any) -> None:
    model = load_model(PER_REQUEST)
    first, refused, missing, failed, last = run_commands(model, "", "refuse", "miss", "fail", "")
    assert isinstance(first, MemberAnswer)
    assert first.outputs["y"].tolist() == [[b"ba0"], [b"dc0"]]
    assert first.parameters == {"id": "r0", "sequence": 0}
    assert isinstance(refused, InvalidInput)
    assert "not this one" in refused.message
    assert isinstance(missing, NotFound)
    assert isinstance(failed, EngineFailed)
    assert "an accident" in failed.message
    assert last.outputs["y"].tolist() == [[b"ba4"], [b"dc4"]]


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("rows", r"output `y` is shape \[0, 1\]; expected: 2 rows"),
        ("numbers", "output `y` holds a int; allowed in BYTES: bytes, str"),
        ("nonsense", "execute returned a str; expected a pb_utils.InferenceResponse"),
    ],
)
def test_one_members_lie_leaves_the_others_alone(load_model: Any, lie: str, message: str) -> None:
    before, liar, after = run_commands(load_model(PER_REQUEST), "", lie, "")
    assert before.outputs["y"].tolist() == [[b"ba0"], [b"dc0"]]
    assert after.outputs["y"].tolist() == [[b"ba2"], [b"dc2"]]
    assert isinstance(liar, EngineFailed)
    with pytest.raises(EngineFailed, match=message):
        raise liar


def test_an_exception_fails_the_batch_with_its_message(load_model: Any) -> None:
    model = load_model(PER_REQUEST)
    with pytest.raises(EngineFailed, match=r"^model `mine`: it raised$"):
        run_commands(model, "", "raise")
    assert len(run_commands(model, "", "")) == 2


def test_zero_rows_are_rows_too(load_model: Any) -> None:
    model = load_model(PER_REQUEST)
    (answer,) = model.execute(Batch({"x": strings()}, ("y",), (Member(rows=0),)), 0)
    assert answer.outputs["y"].shape == (0, 1)


def test_too_few_responses_fail_the_batch(load_model: Any) -> None:
    model = load_model(PER_REQUEST.replace("for request in requests]", "for request in requests[:1]]"))
    with pytest.raises(EngineFailed, match="execute returned 1 responses; expected one a request, 2"):
        run_commands(model, "", "")


def test_execute_may_be_a_coroutine(load_model: Any) -> None:
    model = load_model(PER_REQUEST.replace("def execute", "async def execute"))
    assert len(run_commands(model, "", "")) == 2


def test_a_parameter_that_cannot_be_sent_back_is_the_models_error(load_model: Any) -> None:
    model = load_model(PER_REQUEST.replace("request.correlation_id()", "1 << 80"))
    with pytest.raises(EngineFailed, match="OverflowError"):
        run_commands(model, "")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("return config", "return None", "auto_complete_config returned a NoneType"),
        ("config.add_output", "str", "neither the configuration nor auto_complete_config names an output"),
        ("def execute", "def run", "TritonPythonModel has no method `execute`"),
        ("TYPE_STRING", "TYPE_TEXT", "no data_type is TYPE_TEXT"),
        ("== 8", "== 9", r"model\.py:16: AssertionError"),
    ],
)
def test_what_cannot_be_loaded_says_why(load_model: Any, before: str, after: str, message: str) -> None:
    with pytest.raises(LoadFailed, match=message):
        load_model(PER_REQUEST.replace(before, after))


SENDERS = """
    import threading
    import numpy as np
    import triton_python_backend_utils as pb_utils

    FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

    class TritonPythonModel:
        @staticmethod
        def auto_complete_config(config):
            config.add_input({"name": "x", "data_type": "TYPE_INT32", "dims": [1]})
            config.add_output({"name": "y", "data_type": "TYPE_INT32", "dims": [1]})
            config.set_max_batch_size(8)
            return config

        def execute(self, requests):
            if all(request.request_id() == "returned" for request in requests):
                return [self.response(request) for request in requests]
            if "twice" in [request.request_id() for request in requests]:
                sender = requests[0].get_response_sender()
                sender.send(self.response(requests[0]))
                sender.send(self.response(requests[0]))
            for request in requests:
                request.get_response_sender()
                threading.Thread(target=self.answer, args=(request,)).start()

        def response(self, request):
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            return pb_utils.InferenceResponse([pb_utils.Tensor("y", x * 2)])

        def answer(self, request):
            sender = request.get_response_sender()
            kind = request.request_id()
            if kind == "together":
                sender.send(self.response(request), flags=FINAL)
            elif kind == "apart":
                sender.send(self.response(request))
                sender.send(flags=FINAL)
            elif kind == "error":
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("no", pb_utils.TritonError.NOT_FOUND)), FINAL)
"""


def test_a_model_that_is_not_decoupled_may_answer_each_request_once_with_its_sender(load_model: Any) -> None:
    model = load_model(SENDERS)

    def ask(*kinds: str) -> Any:
        x = np.arange(len(kinds), dtype=np.int32)[:, None]
        return model.execute(Batch({"x": x}, ("y",), tuple(Member(1, id=kind) for kind in kinds)), 0)

    together, forgotten, apart, error = ask("together", "forgotten", "apart", "error")
    assert (together.outputs["y"].tolist(), apart.outputs["y"].tolist()) == ([[0]], [[4]])
    assert isinstance(forgotten, EngineFailed)
    assert "let go of the request" in forgotten.message
    assert isinstance(error, NotFound)
    assert [answer.outputs["y"].tolist() for answer in ask("returned", "returned")] == [[[0]], [[2]]]
    with pytest.raises(EngineFailed, match="sends exactly one response"):
        ask("twice")
    assert ask("together")[0].outputs["y"].tolist() == [[0]]
