"""Models that answer as often as they like, in real processes: generators and Triton's response senders."""

import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from textwrap import dedent, indent
from typing import Any

import numpy as np
import pytest
from tests.serving import eventually

from farthing.engines.contract import Batch, Member, MemberAnswer
from farthing.engines.python.engine import PythonModel
from farthing.engines.python.stream_messages import UNTAKEN_RESPONSES_MAX
from farthing.engines.streaming import Part
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput, LoadFailed, Unavailable

WAIT_S = 20.0

COUNT = """
import asyncio, time
from pathlib import Path
import numpy as np
from farthing import Tensor
from farthing.types.errors import InvalidInput

class Count:
    inputs = [Tensor("n", "INT32", [1])]
    outputs = [Tensor("i", "INT32", [-1])]
    notes = Path(__file__).parent / "notes"

    def note(self, text):
        with self.notes.open("a") as file:
            file.write(text + " ")

"""

TRITON = """
import threading, time, os
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

def response(*values):
    return pb_utils.InferenceResponse([pb_utils.Tensor("i", np.array(values, np.int32))])

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "n", "data_type": "TYPE_INT32", "dims": [1]})
        config.add_output({"name": "i", "data_type": "TYPE_INT32", "dims": [-1]})
        config.set_max_batch_size(0)
        config.set_model_transaction_policy({"decoupled": True})
        return config

"""


def written(template: str, methods: str) -> str:
    """A model's file: the template's class with these methods too."""
    return template + indent(dedent(methods).strip() + "\n", "    ")


class Heard:
    """What one request was told."""

    def __init__(self, model: PythonModel, *values: int, takes: bool = True, instance: int = 0) -> None:
        self.parts: list[list[Part]] = [[] for _ in values]
        self._is_over = threading.Semaphore(0)
        self._early: list[int] = []
        self._takes = takes
        self.running: Any = None
        lone = np.array(values, np.int32)
        batch = Batch({"n": lone}, ("i",), tuple(Member(1, id=str(value)) for value in values))
        self.running = model.begin(batch, instance, [self._hear(member) for member in range(len(values))])
        for member in self._early:
            self.running.take(member)
        self.running.wait()

    def _hear(self, member: int) -> Callable[[Part], None]:
        def hear(part: Part) -> None:
            self.parts[member].append(part)
            if self._takes:
                if self.running is None:
                    self._early.append(member)
                else:
                    self.running.take(member)
            if part.is_last:
                self._is_over.release()

        return hear

    def rest(self, member: int = 0) -> Sequence[Part]:
        """All of it, once all members heard their last."""
        for _ in self.parts:
            assert self._is_over.acquire(timeout=WAIT_S), "no last part came"
        return self.parts[member]


def values(parts: Sequence[Part]) -> list[list[int]]:
    return [part.answer.outputs["i"].tolist() for part in parts if isinstance(part.answer, MemberAnswer)]


def error(parts: Sequence[Part]) -> FarthingError:
    assert isinstance(parts[-1].answer, FarthingError), parts
    assert parts[-1].is_last
    return parts[-1].answer


GENERATOR = """
def infer(self, inputs):
    for i in range(inputs["n"][0]):
        yield {"i": [i]}
"""


@pytest.mark.parametrize(
    "infer",
    [
        GENERATOR,
        GENERATOR.replace("def infer", "async def infer").replace("yield", "await asyncio.sleep(0)\n        yield"),
        """
decoupled = True
def infer(self, inputs, request):
    return [{"i": [i]} for i in range(int(request.id))]
""",
        """
decoupled = True
async def infer(self, inputs):
    return ({"i": [i]} for i in range(inputs["n"][0]))
""",
    ],
)
def test_a_class_answers_zero_one_or_many_times(load_model: Any, infer: str) -> None:
    model = load_model(written(COUNT, infer).replace("[i]}", "np.array([i], np.int32)}"))
    assert model.is_decoupled
    for n in (0, 1, 2, 3 * UNTAKEN_RESPONSES_MAX):
        parts = Heard(model, n).rest()
        assert values(parts) == [[i] for i in range(n)]
        assert [part.is_last for part in parts] == [False] * n + [True]


