"""Ensembles: graphs of real models from a real repository, and one against the models asked one by one."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.models import fails_when_run, identity, save, two_inputs_add_sub
from tests.runtime.shop import Shop, ask, lines, reason
from tests.runtime.test_sequences import add, sums
from tests.serving import Gate, eventually, serving

from farthing.config.model import EnsembleScheduling, EnsembleStep
from farthing.config.pipeline import PipelineGraph, pipeline_of, reads_of
from farthing.config.server import AdmissionLimits, ModelControl
from farthing.runtime.graph import Graph
from farthing.runtime.runtime import Runtime
from farthing.types.errors import DeadlineExceeded, EngineFailed, InvalidInput, LoadFailed, Overloaded, Unavailable
from farthing.types.requests import InferRequest, InferResponse, RequestedOutput

Step = tuple[str, Mapping[str, str], Mapping[str, str]]


def tensors(kind: str, names: Mapping[str, str], dims: str) -> str:
    listed = ", ".join(
        f'{{ name: "{name}" data_type: {datatype} dims: [ {dims} ] }}' for name, datatype in names.items()
    )
    return f"{kind} [ {listed} ]\n"


def ensemble(
    inputs: Mapping[str, str], outputs: Mapping[str, str], *steps: Step, dims: str = "1", rows_max: int = 16
) -> str:
    """An ensemble's config.pbtxt."""
    text = (
        f'platform: "ensemble"\nmax_batch_size: {rows_max}\n'
        + tensors("input", inputs, dims)
        + tensors("output", outputs, dims)
    )
    told = []
    for model, reads, makes in steps:
        maps = [f'input_map {{ key: "{name}" value: "{tensor}" }}' for name, tensor in reads.items()]
        maps += [f'output_map {{ key: "{name}" value: "{tensor}" }}' for name, tensor in makes.items()]
        told.append(f'{{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}')
    return f"{text}ensemble_scheduling {{ step [ {', '.join(told)} ] }}"


CHAIN = ensemble(
    {"x": "TYPE_FP32"}, {"y": "TYPE_FP32"}, ("two", {"x": "x"}, {"y": "t"}), ("three", {"x": "t"}, {"y": "y"})
)
"""y = x * 2 * 3."""


@pytest.fixture
def chain(shop: Shop) -> Shop:
    shop.put("two", 2)
    shop.put("three", 3)
    shop.configure("chain", CHAIN)
    (shop.folder / "chain" / "1").mkdir()
    return shop


async def test_a_chain_gives_what_its_models_give_one_after_the_other(chain: Shop) -> None:
    async with chain.open() as runtime:
        assert await ask(runtime, "chain") == 6
        assert lines(runtime) == [("chain", "1", "READY"), ("three", "1", "READY"), ("two", "1", "READY")]
        spec = runtime.resolve("chain").spec_now()
        assert (spec.platform, spec.batch_rows_max) == ("ensemble", 16)
        (statistics,) = runtime.statistics("chain")
        assert (statistics.inference_count, statistics.inference_stats.success.count) == (1, 1)
        assert runtime.statistics("two")[0].inference_count == 1
        with pytest.raises(InvalidInput, match="batch-size must be <= 16"):
            await runtime.infer(InferRequest(model_name="chain", inputs={"x": np.ones((17, 1), np.float32)}))


async def test_requests_that_are_in_a_step_at_once_share_its_batch(chain: Shop) -> None:
    async with chain.open() as runtime:
        asked = [
            runtime.infer(InferRequest(model_name="chain", inputs={"x": np.full((1, 1), value, np.float32)}))
            for value in range(64)
        ]
        answers = await asyncio.gather(*asked)
        assert [answer.outputs["y"].item() for answer in answers] == [6 * value for value in range(64)]
        for name in ("two", "three"):
            (statistics,) = runtime.statistics(name)
            assert statistics.inference_count == 64
            assert statistics.execution_count < 64


INT32 = "TYPE_INT32"


