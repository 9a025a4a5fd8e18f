"""Pipelines' descriptions: what is refused and how it is said, and that Python writes what TOML does."""

import tomllib
from textwrap import dedent
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.config.pipeline import PipelineGraph, graph_faults, parse_pipeline, pipeline_of, scheduling_of
from farthing.config.pipeline_builder import Pipeline, each
from farthing.types.errors import LoadFailed

PAGE = """
    inputs = ["page"]
    outputs = ["text"]

    [[step]]
    model = "cut"
    inputs = { page = "page" }
    outputs = { values = "values", shapes = "shapes" }

    [[step]]
    model = "read"
    version = 2
    each = { line = ["values", "shapes"] }
    outputs = { text = "text" }
    items_max = 10
"""


def parsed(text: str) -> PipelineGraph:
    return parse_pipeline(tomllib.loads(dedent(text)), source="p.toml")


def test_a_short_file_says_all_there_is() -> None:
    graph = parsed(PAGE)
    assert [step.model for step in graph.step] == ["cut", "read"]
    assert graph.step[1].each == {"line": ("values", "shapes")}
    assert (graph.step[1].version, graph.step[1].items_max, graph.step[0].items_max) == (2, 10, 1024)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('outputs = ["text"]', 'outputs = ["txt"]', "output `txt` is made by no step; did you mean `text`?"),
        ('outputs = ["text"]', 'outputs = ["text", "page"]', "output `page` is an input"),
        ('inputs = ["page"]', 'inputs = ["page", "other"]', "input `other` is read by no step"),
        ('inputs = ["page"]', 'inputs = ["page", "page"]', "input `page` is listed twice"),
        ('inputs = ["page"]', "", "missing required field `inputs`"),
        ("items_max = 10", "items_max = 0", r"- at `\$.step\[1\].items_max`"),
        (
            "items_max = 10",
            "item_max = 10",
            r"unknown field `item_max`; did you mean `items_max`\? - at `\$.step\[1\]`",
        ),
        ("[[step]]", "queue = 3\n[[step]]", r"unknown field `queue`.* - at `\$`"),
        ('"values", "shapes"]', '"values", "shape"]', r"step 1 \(`read`\) reads `shape`, which is no input.*`shapes`"),
        ('"values", "shapes"]', '"values"]', r"length >= 2 - at `\$.step\[1\].each"),
        ('text = "text"', 'text = "values"', r"step 1 \(`read`\) makes `values`, which step 0 \(`cut`\) makes already"),
        ('text = "text"', 'text = "page"', r"step 1 \(`read`\) makes `page`, which is an input"),
        ('page = "page"', 'page = "page", a = "text"', r"steps wait for each other: . \(`(cut|read)`\) -> "),
        ('values = "values"', 'values = ["values", "v"]', "which only a step with `each` makes"),
        ("version = 2", 'inputs = { line = "page" }', "`line` stands in `inputs` and in `each`"),
        ("each = {", "each_ = {", "unknown field"),
        ('inputs = { page = "page" }', "", r"step 0 \(`cut`\) reads nothing"),
        ('outputs = { text = "text" }', "", r"step 1 \(`read`\) makes nothing"),
    ],
)
def test_what_makes_no_sense_is_said_with_the_file_the_step_and_the_tensor(old: str, new: str, words: str) -> None:
    assert old in PAGE
    with pytest.raises(LoadFailed, match=words) as caught:
        parsed(PAGE.replace(old, new, 1))
    assert caught.value.message.startswith("p.toml: ")
    assert caught.value.hint


