"""Sequences of real models through the whole runtime: Silero VAD hears thousands of calls at once."""

import asyncio
import random

import numpy as np
import pytest
from onnx import helper
from tests.models import model, running_sum, save, tensor_info
from tests.runtime.shop import Shop, settle
from tests.runtime.voices import CHUNK, CONFIG, CONTEXT, silero, sounds, streaming

from farthing.config.server import AdmissionLimits, ModelControl
from farthing.engines.onnxruntime import OnnxRuntime
from farthing.runtime.runtime import Runtime
from farthing.types.errors import InvalidInput, NotFound, Overloaded
from farthing.types.requests import InferRequest, Parameter
from farthing.types.tensors import Tensor

SUMS = """
max_batch_size: 4
sequence_batching {
  max_sequence_idle_microseconds: %d
  %s
  control_input [ { name: "start" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
                  { name: "id" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 } ] } ]
  state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ 1 ] } ]
}
"""


async def send(runtime: Runtime, model: str, parameters: dict[str, Parameter], **inputs: Tensor) -> dict[str, Tensor]:
    answer = await runtime.infer(InferRequest(model_name=model, inputs=inputs, parameters=parameters))
    return dict(answer.outputs)


def step(sequence_id: int | str, number: int, count: int) -> dict[str, Parameter]:
    return {"sequence_id": sequence_id, "sequence_start": number == 0, "sequence_end": number == count - 1}


async def add(runtime: Runtime, sequence_id: int | str, flags: str = "", x: float = 1) -> float:
    parameters: dict[str, Parameter] = {
        "sequence_id": sequence_id,
        "sequence_start": "s" in flags,
        "sequence_end": "e" in flags,
    }
    outputs = await send(runtime, "sum", parameters, x=np.full((1, 1), x, np.float32))
    return float(outputs["y"][0, 0])


def sums(shop: Shop, strategy: str = "", idle_us: int = 1_000_000) -> None:
    save(shop.folder / "sum", running_sum())
    shop.configure("sum", SUMS % (idle_us, strategy))


GROWING = """
max_batch_size: 4
sequence_batching {
  %s
  state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ -1 ] } ]
}
"""

PYTHON = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in ("x", "start", "ready", "id")}
            values = {name: tensor.as_numpy() for name, tensor in tensors.items()}
            total = 0.0
            if values["ready"][0, 0]:
                key = values["id"][0, 0]
                assert request.correlation_id() == int(key), (request.correlation_id(), key)
                if values["start"][0, 0]:
                    assert request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
                    self.sums[key] = 0.0
                self.sums[key] += values["x"][0, 0]
                total = self.sums[key]
            y = pb_utils.Tensor("y", np.array([[total]], np.float32))
            responses.append(pb_utils.InferenceResponse([y]))
        return responses