def test_members_of_a_batch_are_answered_side_by_side(load_model: Any) -> None:
    infer = """
max_batch_size = 8
def infer(self, inputs, request):
    for i in range(inputs["n"][0]):
        self.note(request.id)
        yield {"i": np.array([i], np.int32)}
"""
    code = written(COUNT, infer).replace('"INT32", [1]', '"INT32", [-1]')
    model = load_model(code)
    heard = Heard(model, 3, 2, 0)
    heard.rest()
    assert [values(parts) for parts in heard.parts] == [[[0], [1], [2]], [[0], [1]], []]


def test_a_generator_that_ended_in_an_error_has_said_what_came_before(load_model: Any) -> None:
    infer = """
def infer(self, inputs, request):
    request.response_parameters["word"] = "first"
    yield {"i": np.array([1], np.int32)}
    yield {"i": np.array([2], np.int32)}
    raise InvalidInput("enough") if inputs["n"][0] else ZeroDivisionError("nought")
"""
    model = load_model(written(COUNT, infer))
    parts = Heard(model, 1).rest()
    assert values(parts) == [[1], [2]]
    assert [dict(p.answer.parameters) for p in parts[:2] if isinstance(p.answer, MemberAnswer)] == [
        {"word": "first"},
        {},
    ]
    assert isinstance(error(parts), InvalidInput)
    assert "enough" in error(parts).message
    assert "ZeroDivisionError: nought (model.py:" in error(Heard(model, 0).rest()).message


@pytest.mark.parametrize(
    ("yielded", "told"),
    [
        ("[1]", "infer yielded a list; expected a dict"),
        ('{"i": np.array([1.5])}', "output `i` is FP64; expected: INT32"),
        ('{"i": np.array([[1]], np.int32)}', r"output `i` is shape \[1, 1\]"),
        ('{"i": [object()]}', "output `i` holds a object"),
        ('{"i": np.zeros(1 << 24, np.int32)}', "bytes of tensors in one response; allowed"),
    ],
)
def test_what_a_generator_may_not_yield(load_model: Any, yielded: str, told: str) -> None:
    model = load_model(written(COUNT, f"def infer(self, inputs):\n    yield {yielded}"))
    parts = Heard(model, 1).rest()
    [said] = [part.answer for part in parts if isinstance(part.answer, FarthingError)]
    assert isinstance(said, EngineFailed)
    assert re.search(told, said.message)


def test_outputs_may_be_left_out_and_large_ones_come_whole(load_model: Any) -> None:
    infer = "def infer(self, inputs):\n    yield {}\n    yield {'i': np.arange(3_000_000, dtype=np.int32)}"
    parts = Heard(load_model(written(COUNT, infer)), 1).rest()
    assert isinstance(parts[0].answer, MemberAnswer)
    assert not parts[0].answer.outputs
    assert values(parts[1:]) == [list(range(3_000_000))]


@pytest.mark.parametrize("kind", ["", "async "])
def test_whose_client_leaves_is_closed(load_model: Any, kind: str, tmp_path: Any) -> None:
    infer = f"""
{kind}def infer(self, inputs, request):
    try:
        while True:
            {"await asyncio.sleep(0.001)" if kind else "time.sleep(0.001)"}
            yield {{"i": np.array([1], np.int32)}}
    finally:
        self.note(f"closed {{request.is_cancelled}}")
"""
    model = load_model(written(COUNT, infer))
    heard = Heard(model, 1)
    eventually(lambda: len(heard.parts[0]) > 2)
    heard.running.cancel(0)
    notes = tmp_path / "mine" / "1" / "notes"
    eventually(lambda: notes.exists() and notes.read_text() == "closed True ")
    assert not any(part.is_last for part in heard.parts[0])


def test_an_async_one_that_waits_for_long_is_woken_when_its_client_leaves(load_model: Any, tmp_path: Any) -> None:
    infer = """
async def infer(self, inputs, request):
    yield {"i": np.array([1], np.int32)}
    try:
        await asyncio.sleep(3600)
    finally:
        self.note("woken")
"""
    heard = Heard(load_model(written(COUNT, infer)), 1)
    eventually(lambda: heard.parts[0])
    heard.running.cancel(0)
    notes = tmp_path / "mine" / "1" / "notes"
    eventually(lambda: notes.exists() and notes.read_text() == "woken ")