def test_python_writes_the_same_graph() -> None:
    pipeline = Pipeline()
    cut = pipeline.step("cut", page=pipeline.input("page"))
    read = pipeline.step("read", {"line": each(cut["values"], cut["shapes"])}, version=2, items_max=10)
    pipeline.output("text", read["text"])
    graph = parse_pipeline(pipeline.written(), source="p.py")
    assert graph.step[1].each == {"line": ("0.values", "0.shapes")}
    assert graph.step[1].outputs == {"text": "text"}
    assert scheduling_of(graph).step[1].output_map == {"text": "text"}
    assert [(step.model, step.version, step.items_max) for step in graph.step] == [
        (step.model, step.version, step.items_max) for step in parsed(PAGE).step
    ]


def test_a_step_may_name_the_repository_of_its_model() -> None:
    pipeline = Pipeline()
    pipeline.output("y", pipeline.step("net", x=pipeline.input("x"), namespace="/models/a")["y"])
    [step] = parse_pipeline(pipeline.written(), source="p.py").step
    assert (step.model, step.namespace) == ("net", "/models/a")


def test_ragged_items_pass_from_step_to_step_in_python_too() -> None:
    pipeline = Pipeline(max_inflight_requests=3)
    lines = pipeline.step("cut", line=each(pipeline.input("lines"))).ragged("y")
    last = pipeline.step("read", line=each(lines))
    pipeline.output("values", lines.values)
    pipeline.output("text", last["text"])
    graph = parse_pipeline(pipeline.written(), source="p.py")
    assert graph.step[0].outputs == {"y": ("values", "0.y.shapes")}
    assert graph.step[1].each == {"line": ("values", "0.y.shapes")}
    assert graph.max_inflight_requests == 3


def test_mistakes_in_python_are_told_where_they_are_made() -> None:
    pipeline, other = Pipeline(), Pipeline()
    page = pipeline.input("page")
    with pytest.raises(TypeError, match="`page` is a str; expected a tensor"):
        pipeline.step("cut", page="page")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another pipeline"):
        other.step("cut", page=page)
    with pytest.raises(ValueError, match="an input of the pipeline"):
        pipeline.output("page", page)
    cut = pipeline.step("cut", page=each(page))
    pipeline.output("text", cut["text"])
    with pytest.raises(ValueError, match="the same tensor"):
        pipeline.output("again", cut["text"])
    with pytest.raises(ValueError, match="both as one tensor and as ragged items"):
        cut.ragged("text")


NAMES = st.sampled_from(["a", "b", "c", "d"])
STEPS = st.fixed_dictionaries(
    {"model": NAMES},
    optional={
        "inputs": st.dictionaries(NAMES, NAMES, max_size=2),
        "each": st.dictionaries(NAMES, NAMES | st.lists(NAMES, min_size=1, max_size=3), max_size=2),
        "outputs": st.dictionaries(NAMES, NAMES | st.lists(NAMES, min_size=2, max_size=2), max_size=2),
        "items_max": st.integers(-1, 5),
    },
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda v: st.lists(v) | st.dictionaries(st.text(max_size=5), v),
)
ANYTHING = st.fixed_dictionaries(
    {
        "inputs": st.lists(NAMES, max_size=3) | JSON,
        "outputs": st.lists(NAMES, max_size=3) | JSON,
        "step": st.lists(STEPS | JSON, max_size=4) | JSON,
    }
)


@settings(max_examples=150, deadline=None)
@given(ANYTHING | JSON)
def test_whatever_is_written_there_is_a_sound_graph_or_an_error_with_a_hint(values: Any) -> None:
    try:
        graph = parse_pipeline(values, source="p.toml")
    except LoadFailed as error:
        said = error.message
    else:
        said = ""
    if said:
        assert said.startswith("p.toml: ")
        return
    assert not list(graph_faults(graph))
    again = parse_pipeline(msgspec.json.decode(msgspec.json.encode(graph)), source="p.toml")
    assert again == graph
    if not any(step.each for step in graph.step):
        as_ensemble = pipeline_of(scheduling_of(graph), graph.inputs, graph.outputs)
        assert [step.inputs for step in as_ensemble.step] == [step.inputs for step in graph.step]
