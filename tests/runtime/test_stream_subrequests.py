"""Models that answer as often as they like and ask other models meanwhile, in real processes, with one runtime."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import numpy as np
import pytest
from tests.runtime.shop import Shop, Stuck, ask
from tests.runtime.test_subrequests import executable_of, until

from farthing.engines.python.stream_messages import UNTAKEN_RESPONSES_MAX
from farthing.runtime.runtime import Runtime
from farthing.runtime.served import ServedVersion
from farthing.runtime.served_streams import ServedStreams, Stream, Streaming
from farthing.telemetry.traces import begin_trace
from farthing.types.errors import EngineFailed, FarthingError
from farthing.types.requests import InferRequest, InferResponse, StreamedResponse
from farthing.types.trace import Trace

HEAD = """
import asyncio, threading, time
from pathlib import Path
import numpy as np
from farthing import Tensor

NOTES = Path(__file__).with_name("notes")

class Model:
    inputs = [Tensor("x", "FP32", [-1, 1])]
    outputs = [Tensor("y", "FP32", [-1, 1])]
    max_batch_size = 8

    def load(self, context):
        self.models = context.models
        self.double = context.models["double"]

"""

TRITON = """
import asyncio, threading
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

def question(request, traced=True):
    x = pb_utils.get_input_tensor_by_name(request, "x")
    more = {"trace": request.trace()} if traced else {}
    return pb_utils.InferenceRequest(model_name="double", requested_output_names=["y"], inputs=[x], **more)

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [1]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [1]})
        config.set_max_batch_size(8)
        config.set_model_transaction_policy({"decoupled": True})
        return config

"""

WriteModel = Callable[..., None]


@pytest.fixture
def write(shop: Shop) -> WriteModel:
    """Writes a Python model of these methods."""

    def put(name: str, methods: str, *, head: str = HEAD, instances: int = 1) -> None:
        folder = shop.folder / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(head + indent(dedent(methods).strip() + "\n", "    "))
        shop.configure(
            name,
            f"instance_group {{ count: {instances} kind: KIND_CPU }} "
            'parameters { key: "restart_delay_seconds" value { string_value: "0.01" } }',
        )

    return put


class Talk:
    """One request of a decoupled model, and what it was told."""

    def __init__(self, runtime: Runtime, name: str, value: float, *, takes: bool = True, **fields: Any) -> None:
        served = runtime.resolve(name)
        assert isinstance(served, Streaming)
        request = InferRequest(model_name=name, inputs={"x": np.full((1, 1), value, np.float32)}, **fields)
        self.said: list[StreamedResponse] = []
        self._takes = takes
        self._is_over = asyncio.Event()
        checked = served.check_stream(request)
        self.stream: Stream | None = None
        self.stream = served.stream(request, *checked, time.monotonic_ns(), self._hear)

    def _hear(self, said: StreamedResponse) -> None:
        self.said.append(said)
        if said.is_last:
            self._is_over.set()
        elif self._takes and self.stream is not None:
            self.stream.taken()

    @property
    def values(self) -> list[float]:
        """What it was told so far."""
        return [float(said.answer.outputs["y"][0, 0]) for said in self.said if isinstance(said.answer, InferResponse)]

    async def rest(self) -> list[float]:
        """All of it. Raises the error that it ends in."""
        await asyncio.wait_for(self._is_over.wait(), 20)
        if isinstance(error := self.said[-1].answer, FarthingError):
            raise error
        return self.values


async def told(runtime: Runtime, name: str, value: float = 1, **fields: Any) -> list[float]:
    return await Talk(runtime, name, value, **fields).rest()


GENERATOR = """
def infer(self, inputs):
    x = inputs["x"]
    for _ in range(3):
        x = self.double({"x": x})["y"]
        yield {"y": x}
"""

ASYNC = """
async def infer(self, inputs):
    for factor in (2, 4, 8):
        asked = [self.double.infer_async({"x": inputs["x"] * factor / 2}) for _ in range(4)]
        yield {"y": (await asyncio.gather(*asked))[3]["y"]}
"""

LOADS = """
def load(self, context):
    self.two = context.models["double"]({"x": np.ones((1, 1), np.float32)})["y"]

def infer(self, inputs):
    yield {"y": self.two * inputs["x"]}
    yield {"y": self.two * self.two * inputs["x"]}
    yield {"y": self.two ** 3 * inputs["x"]}