"""


def put_python(shop: Shop) -> None:
    folder = shop.folder / "sum" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(PYTHON)


# -- Silero VAD ------------------------------------------------------------------------------------------------------


@pytest.mark.samples
@pytest.mark.parametrize(
    ("calls", "chunks", "strategy"),
    [
        (200, 20, "direct { }"),
        (2000, 4, "direct { }"),
        (2000, 4, "oldest { max_candidate_sequences: 64 }"),
        (
            200,
            20,
            "oldest { max_candidate_sequences: 256 preferred_batch_size: [ 16, 32 ] max_queue_delay_microseconds: 500 }",
        ),
    ],
)
def test_thousands_of_calls_are_each_heard_as_if_alone_to_the_bit(
    shop: Shop, calls: int, chunks: int, strategy: str
) -> None:
    """All at once through 32 rows; a chunk is sent when the one before is answered, in no order."""
    model = streaming(silero())
    save(shop.folder / "vad", model)
    shop.configure("vad", CONFIG % (32, strategy))
    heard = sounds(calls, chunks)

    async def call(runtime: Runtime, number: int, chance: random.Random) -> list[float]:
        said = []
        for at in range(chunks):
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            outputs = await send(runtime, "vad", step(number + 1, at, chunks), chunk=heard[number][at : at + 1])
            assert list(outputs) == ["speech"]
            said.append(float(outputs["speech"][0, 0]))
        return said

    async def all_calls() -> tuple[list[list[float]], int, int]:
        async with shop.open() as runtime:
            chance = random.Random(3)
            said = await asyncio.gather(*(call(runtime, number, chance) for number in range(calls)))
            [counted] = runtime.statistics("vad")
            return said, counted.inference_count, counted.execution_count

    together, rows, runs = asyncio.run(all_calls())
    assert rows == calls * chunks
    assert runs < rows / 3, "they share runs"
    executable = OnnxRuntime().load(save(shop.folder.parent / "alone", model))
    for number in range(calls):
        assert together[number] == alone(executable._run, heard[number])
    assert 0.2 < float((np.array(together) > 0.5).mean()) < 0.95


def alone(run: object, call: Tensor) -> list[float]:
    """The same by itself: one chunk after the other, its states carried by hand."""
    assert callable(run)
    state, last = np.zeros((1, 2, 128), np.float32), np.zeros((1, CONTEXT), np.float32)
    said = []
    for chunk in call:
        speech, state, last = run(
            ("speech", "state_after", "heard_after"),
            {"chunk": chunk[None], "state_before": state, "heard_before": last},
            None,
        )
        said.append(float(speech[0, 0]))
    return said


@pytest.mark.samples
def test_the_file_as_it_is_carries_its_state_too_one_request_at_a_time(shop: Shop) -> None:
    """Its state has the batch in the middle, so it cannot be shared; the client sends rate and overlap itself."""
    file = silero()
    save(shop.folder / "vad", file.read_bytes())
    shop.configure(
        "vad",
        """
        max_batch_size: 0
        sequence_batching {
          oldest { max_candidate_sequences: 50 }
          state [ { input_name: "state" output_name: "stateN" data_type: TYPE_FP32 dims: [ 2, 1, 128 ] } ]
        }
        """,
    )
    calls, chunks = 20, 10
    heard = sounds(calls, chunks)

    def overlapping(call: Tensor, at: int) -> Tensor:
        before = call[at - 1, -CONTEXT:] if at else np.zeros(CONTEXT, np.float32)
        whole: Tensor = np.concatenate([before, call[at]])[None]
        return whole

    async def call(runtime: Runtime, number: int) -> list[float]:
        said = []
        for at in range(chunks):
            outputs = await send(
                runtime,
                "vad",
                step(f"call {number}", at, chunks),
                input=overlapping(heard[number], at),
                sr=np.array(16_000),
            )
            assert list(outputs) == ["output"]
            said.append(float(outputs["output"][0, 0]))
        return said

    async def all_calls() -> list[list[float]]:
        async with shop.open() as runtime:
            return await asyncio.gather(*(call(runtime, number) for number in range(calls)))

    executable = OnnxRuntime().load(save(shop.folder.parent / "alone", file.read_bytes()))
    for number, said in enumerate(asyncio.run(all_calls())):
        state = np.zeros((2, 1, 128), np.float32)
        for at in range(chunks):
            inputs = {"input": overlapping(heard[number], at), "state": state, "sr": np.array(16_000)}
            output, state = executable._run(("output", "stateN"), inputs, None)
            assert said[at] == float(output[0, 0])
    assert heard[0].shape == (chunks, CHUNK)


# -- a small model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["direct { }", "oldest { max_candidate_sequences: 4 }"])
async def test_states_stay_with_their_sequences(shop: Shop, strategy: str) -> None:
    sums(shop, strategy)

    async with shop.open() as runtime:
        assert await asyncio.gather(*(add(runtime, n, "s", n) for n in range(1, 5))) == [1, 2, 3, 4]
        assert await asyncio.gather(*(add(runtime, n, "", 10 * n) for n in range(1, 5))) == [11, 22, 33, 44]
        assert await asyncio.gather(*(add(runtime, n, "e", 1) for n in range(1, 5))) == [12, 23, 34, 45]
        assert await add(runtime, 1, "s", 5) == 5


@pytest.mark.parametrize("strategy", ["direct { }", "oldest { max_candidate_sequences: 4 }"])
async def test_a_state_may_grow_and_those_of_other_lengths_run_apart(shop: Shop, strategy: str) -> None:
    """Each answer is everything the sequence ever sent, behind the one number of its initial state."""
    nodes = [
        helper.make_node("Concat", ["before", "x"], ["after"], axis=1),
        helper.make_node("Identity", ["after"], ["y"]),
    ]
    inputs = [tensor_info("x", "FP32", ["batch", 1]), tensor_info("before", "FP32", ["batch", "n"])]
    outputs = [tensor_info(name, "FP32", ["batch", "m"]) for name in ("y", "after")]
    save(shop.folder / "all", model(nodes, inputs, outputs))
    shop.configure("all", GROWING % strategy)

    async def say(runtime: Runtime, sequence_id: int, at: int) -> list[float]:
        parameters = step(sequence_id, at, 9)
        outputs = await send(runtime, "all", parameters, x=np.full((1, 1), 10 * sequence_id + at, np.float32))
        said: list[float] = outputs["y"][0].tolist()
        return said

    async with shop.open() as runtime:
        for at in range(5):
            late = [at - 2] if at >= 2 else []  # the third sequence begins two steps later
            said = await asyncio.gather(
                say(runtime, 1, at), say(runtime, 2, at), *(say(runtime, 3, place) for place in late)
            )
            assert said[0] == [0, *(10 + place for place in range(at + 1))]
            assert said[1] == [0, *(20 + place for place in range(at + 1))]
            assert said[2:] == [[0, *(30 + place for place in range(at - 1))] for _ in late]
        assert await say(runtime, 2, 5) == [0, *(20 + place for place in range(6))]
        assert runtime.statistics("all")[0].inference_stats.fail.count == 0


async def test_what_is_wrong_with_a_request_is_said_in_tritons_words(shop: Shop) -> None:
    sums(shop)

    async def refused(runtime: Runtime, parameters: dict[str, Parameter], told: str, rows: int = 1) -> None:
        with pytest.raises(InvalidInput, match=told):
            await send(runtime, "sum", parameters, x=np.zeros((rows, 1), np.float32))

    async with shop.open() as runtime:
        for nothing in ({}, {"sequence_id": 0}, {"sequence_id": ""}):
            none: dict[str, Parameter] = {**nothing, "sequence_start": True}
            await refused(runtime, none, "to model 'sum' must specify a non-zero or non-empty correlation ID")
        begin: dict[str, Parameter] = {"sequence_id": 5, "sequence_start": True}
        await refused(runtime, begin, "'sum' must specify batch-size 1 due to requirements of sequence batcher", 2)
        await refused(runtime, begin, "'sum' must specify batch-size 1", 0)
        await refused(
            runtime,
            {"sequence_id": 5},
            "inference request for sequence 5 to model 'sum' must specify the START flag on the first request",
        )
        await refused(runtime, {"sequence_id": "five", "sequence_start": True}, "takes the correlation ID as INT64")
        await refused(runtime, {"sequence_id": 1 << 63, "sequence_start": True}, "takes the correlation ID as INT64")
        assert runtime.statistics("sum")[0].inference_stats.fail.count == 8
        assert runtime.statistics("sum")[0].inference_count == 0


async def test_a_sequence_that_was_idle_for_too_long_has_to_start_again(shop: Shop) -> None:
    sums(shop, idle_us=30_000)

    async with shop.open() as runtime:
        await add(runtime, 1, "s")
        for _ in range(200):
            await asyncio.sleep(0.01)
            [sample] = runtime.model_samples()
            assert sample.statistics.sequences is not None
            if sample.statistics.sequences.timed_out:
                break
        assert sample.statistics.sequences.active == 0
        with pytest.raises(InvalidInput, match="must specify the START flag"):
            await add(runtime, 1)
        assert await add(runtime, 1, "s", 2) == 2


async def test_sequences_without_a_slot_wait_and_beyond_the_queue_are_turned_away(shop: Shop) -> None:
    sums(shop, "oldest { max_candidate_sequences: 1 }", idle_us=60_000_000)

    async with shop.open(admission=AdmissionLimits(queue_requests_max=3)) as runtime:
        await add(runtime, 1, "s")
        waiting = [asyncio.ensure_future(add(runtime, n, "se", n)) for n in (2, 3, 4)]
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in waiting)
        with pytest.raises(Overloaded) as full:
            await add(runtime, 5, "s")
        assert full.value.retry_after_s
        assert await add(runtime, 1) == 2, "the one in the slot goes on"
        waiting[2].cancel()
        await asyncio.sleep(0)
        assert await add(runtime, 1, "e") == 3
        assert await asyncio.gather(*waiting[:2]) == [2, 3]


async def test_loading_a_model_again_ends_its_sequences(shop: Shop) -> None:
    sums(shop)

    async with shop.open(ModelControl.EXPLICIT, load_models=("sum",)) as runtime:
        await add(runtime, 1, "s")
        await runtime.load("sum")
        with pytest.raises(InvalidInput, match="must specify the START flag"):
            await add(runtime, 1)
        await runtime.unload("sum")
        await settle(runtime)
        with pytest.raises(NotFound, match="has no available versions"):
            await add(runtime, 1, "s")


STATEFUL = {
    "triton": """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x, before = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("x", "before"))
            tensors = [pb_utils.Tensor(name, before + x) for name in ("y", "after")]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