async def test_a_diamond_fans_out_and_in_and_only_the_steps_an_answer_needs_run(shop: Shop) -> None:
    for name in ("sums", "again"):
        save(shop.folder / name, two_inputs_add_sub(columns=1))
    save(shop.folder / "left", identity("INT32", ("batch", 1)))
    save(shop.folder / "right", identity("INT32", ("batch", 1)))
    steps: Sequence[Step] = (
        ("again", {"INPUT0": "l", "INPUT1": "r"}, {"OUTPUT0": "twice a", "OUTPUT1": "twice b"}),
        ("left", {"x": "sum"}, {"y": "l"}),
        ("right", {"x": "difference"}, {"y": "r"}),
        ("sums", {"INPUT0": "a", "INPUT1": "b"}, {"OUTPUT0": "sum", "OUTPUT1": "difference"}),
    )
    outputs = dict.fromkeys(("twice a", "sum", "twice b"), INT32)
    shop.configure("diamond", ensemble({"a": INT32, "b": INT32}, outputs, *steps))
    async with shop.open() as runtime:
        inputs = {"a": np.array([[5], [7]], np.int32), "b": np.array([[1], [2]], np.int32)}
        answer = await runtime.infer(InferRequest(model_name="diamond", inputs=inputs, id="d"))
        assert {name: value[:, 0].tolist() for name, value in answer.outputs.items()} == {
            "twice a": [10, 14],
            "sum": [6, 9],
            "twice b": [2, 4],
        }
        assert (answer.id, answer.model_name) == ("d", "diamond")
        asked = (RequestedOutput("sum"),)
        answer = await runtime.infer(InferRequest(model_name="diamond", inputs=inputs, outputs=asked))
        assert list(answer.outputs) == ["sum"]
        assert runtime.statistics("again")[0].inference_count == 2, "the second request had no need of it"


SCALED = """
    from farthing import Tensor

    class Scaled:
        inputs = [Tensor("x", "FP32", [-1, 2]), Tensor("scale", "FP32", [2], optional=True)]
        outputs = [Tensor("y", "FP32", [-1, 2])]
        max_batch_size = 0

        def infer(self, inputs):
            return {"y": inputs["x"] * inputs.get("scale", 3)}
"""


async def test_an_ensemble_may_be_a_step_and_what_is_left_out_may_be_optional(shop: Shop) -> None:
    (shop.folder / "scaled" / "1").mkdir(parents=True)
    (shop.folder / "scaled" / "1" / "model.py").write_text(dedent(SCALED))
    steps: Sequence[Step] = (("scaled", {"x": "x", "scale": "scale"}, {"y": "y"}),)
    config = ensemble({"x": "TYPE_FP32"}, {"y": "TYPE_FP32"}, *steps, dims="-1, 2", rows_max=0)
    scale = '{ name: "scale" data_type: TYPE_FP32 dims: [ 2 ] optional: true }, { name: "x"'
    shop.configure("inner", config.replace('{ name: "x"', scale, 1))
    shop.configure("outer", config.replace('"scaled"', '"inner"').replace('{ name: "x"', scale, 1))
    async with shop.open() as runtime:
        assert runtime.not_ready() == ""
        given = {"x": np.ones((1, 2), np.float32)}
        answer = await runtime.infer(InferRequest(model_name="outer", inputs=given))
        assert answer.outputs["y"].tolist() == [[3, 3]]
        given["scale"] = np.array([5, 7], np.float32)
        answer = await runtime.infer(InferRequest(model_name="outer", inputs=given))
        assert answer.outputs["y"].tolist() == [[5, 7]]


async def test_a_step_that_has_nothing_to_run_answers_at_once_and_the_others_still_run(shop: Shop) -> None:
    """`same` gives its input back: an output that no step makes."""
    shop.put("two", 2)
    shop.configure(
        "same", ensemble({"x": "TYPE_FP32"}, {"x": "TYPE_FP32", "y": "TYPE_FP32"}, ("two", {"x": "x"}, {"y": "y"}))
    )
    outputs = {"a": "TYPE_FP32", "c": "TYPE_FP32"}
    steps: Sequence[Step] = (
        ("same", {"x": "x"}, {"x": "a"}),
        ("two", {"x": "x"}, {"y": "b"}),
        ("two", {"x": "a"}, {"y": "c"}),
    )
    shop.configure("outer", ensemble({"x": "TYPE_FP32"}, {**outputs, "b": "TYPE_FP32"}, *steps))
    async with shop.open() as runtime:
        inputs = {"x": np.full((1, 1), 5, np.float32)}
        answer = await asyncio.wait_for(runtime.infer(InferRequest(model_name="outer", inputs=inputs)), 10)
        assert {name: value.item() for name, value in answer.outputs.items()} == {"a": 5, "c": 10, "b": 10}