def test_a_model_waits_for_who_does_not_take_and_others_go_on(load_model: Any, tmp_path: Any) -> None:
    infer = """
def infer(self, inputs, request):
    for i in range(inputs["n"][0]):
        if request.id == "1000":
            self.note(str(i))
        yield {"i": np.array([i], np.int32)}
"""
    model = load_model(written(COUNT, infer))
    slow = Heard(model, 1000, takes=False)
    eventually(lambda: len(slow.parts[0]) == UNTAKEN_RESPONSES_MAX)
    assert len(values(Heard(model, 500).rest())) == 500
    assert len(slow.parts[0]) == UNTAKEN_RESPONSES_MAX
    assert len((tmp_path / "mine" / "1" / "notes").read_text().split()) <= UNTAKEN_RESPONSES_MAX + 1
    for _ in range(10):
        slow.running.take(0)
    eventually(lambda: len(slow.parts[0]) == UNTAKEN_RESPONSES_MAX + 10)


def test_a_process_that_dies_tells_everyone_and_comes_back(load_model: Any) -> None:
    infer = """
async def infer(self, inputs):
    yield {"i": np.array([1], np.int32)}
    await asyncio.sleep(inputs["n"][0])
"""
    model = load_model(written(COUNT, infer))
    one, other = Heard(model, 3600), Heard(model, 3600)
    eventually(lambda: one.parts[0] and other.parts[0])
    os.kill(model.pids[0] or 0, signal.SIGKILL)
    for heard in (one, other):
        assert values(heard.rest()) == [[1]]
        assert "was killed by signal 9 (SIGKILL" in error(heard.parts[0]).message

    def answers() -> bool:
        try:
            return values(Heard(model, 0).rest()) == [[1]]
        except Unavailable:
            return False

    eventually(answers)


def test_a_class_that_contradicts_itself_is_refused(load_model: Any) -> None:
    with pytest.raises(LoadFailed, match=r"infer yields, so it answers more than once, but decoupled is False"):
        load_model(written(COUNT, "decoupled = False\n" + GENERATOR.strip()))
    with pytest.raises(LoadFailed, match="decoupled is 1; allowed: True, False"):
        load_model(written(COUNT, "decoupled = 1\n" + GENERATOR.strip()), name="other")


def test_warming_up_hears_all_and_says_what_failed(load_model: Any) -> None:
    infer = "def infer(self, inputs):\n    yield {'i': np.array([1], np.int32)}\n    1 / inputs['n'].item()"
    model = load_model(written(COUNT, infer))

    def run(n: int) -> Any:
        return model.execute(Batch({"n": np.array([n], np.int32)}, ("i",), (Member(1),)), 0)[0]

    assert isinstance(run(1), MemberAnswer)
    assert isinstance(run(0), EngineFailed)


# -- Triton's senders ------------------------------------------------------------------------------------------------------

SQUARE = """
def execute(self, requests):
    for request in requests:
        sender = request.get_response_sender()
        n = pb_utils.get_input_tensor_by_name(request, "n").as_numpy().item()
        for i in range(n):
            sender.send(response(n))
        sender.send(flags=FINAL)
"""


def triton(load_model: Any, execute: str, **more: Any) -> PythonModel:
    model: PythonModel = load_model(written(TRITON, execute), **more)
    return model


def test_a_sender_sends_zero_one_or_many(load_model: Any) -> None:
    model = triton(load_model, SQUARE)
    assert model.is_decoupled
    for n in (0, 1, 5, 100):
        parts = Heard(model, n).rest()
        assert values(parts) == [[n]] * n
        assert parts[-1] == Part(None, is_last=True)