"""

EXECUTE = """
def execute(self, requests):
    for request in requests:
        sender = request.get_response_sender()
        for factor in (1, 2, 4):
            [y] = question(request, traced=False).exec().output_tensors()
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", y.as_numpy() * factor)]))
        sender.send(flags=FINAL)
"""

SENDER_THREAD = """
def execute(self, requests):
    for request in requests:
        threading.Thread(target=self.answer, args=(request,), daemon=True).start()

def answer(self, request):
    sender = request.get_response_sender()
    for factor in (1, 2, 4):
        [y] = question(request).exec().output_tensors()
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", y.as_numpy() * factor)]))
    sender.send(flags=FINAL)
"""

COROUTINE = """
async def execute(self, requests):
    for request in requests:
        sender = request.get_response_sender()
        answers = await asyncio.gather(*(question(request, traced=False).async_exec() for _ in range(3)))
        for factor, answer in zip((1, 2, 4), answers):
            [y] = answer.output_tensors()
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", y.as_numpy() * factor)]))
        sender.send(flags=FINAL)
"""


async def test_they_ask_from_wherever_they_answer_and_on_behalf_of_whom_they_answer(
    shop: Shop, write: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.put("double", 2)
    native = {"generator": GENERATOR, "async": ASYNC, "loads": LOADS}
    triton = {"execute": EXECUTE, "thread": SENDER_THREAD, "coroutine": COROUTINE}
    for name, code in native.items():
        write(name, code)
    for name, code in triton.items():
        write(name, code, head=TRITON)
    seen: list[tuple[InferRequest, float]] = []
    submit = ServedVersion.submit

    def spy(self: ServedVersion, request: InferRequest, *more: Any) -> Any:
        seen.append((request, float(request.inputs["x"][0, 0])))  # memory that is used again
        return submit(self, request, *more)

    monkeypatch.setattr(ServedVersion, "submit", spy)
    async with shop.open() as runtime:
        for name in (*native, *triton):
            seen.clear()
            trace = Trace(begin_trace(is_sampled=True))
            mine = told(runtime, name, 3, tenant="ann", priority=2, timeout_us=9_000_000, trace=trace)
            others = [told(runtime, name, value, tenant="bob") for value in (1, 2)]
            answers = await asyncio.gather(mine, *others)
            assert answers == [[2 * value, 4 * value, 8 * value] for value in (3, 1, 2)], name
            asked = [request for request, value in seen if value % 3 == 0]
            if name == "loads":
                assert not seen
                continue
            assert len(asked) >= 3
            for request in asked:
                assert (request.tenant, request.priority) == ("ann", 2), name
                assert 0 < request.timeout_us < 9_000_000
            spans = [span for span in trace.spans if span.name == "subrequest double"]
            assert [span.context.parent_span_id for span in spans] == [trace.context.span_id] * len(asked)
        assert not runtime._subrequests._waits
        assert not runtime._subrequests._withdraws


LEFT = """
async def infer(self, inputs):
    try:
        yield {"y": inputs["x"]}
        asked = [self.double.infer_async({"x": inputs["x"]}) for _ in range(4)]
        yield {"y": (await asyncio.gather(*asked))[0]["y"]}
    except BaseException as problem:
        NOTES.write_text(type(problem).__name__)
        raise
"""


@pytest.mark.usefixtures("threads_only")
async def test_what_was_asked_for_a_client_that_leaves_is_withdrawn(shop: Shop, write: WriteModel) -> None:
    shop.put("double", 2)
    shop.configure("double", "max_batch_size: 1")
    write("left", LEFT)
    async with shop.open() as runtime:
        double, left = runtime.resolve("double"), executable_of(runtime, "left")
        with Stuck() as stuck:
            first = asyncio.ensure_future(told(runtime, "left", 1))
            await stuck.wait_until_entered()
            await until(lambda: double.statistics.pending_requests == 3)
            talk = Talk(runtime, "left", 5)
            await until(lambda: double.statistics.pending_requests == 7)
            assert talk.stream is not None
            talk.stream.withdraw()
            await until(lambda: double.statistics.pending_requests == 3)
        assert await first == [1, 2]
        notes = shop.folder / "left" / "1" / "notes"
        # Its own end, or that of what it asked: they go to its process by two ways.
        await until(lambda: notes.exists() and notes.read_text() in {"CancelledError", "Cancelled"})
        # Nothing is stuck, and its memory is used again.
        for _ in range(70):
            assert await told(runtime, "left", 4) == [4, 8]
        [pid] = left.pids
        assert pid is not None
        with Stuck() as stuck:
            dying = Talk(runtime, "left", 1)
            await stuck.wait_until_entered()
            await until(lambda: double.statistics.pending_requests == 3)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(EngineFailed, match="SIGKILL"):
                await dying.rest()
            await until(lambda: double.statistics.pending_requests == 0)
        await until(lambda: left.health() == "")
        assert await told(runtime, "left", 4) == [4, 8]
        assert not runtime._subrequests._waits
        assert not runtime._subrequests._withdraws


WAITS = """
def infer(self, inputs):
    try:
        yield {"y": self.double({"x": inputs["x"]})["y"]}
    except Exception as problem:
        NOTES.write_text(type(problem).__name__)
        try:
            self.double({"x": inputs["x"]})
        except Exception as again:
            NOTES.write_text(f"{type(problem).__name__}, {type(again).__name__}")
        raise