async def test_a_step_may_keep_states_by_the_sequence_of_the_request(shop: Shop) -> None:
    shop.put("two", 2)
    sums(shop)
    steps: Sequence[Step] = (("two", {"x": "x"}, {"y": "t"}), ("sum", {"x": "t"}, {"y": "y"}))
    shop.configure("told", ensemble({"x": "TYPE_FP32"}, {"y": "TYPE_FP32"}, *steps))
    async with shop.open() as runtime:
        alone = [await add(runtime, 5, "s", 2), await add(runtime, 5, "", 4), await add(runtime, 5, "e", 6)]
        for number, expected in enumerate(alone):
            flags = {"sequence_id": 5, "sequence_start": number == 0, "sequence_end": number == 2}
            inputs = {"x": np.full((1, 1), number + 1, np.float32)}
            answer = await runtime.infer(InferRequest(model_name="told", inputs=inputs, parameters=flags))
            assert answer.outputs["y"].item() == expected
        with pytest.raises(InvalidInput, match="in ensemble step `sum`"):
            await ask(runtime, "told")


async def test_a_step_that_fails_fails_the_request_and_says_where(shop: Shop) -> None:
    shop.put("two", 2)
    save(shop.folder / "bad", fails_when_run())
    steps: Sequence[Step] = (("two", {"x": "x"}, {"y": "t"}), ("bad", {"x": "t"}, {"y": "y"}))
    text = ensemble({"x": "TYPE_FP32"}, {"y": "TYPE_FP32"}, *steps).replace(
        "dims: [ 1 ] } ]\nensemble", "dims: [ 2 ] } ]\nensemble"
    )
    shop.configure("chain", text)
    async with shop.open() as runtime:
        with pytest.raises(EngineFailed, match="in ensemble step `bad`"):
            await ask(runtime, "chain")
        (statistics,) = runtime.statistics("chain")
        assert (statistics.inference_stats.fail.count, statistics.inference_stats.success.count) == (1, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CHAIN.replace('"three"', '"ghost"'), "'ghost' is not found"),
        (CHAIN.replace('key: "y" value: "t"', 'key: "z" value: "t"'), "model `two` has no output `z`; it has: y"),
        (CHAIN.replace('key: "x" value: "t"', 'key: "z" value: "t"'), "model `three` has no input `z`; it has: x"),
        (CHAIN.replace("TYPE_FP32", "TYPE_INT32"), "the input is INT32, FP32 is wanted"),
        (CHAIN.replace("dims: [ 1 ]", "dims: [ 1, 1 ]"), r"has shape \[-1, 1, 1\], \[-1, 1\] is wanted"),
        (CHAIN.replace('"three"', '"chain"'), "'chain' version 1 is not|'chain' has no available"),
        ('platform: "ensemble" ensemble_scheduling { step [] }', "has no step"),
    ],
)
async def test_what_cannot_work_is_said_when_it_is_loaded(chain: Shop, text: str, words: str) -> None:
    chain.configure("chain", text)
    async with chain.open() as runtime:
        with pytest.raises(Unavailable, match=r"cannot be loaded|not at ready state"):
            await ask(runtime, "chain")
        assert re.search(words, reason(runtime, "chain"))
        assert await ask(runtime, "two") == 2


async def test_an_ensemble_that_comes_to_lead_back_to_itself_is_not_taken(chain: Shop) -> None:
    async with chain.open(ModelControl.EXPLICIT, load_models=("*",)) as runtime:
        chain.configure("two", CHAIN.replace('"two"', '"chain"'))
        (chain.folder / "two" / "1" / "model.onnx").unlink()
        with pytest.raises(LoadFailed, match="lead back to itself"):
            await runtime.load("two")
        assert await ask(runtime, "chain") == 6, "the models that served go on"


async def test_loading_an_ensemble_loads_its_models_and_losing_one_turns_readiness_red(chain: Shop) -> None:
    async with chain.open(ModelControl.EXPLICIT) as runtime:
        await runtime.load("chain")
        assert await ask(runtime, "chain") == 6
        await runtime.unload("three")
        with pytest.raises(Unavailable, match="three"):
            await ask(runtime, "chain")
        assert "its step `three`" in runtime.not_ready()
        await runtime.load("three")
        assert await ask(runtime, "chain") == 6
        await runtime.unload("chain")
        assert await ask(runtime, "two") == 2


async def test_a_model_that_comes_later_completes_an_ensemble_in_poll_mode(chain: Shop) -> None:
    source = (chain.folder / "three" / "1" / "model.onnx").read_bytes()
    (chain.folder / "three" / "1" / "model.onnx").unlink()
    async with chain.open(ModelControl.POLL) as runtime:
        assert "three" in runtime.not_ready() + reason(runtime, "chain")
        (chain.folder / "three" / "1" / "model.onnx").write_bytes(source)
        for _ in range(3):  # a file must be seen unchanged once
            await runtime.look_again()
        assert await ask(runtime, "chain") == 6