""",
    "class": """
from farthing import Tensor

class Sum:
    inputs = [Tensor("x", "FP32", [-1, 1])]
    outputs = [Tensor("y", "FP32", [-1, 1]), Tensor("after", "FP32", [-1, 1])]
    max_batch_size = 4

    def infer(self, inputs):
        total = inputs["before"] + inputs["x"]
        return {"y": total, "after": total}
""",
}


@pytest.mark.parametrize("code", STATEFUL.values(), ids=STATEFUL)
async def test_a_python_model_may_have_its_states_kept_for_it(shop: Shop, code: str) -> None:
    put_python(shop)
    (shop.folder / "sum" / "1" / "model.py").write_text(code)
    shop.configure(
        "sum",
        """
        backend: "python"
        max_batch_size: 4
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
        instance_group [ { count: 2 kind: KIND_CPU } ]
        sequence_batching {
          oldest { max_candidate_sequences: 16 }
          state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ 1 ] } ]
        }
        """,
    )
    async with shop.open() as runtime:
        served = runtime.resolve("sum")
        assert [tensor.name for tensor in (*served.spec.inputs, *served.spec.outputs)] == ["x", "y"]
        for at in range(3):
            said = await asyncio.gather(*(add(runtime, n, "" if at else "s", n) for n in range(1, 9)))
            assert said == [n * (at + 1) for n in range(1, 9)]


async def test_a_python_model_is_told_who_starts_and_who_it_is_and_keeps_its_states_itself(shop: Shop) -> None:
    put_python(shop)
    shop.configure(
        "sum",
        """
        backend: "python"
        max_batch_size: 4
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
        instance_group [ { count: 2 kind: KIND_CPU } ]
        sequence_batching {
          direct { }
          control_input [
            { name: "start" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
            { name: "ready" control [ { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } ] },
            { name: "id" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING } ] }
          ]
        }
        """,
    )

    async with shop.open() as runtime:
        for at in range(3):
            said = await asyncio.gather(*(add(runtime, n, "" if at else "s", n) for n in range(1, 9)))
            assert said == [n * (at + 1) for n in range(1, 9)]
            odd = await asyncio.gather(*(add(runtime, n, "", 0) for n in range(1, 9, 2)))
            assert odd == said[::2], "what is padded is left alone"