"""


@pytest.mark.usefixtures("threads_only")
async def test_a_generator_that_waits_for_another_model_hears_that_its_client_left(
    shop: Shop, write: WriteModel
) -> None:
    shop.put("double", 2)
    write("waits", WAITS)
    async with shop.open() as runtime:
        notes = shop.folder / "waits" / "1" / "notes"
        with Stuck() as stuck:
            talk = Talk(runtime, "waits", 1)
            await stuck.wait_until_entered()
            assert talk.stream is not None
            talk.stream.withdraw()
            # While the other model is still at it: whoever waits next need not wait for that.
            await until(lambda: notes.exists() and "," in notes.read_text())
            assert notes.read_text() == "Cancelled, Cancelled"
        assert await told(runtime, "waits", 2) == [4]


COUNT = """
def infer(self, inputs):
    n = int(inputs["x"][0, 0])
    for i in range(n):
        NOTES.with_suffix(".new").write_text(str(i))
        NOTES.with_suffix(".new").replace(NOTES)  # whoever reads it meanwhile finds a number
        yield {"y": np.full((1, 1), i, np.float32)}
"""

SUMS = {
    "once": """
    def infer(self, inputs):
        answers = self.models["count"].stream({"x": inputs["x"]})
        return {"y": sum((answer["y"] for answer in answers), np.zeros((1, 1), np.float32))}
    """,
    "once_async": """
    async def infer(self, inputs):
        async def drawn():
            return [answer["y"] async for answer in self.models["count"].stream_async({"x": inputs["x"]})]
        answers = await asyncio.gather(*(drawn() for _ in range(8)))
        assert all(answer == answers[0] for answer in answers)
        return {"y": sum(answers[0], np.zeros((1, 1), np.float32))}
    """,
    "often": """
    def infer(self, inputs, request):
        y = np.zeros((1, 1), np.float32)
        for answer in self.models["count", 1].stream({"x": inputs["x"]}, outputs=["y"], request=request):
            y += answer["y"]
        yield {"y": y}
    """,
    "often_async": """
    async def infer(self, inputs):
        y = np.zeros((1, 1), np.float32)
        async for answer in self.models["count"].stream_async({"x": inputs["x"]}):
            y += answer["y"]
        yield {"y": y}
    """,
}

EXEC = """
def execute(self, requests):
    for request in requests:
        count = pb_utils.InferenceRequest(model_name="count", requested_output_names=["y"], inputs=request.inputs())
        y = np.zeros((1, 1), np.float32)
        for response in count.exec(decoupled=True):
            y = y + pb_utils.get_output_tensor_by_name(response, "y").as_numpy()
        sender = request.get_response_sender()
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]), FINAL)
"""

ASYNC_EXEC = """
async def execute(self, requests):
    for request in requests:
        count = pb_utils.InferenceRequest(model_name="count", requested_output_names=["y"], inputs=request.inputs())
        y = np.zeros((1, 1), np.float32)
        two = await asyncio.gather(count.async_exec(decoupled=True), count.async_exec(decoupled=True))
        for response in two[0]:
            y = y + pb_utils.get_output_tensor_by_name(response, "y").as_numpy()
        async for response in two[1]:
            y = y - pb_utils.get_output_tensor_by_name(response, "y").as_numpy() / 2
        sender = request.get_response_sender()
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", y * 2)]), FINAL)
"""


async def test_models_that_answer_often_are_asked_for_all_their_answers(shop: Shop, write: WriteModel) -> None:
    shop.put("double", 2)
    write("count", COUNT)
    for name, code in SUMS.items():
        write(name, code)
    write("exec", EXEC, head=TRITON)
    write("async_exec", ASYNC_EXEC, head=TRITON)
    async with shop.open() as runtime:
        for n in (0, 1, 100):
            total = n * (n - 1) / 2
            assert await ask(runtime, "once", value=n) == total
            assert await ask(runtime, "once_async", value=n) == total
            for name in ("often", "often_async", "exec", "async_exec"):
                assert await told(runtime, name, n) == [total], name
        together = await asyncio.gather(*(told(runtime, "often_async", 40) for _ in range(30)))
        assert together == [[780]] * 30
        assert not runtime._subrequests._withdraws
        assert not runtime._subrequests._takes


BROKEN = """
def infer(self, inputs):
    yield {"y": inputs["x"]}
    raise ZeroDivisionError("nought")