GATED = ensemble(
    {"x": "TYPE_FP32"}, {"y": "TYPE_FP32"}, ("gate", {"x": "x"}, {"y": "t"}), ("two", {"x": "t"}, {"y": "y"})
)


def test_who_leaves_or_is_late_or_too_many_is_not_run_and_what_runs_is_answered_on_the_way_out(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    shop.put("two", 2)
    shop.configure("gated", GATED)
    gate = Gate(tmp_path / "gate")
    with serving(shop.folder, gate.path, admission=AdmissionLimits(queue_requests_max=2)) as live:
        runtime: Runtime = live.server.runtime  # type: ignore[union-attr]

        async def begin(value: float, **more: int) -> "asyncio.Task[InferResponse]":
            inputs = {"x": np.full((1, 1), value, np.float32)}
            return asyncio.ensure_future(runtime.infer(InferRequest(model_name="gated", inputs=inputs, **more)))  # type: ignore[arg-type]

        async def result(task: "asyncio.Task[InferResponse]") -> InferResponse:
            return await task

        first = live.run(begin(1))
        eventually(lambda: gate.seen() == [1])
        second = live.run(begin(2))
        with pytest.raises(Overloaded, match="as many as it may"):
            live.run(result(live.run(begin(3))))
        live.on_loop(second.cancel)
        late = live.run(begin(4, timeout_us=20_000))
        with pytest.raises(DeadlineExceeded):
            live.run(result(late))
        gate.open()
        assert live.run(result(first)).outputs["y"].item() == 2
        assert 2 not in gate.seen()
        assert live.metric("nv_inference_request_failure", model="gated", reason="CANCELED") == 1


# -- the graph alone -------------------------------------------------------------------------------------------------


@st.composite
def pipelines(draw: st.DrawFn) -> PipelineGraph:
    """The same, where some steps run for every item of some of what they read, and give ragged pairs."""
    scheduling, outputs = draw(graphs())
    graph = pipeline_of(scheduling, ("x",), tuple(outputs))
    steps = []
    for step in graph.step:
        names = sorted(step.inputs)
        each = draw(st.lists(st.sampled_from(names), unique=True))
        makes = {
            name: (tensor, f"{tensor}.shapes") if each and draw(st.booleans()) else tensor
            for name, tensor in step.outputs.items()
        }
        whole = {name: tensor for name, tensor in step.inputs.items() if name not in each}
        steps.append(replace(step, inputs=whole, each={name: step.inputs[name] for name in each}, outputs=makes))
    return replace(graph, step=tuple(steps))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[EnsembleScheduling, list[str]]:
    """Steps that read what is there already, in any order, and some of what there is as outputs."""
    there = ["x"]
    steps = []
    for place in range(draw(st.integers(1, 8))):
        reads = draw(st.lists(st.sampled_from(there), min_size=1, max_size=3, unique=True))
        makes = [f"{place}.{at}" for at in range(draw(st.integers(1, 2)))]
        steps.append(
            EnsembleStep(
                model_name=f"m{place}",
                input_map={f"i{at}": tensor for at, tensor in enumerate(reads)},
                output_map={f"o{at}": tensor for at, tensor in enumerate(makes)},
            )
        )
        there += makes
    outputs = draw(st.lists(st.sampled_from(there[1:]), min_size=1, unique=True))
    return EnsembleScheduling(step=tuple(draw(st.permutations(steps)))), outputs


@settings(max_examples=200, deadline=None)
@given(pipelines())
def test_whatever_the_graph_every_output_is_made_and_no_step_runs_for_nothing(
    pipeline: PipelineGraph,
) -> None:
    graph = Graph(pipeline)
    plan = graph.plan_for(graph.outputs)
    needed = plan.after.keys()
    there, left, ready = {"x"}, dict(plan.waits), list(plan.first)
    while ready:
        place = ready.pop()
        assert set(graph.steps[place].reads()) <= there
        there.update(graph.steps[place].made())
        for later in plan.after[place]:
            left[later] -= 1
            if not left[later]:
                del left[later]
                ready.append(later)
    assert not left
    assert graph.outputs <= there
    read = graph.outputs.union(*(reads_of(pipeline.step[place]) for place in needed))
    for place in needed:
        assert any(tensor in read for tensor in graph.steps[place].made())
        assert len(graph.steps[place].asked) <= len(pipeline.step[place].outputs)