def test_the_last_response_may_be_the_final_one_and_errors_may_stand_between(load_model: Any) -> None:
    execute = """
def execute(self, requests):
    [request] = requests
    sender = request.get_response_sender()
    sender.send(response(1))
    error = pb_utils.TritonError("not this one", pb_utils.TritonError.NOT_FOUND)
    sender.send(pb_utils.InferenceResponse(error=error))
    sender.send(response(2, 3), flags=FINAL)
    try:
        sender.send(response(4))
    except pb_utils.TritonModelException as late:
        print(late)
"""
    parts = Heard(triton(load_model, execute), 1).rest()
    assert values(parts) == [[1], [2, 3]]
    assert [part.is_last for part in parts] == [False, False, True]
    assert isinstance(parts[1].answer, FarthingError)
    assert parts[1].answer.http_status == 404


def test_threads_may_send_after_execute_returned_and_learn_that_the_client_left(load_model: Any, tmp_path: Any) -> None:
    execute = """
def execute(self, requests):
    for request in requests:
        threading.Thread(target=self.answer, args=(request,), daemon=True).start()
def answer(self, request):
    sender = request.get_response_sender()
    while not sender.is_cancelled():
        sender.send(response(7))
        time.sleep(0.001)
    Path(__file__).with_name("left").write_text(str(request.is_cancelled()))
    sender.send(flags=FINAL)
"""
    model = triton(load_model, execute)
    heard = Heard(model, 1)
    eventually(lambda: len(heard.parts[0]) > 3)
    heard.running.cancel(0)
    left = tmp_path / "mine" / "1" / "left"
    eventually(lambda: left.exists() and left.read_text() == "True")


def test_coroutines_run_side_by_side(load_model: Any) -> None:
    execute = """
waiting = []
async def execute(self, requests):
    import asyncio
    self.waiting += requests
    while len(self.waiting) < 2:
        await asyncio.sleep(0.001)
    for request in requests:
        request.get_response_sender().send(response(1), flags=FINAL)
"""
    model = triton(load_model, execute)
    one, other = Heard(model, 1), Heard(model, 1)
    assert values(one.rest()) == values(other.rest()) == [[1]]


@pytest.mark.parametrize(
    ("execute", "told"),
    [
        ("def execute(self, requests):\n    return [response(1)]", "a decoupled model returns None"),
        ("def execute(self, requests):\n    raise KeyError('x')", "KeyError: 'x' (model.py:"),
        ("async def execute(self, requests):\n    raise KeyError('x')", "KeyError: 'x' (model.py:"),
        ("def execute(self, requests):\n    pass", "let go of the request without a last response"),
        ("def execute(self, requests):\n    requests[0].get_response_sender().send()", "or the final flag, must be"),
        ("def execute(self, requests):\n    requests[0].get_response_sender().send(3)", "was given a int"),
        ("def execute(self, requests):\n    requests[0].get_response_sender().send(response(1), 7)", "flags are 7"),
    ],
)
def test_a_request_that_is_not_answered_well_is_told_so(load_model: Any, execute: str, told: str) -> None:
    model = triton(load_model, execute)
    for _ in range(2):
        assert told in error(Heard(model, 1).rest()).message


def test_a_batch_that_does_not_return_in_time_ends_its_process(load_model: Any) -> None:
    sleeping = "def execute(self, requests):\n    time.sleep(3600)"
    model = triton(load_model, sleeping, parameters={"execution_timeout_seconds": "0.2"})
    assert "did not return within 0.2 s" in error(Heard(model, 1).rest()).message


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_process_that_sends_more_than_it_may_is_ended(load_model: Any, size: int) -> None:
    infer = f"""
def infer(self, inputs):
    from farthing.engines.python import stream_worker
    stream_worker.UNTAKEN_RESPONSES_MAX = stream_worker.UNTAKEN_BYTES_MAX = 1 << 40
    for i in range(100):
        yield {{"i": np.zeros({size} // 4, np.int32)}}
"""
    model = load_model(written(COUNT, infer))
    heard = Heard(model, 1, takes=False)
    ended = error(heard.rest())
    assert re.search(r"killed by the server after it answered nonsense \(\d+ responses to one request", str(ended)), (
        ended
    )
    assert len(heard.parts[0]) == 1 + (4 if size > 1 else UNTAKEN_RESPONSES_MAX)
    eventually(lambda: model.health() == "")