"""

DRAWS = """
def infer(self, inputs):
    for name in ("broken", "double", "ghost"):
        try:
            for answer in self.models[name].stream({"x": inputs["x"]}):
                yield answer
        except Exception as problem:
            yield {"y": np.full((1, 1), len(type(problem).__name__), np.float32)}
"""


async def test_an_error_ends_the_answers_and_models_that_answer_once_are_drawn_too(
    shop: Shop, write: WriteModel
) -> None:
    shop.put("double", 2)
    write("broken", BROKEN)
    write("draws", DRAWS)
    async with shop.open() as runtime:
        assert await told(runtime, "draws", 4) == [4, len("EngineFailed"), 8, len("ModelNotFound")]


FIRST = """
def infer(self, inputs):
    answers = self.models["count"].stream({"x": np.full((1, 1), 1e6, np.float32)})
    yield next(answers)
    yield next(answers)
    if inputs["x"][0, 0] == 1:
        self.double({"x": inputs["x"]})
    if inputs["x"][0, 0] == 2:
        for _ in range(100):
            yield next(answers)
"""


@pytest.mark.usefixtures("threads_only")
async def test_who_draws_slowly_makes_the_other_model_wait_and_who_leaves_ends_it(
    shop: Shop, write: WriteModel
) -> None:
    shop.put("double", 2)
    write("count", COUNT)
    write("first", FIRST)
    async with shop.open() as runtime:
        count = runtime.resolve("count")
        assert isinstance(count, ServedStreams)
        notes = shop.folder / "count" / "1" / "notes"
        with Stuck() as stuck:
            slow = Talk(runtime, "first", 1)
            await stuck.wait_until_entered()
            await until(lambda: notes.exists() and int(notes.read_text() or 0) >= UNTAKEN_RESPONSES_MAX)
            await asyncio.sleep(0.05)
            assert int(notes.read_text()) <= UNTAKEN_RESPONSES_MAX + 3
        assert await slow.rest() == [0, 1]
        await until(lambda: count.loop.is_empty)  # it let go of the rest
        # A client that does not take its answers makes the first model wait, and so the second.
        idle = Talk(runtime, "first", 2, takes=False)
        await until(lambda: len(idle.values) == UNTAKEN_RESPONSES_MAX)
        assert not count.loop.is_empty
        assert idle.stream is not None
        idle.stream.withdraw()
        await until(lambda: count.loop.is_empty)
        assert not runtime._subrequests._withdraws


PING = """
def infer(self, inputs):
    answers = self.models["pong"].stream({"x": inputs["x"] - 1}) if inputs["x"][0, 0] > 0 else [{"y": inputs["x"]}]
    return {"y": list(answers)[0]["y"]}
"""

PONG = """
async def infer(self, inputs):
    yield await self.models["ping"].infer_async({"x": inputs["x"] - 1})
"""

MIRROR = """
def infer(self, inputs):
    for answer in self.models["mirror"].stream({"x": inputs["x"]}):
        yield answer
"""


async def test_a_circle_through_models_that_answer_often_is_refused_at_once(shop: Shop, write: WriteModel) -> None:
    shop.put("double", 2)
    write("ping", PING)
    write("pong", PONG)
    write("mirror", MIRROR)
    async with shop.open() as runtime:
        assert await ask(runtime, "ping", value=0) == 0
        with pytest.raises(EngineFailed, match="a request to model `ping` would wait for ever"):
            await ask(runtime, "ping", value=2)
        with pytest.raises(EngineFailed, match="a request to model `mirror` would wait for ever"):
            await told(runtime, "mirror")
        assert await told(runtime, "pong", 1) == [0]
        assert not runtime._subrequests._waits


ENDLESS = """
async def infer(self, inputs):
    async for answer in self.models["endless"].stream_async({"x": inputs["x"]}):
        yield {"y": answer["y"] + 1}
"""

BUSHY = """
async def infer(self, inputs):
    branches = [self.models["bushy"].stream_async({"x": inputs["x"]}) for _ in range(3)]
    await asyncio.gather(*(anext(branch) for branch in branches))
    yield {"y": inputs["x"]}
"""


async def test_models_that_ask_each_other_without_end_are_told_so(shop: Shop, write: WriteModel) -> None:
    shop.put("double", 2)
    write("endless", ENDLESS)
    write("bushy", BUSHY)
    write("there", ENDLESS.replace('"endless"', '"back"'))
    write("back", ENDLESS.replace('"endless"', '"there"'))
    async with shop.open() as runtime:
        for name in ("endless", "there"):
            with pytest.raises(EngineFailed, match=r"one too many in a row: 32 models have asked each other"):
                await told(runtime, name, 0)
        with pytest.raises(EngineFailed, match=r"one too many in a row|could wait for ever"):
            await told(runtime, "bushy", 0)
        crowd = await asyncio.gather(*(told(runtime, "bushy", 0) for _ in range(4)), return_exceptions=True)
        assert all(isinstance(answer, EngineFailed) for answer in crowd)
        await until(lambda: not runtime._subrequests._withdraws)
        with pytest.raises(EngineFailed, match=r"one too many in a row"):
            await told(runtime, "endless", 0)


HEIRS = """
async def infer(self, inputs):
    with NOTES.open("a") as notes:
        notes.write(".")
    self.left = asyncio.create_task(self.ask_again(inputs["x"]))
    yield {"y": inputs["x"]}

async def ask_again(self, x):
    await asyncio.sleep(0.02)  # the request is over by now
    async for _ in self.models["heirs"].stream_async({"x": x}):
        pass
"""


async def test_what_a_request_leaves_behind_asks_no_longer_in_a_row_than_itself(shop: Shop, write: WriteModel) -> None:
    shop.put("double", 2)
    write("heirs", HEIRS)
    async with shop.open() as runtime:
        notes = shop.folder / "heirs" / "1" / "notes"
        assert await told(runtime, "heirs", 3) == [3]
        await until(lambda: len(notes.read_text()) >= 33)
        await asyncio.sleep(0.5)
        assert len(notes.read_text()) == 33
        assert not runtime._subrequests._withdraws


RECURSION = """
async def infer(self, inputs):
    x = inputs["x"]
    if x[0, 0] > 0:
        async for answer in self.models["recursion"].stream_async({"x": x - 1}):
            yield {"y": answer["y"] + x}
    else:
        yield {"y": x}
"""


async def test_a_model_may_ask_itself_as_long_as_it_ends(shop: Shop, write: WriteModel) -> None:
    shop.put("double", 2)
    write("recursion", RECURSION)
    async with shop.open() as runtime:
        assert await told(runtime, "recursion", 31) == [sum(range(32))]
        assert await told(runtime, "recursion", 32) == [sum(range(33))]
        with pytest.raises(EngineFailed, match=r"one too many in a row: 32 models have asked each other"):
            await told(runtime, "recursion", 33)


async def test_the_model_of_the_reference_page_shouts_what_the_other_counts(shop: Shop) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "python-models.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for name, word in (("shout", "class Shout"), ("countdown", "class Countdown")):
        [code] = [block for block in blocks if word in block]
        (shop.folder / name / "1").mkdir(parents=True)
        (shop.folder / name / "1" / "model.py").write_text(code)
    async with shop.open() as runtime:
        served = runtime.resolve("shout")
        assert isinstance(served, Streaming)
        request = InferRequest(model_name="shout", inputs={"from": np.array([3], np.int32)})
        said: asyncio.Queue[StreamedResponse] = asyncio.Queue()
        served.stream(request, *served.check_stream(request), time.monotonic_ns(), said.put_nowait)
        answers = [(await asyncio.wait_for(said.get(), 20)).answer for _ in range(4)]
        words = [answer.outputs["left"][0] for answer in answers if isinstance(answer, InferResponse)]
        assert words == [b"3!", b"2!", b"1!"]
        assert answers[3] is None
