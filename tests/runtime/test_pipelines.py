"""Pipelines of real models: items out and in, ragged ones, none at all, bad ones, and who leaves."""

import asyncio
import json
import re
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from tests.models import fails_when_run, identity, save
from tests.runtime.shop import Shop, reason
from tests.serving import Gate, eventually, serving

from farthing.config.model import config_json
from farthing.config.server import ModelControl
from farthing.repository.wire import to_message
from farthing.runtime.runtime import Runtime
from farthing.types.errors import DeadlineExceeded, EngineFailed, InvalidInput, Unavailable
from farthing.types.requests import InferRequest, InferResponse
from farthing.types.tensors import Tensor

CUT = """
    import numpy as np
    from farthing import Tensor

    class Cut:  # a text to its words, as codes; and how long each is
        inputs = [Tensor("text", "BYTES", [1])]
        outputs = [Tensor("code", "FP32", [-1]), Tensor("shape", "INT64", [-1, 1]), Tensor("length", "FP32", [-1, 1])]
        max_batch_size = 0

        def infer(self, inputs):
            words = inputs["text"][0].split()
            lengths = np.array([[len(word)] for word in words], np.int64).reshape(-1, 1)
            return {
                "code": np.frombuffer(b"".join(words), np.uint8).astype(np.float32),
                "shape": lengths,
                "length": lengths.astype(np.float32),
            }
"""
WORDS = """
    inputs = ["text"]
    outputs = ["codes", "sizes", "double"]

    [[step]]
    model = "cut"
    inputs = { text = "text" }
    outputs = { code = "cut codes", shape = "cut sizes", length = "lengths" }

    [[step]]
    model = "same"
    each = { x = ["cut codes", "cut sizes"] }
    outputs = { y = ["codes", "sizes"] }

    [[step]]
    model = "two"
    each = { x = "lengths" }
    outputs = { y = "double" }
    items_max = 50
"""


@pytest.fixture
def words(shop: Shop) -> Shop:
    shop.put("two", 2)
    save(shop.folder / "same", identity("FP32", ("batch", "columns")))
    python(shop, "cut", CUT)
    pipeline(shop, "words", WORDS)
    return shop


def python(shop: Shop, name: str, text: str) -> None:
    (shop.folder / name / "1").mkdir(parents=True)
    (shop.folder / name / "1" / "model.py").write_text(dedent(text))


def pipeline(shop: Shop, name: str, text: str) -> None:
    (shop.folder / name).mkdir(exist_ok=True)
    (shop.folder / name / "pipeline.toml").write_text(dedent(text))


async def split(runtime: Runtime, text: bytes, **more: int) -> InferResponse:
    return await runtime.infer(InferRequest(model_name="words", inputs={"text": np.array([text], object)}, **more))  # type: ignore[arg-type]


async def test_items_of_different_shapes_go_out_and_come_back_in_order(words: Shop) -> None:
    async with words.open() as runtime:
        answer = await split(runtime, b"a page of text")
        assert answer.outputs["codes"].astype(np.uint8).tobytes() == b"apageoftext"
        assert answer.outputs["sizes"].tolist() == [[1], [4], [2], [4]]
        assert answer.outputs["double"].tolist() == [[2], [8], [4], [8]]
        (statistics,) = runtime.statistics("words")
        assert statistics.inference_count == 1
        assert runtime.statistics("two")[0].inference_count == 4


async def test_no_items_give_empty_outputs_of_the_right_kind(words: Shop) -> None:
    async with words.open() as runtime:
        outputs = (await split(runtime, b"")).outputs
        kinds = {name: (tensor.shape, tensor.dtype.name) for name, tensor in outputs.items()}
        assert kinds == {"codes": ((0,), "float32"), "sizes": ((0, 1), "int64"), "double": ((0, 1), "float32")}
        assert runtime.statistics("two")[0].inference_count == 0


async def test_items_of_many_requests_share_batches_where_shapes_allow(words: Shop) -> None:
    async with words.open() as runtime:
        asked = [b" ".join([b"x" * (1 + place % 3), b"yy"] * 4) for place in range(24)]
        answers = await asyncio.gather(*(split(runtime, text) for text in asked))
        for text, answer in zip(asked, answers, strict=True):
            assert answer.outputs["codes"].astype(np.uint8).tobytes() == text.replace(b" ", b"")
        for name in ("two", "same"):
            (statistics,) = runtime.statistics(name)
            assert statistics.inference_count == 24 * 8
            assert statistics.execution_count < 24 * 8


async def test_tensors_are_those_of_the_models_and_clients_of_triton_see_an_ensemble(words: Shop) -> None:
    async with words.open() as runtime:
        spec = runtime.resolve("words").spec
        assert [(t.name, t.datatype, t.shape) for t in spec.inputs] == [("text", "BYTES", (1,))]
        assert [(t.name, t.datatype, t.shape) for t in spec.outputs] == [
            ("codes", "FP32", (-1,)),
            ("sizes", "INT64", (-1, 1)),
            ("double", "FP32", (-1, 1)),
        ]
        assert (spec.platform, spec.batch_rows_max) == ("ensemble", 0)
        config = runtime.resolve("words").config
        shown = config_json(config)
        assert [step["model_name"] for step in shown["ensemble_scheduling"]["step"]] == ["cut", "same", "two"]
        assert shown["ensemble_scheduling"]["step"][2]["input_map"] == {"x": "lengths"}
        assert json.loads(shown["parameters"]["pipeline"]["string_value"])["step"][2]["each"] == {"x": "lengths"}
        assert to_message(config).SerializeToString()


async def test_rows_pass_through_where_every_model_takes_rows(shop: Shop) -> None:
    shop.put("two", 2)
    shop.put("three", 3)
    pipeline(
        shop,
        "chain",
        """
        inputs = ["a"]
        outputs = ["b"]
        step = [
          { model = "three", inputs = { x = "t" }, outputs = { y = "b" } },
          { model = "two", inputs = { x = "a" }, outputs = { y = "t" } },
        ]
        """,
    )
    async with shop.open(ModelControl.EXPLICIT, load_models=("chain",)) as runtime:
        assert runtime.not_ready() == "", "its models are loaded with it"
        assert runtime.resolve("chain").spec.batch_rows_max == 1024
        given = np.array([[1], [2]], np.float32)
        answer = await runtime.infer(InferRequest(model_name="chain", inputs={"a": given}))
        assert answer.outputs["b"].tolist() == [[6], [12]]


async def test_a_pipeline_may_be_a_step_and_be_run_for_every_item(words: Shop) -> None:
    pipeline(
        words,
        "pages",
        """
        inputs = ["pages"]
        outputs = ["codes", "sizes"]
        [[step]]
        model = "words"
        each = { text = "pages" }
        outputs = { codes = ["codes", "sizes"] }
        """,
    )
    async with words.open() as runtime:
        given = np.array([[b"a b"], [b""], [b"c"]], object)
        answer = await runtime.infer(InferRequest(model_name="pages", inputs={"pages": given}))
        assert answer.outputs["codes"].astype(np.uint8).tobytes() == b"abc"
        assert answer.outputs["sizes"].tolist() == [[2], [0], [1]]


async def test_one_bad_item_is_the_requests_error_and_nobody_elses(words: Shop) -> None:
    save(words.folder / "bad", fails_when_run())
    pipeline(
        words,
        "words",
        WORDS.replace('"same"', '"bad"').replace('["codes", "sizes"]', '"codes"').replace('"sizes", ', ""),
    )
    async with words.open() as runtime:
        fine, bad = await asyncio.gather(
            split(runtime, b"two one"), split(runtime, b"two four one"), return_exceptions=True
        )
        assert isinstance(fine, InferResponse)
        assert fine.outputs["codes"].shape == (2, 2)
        assert isinstance(bad, EngineFailed)
        assert "in ensemble step `bad`, item 1 of 3" in bad.message
        assert runtime.statistics("words")[0].inference_stats.fail.count == 1


async def test_items_that_are_too_many_or_differ_are_refused(words: Shop) -> None:
    joined = WORDS.replace('y = ["codes", "sizes"]', 'y = "codes"').replace('"sizes", ', "")
    pipeline(words, "joined", joined)
    pipeline(
        words, "uneven", joined.replace('each = { x = "lengths" }', 'each = { x = "lengths", scale = "cut sizes" }')
    )
    async with words.open() as runtime:
        with pytest.raises(InvalidInput, match="`lengths` has 51 items; allowed: 50"):
            await split(runtime, b"w " * 51)
        with pytest.raises(EngineFailed, match=r"items of `codes` have different shapes, \[2\] and \(item 1\) \[1\]"):
            await runtime.infer(InferRequest(model_name="joined", inputs={"text": np.array([b"aa b"], object)}))
        assert "model `two` has no input `scale`" in reason(runtime, "uneven")


async def test_a_ragged_pair_from_a_client_is_taken_apart(shop: Shop) -> None:
    save(shop.folder / "same", identity("FP32", ("batch", "columns")))
    pipeline(
        shop,
        "ragged",
        """
        inputs = ["v", "s"]
        outputs = ["w"]
        step = [{ model = "same", each = { x = ["v", "s"] }, outputs = { y = ["w", "t"] } }]
        """,
    )
    async with shop.open() as runtime:
        assert [t.shape for t in runtime.resolve("ragged").spec.inputs] == [(-1,), (-1, 1)]

        async def send(values: Tensor, *sizes: int) -> Tensor:
            shapes = np.array(sizes, np.int64).reshape(-1, 1)
            asked = InferRequest(model_name="ragged", inputs={"v": values, "s": shapes})
            return (await runtime.infer(asked)).outputs["w"]

        values = np.arange(5, dtype=np.float32)
        assert (await send(values, 2, 0, 3)).tolist() == values.tolist()
        with pytest.raises(InvalidInput, match="`v` has 5 elements; the shapes in `s` hold 4"):
            await send(values, 4)


@pytest.mark.parametrize(
    ("old", "new", "words_said"),
    [
        ('model = "two"', 'model = "ghost"', "'ghost' is not found"),
        ("length = ", "width = ", r"step 0 \(`cut`\): model `cut` has no output `width`; it has: code, shape, length"),
        ('x = "lengths"', 'z = "lengths"', r"step 2 \(`two`\): model `two` has no input `z`; it has: x"),
        (
            'each = { x = "lengths" }',
            'inputs = { x = "text" }',
            r"step 0 \(`cut`\): input `text` .* reads `text`|BYTES",
        ),
        (
            '"cut codes", "cut sizes"]',
            '"cut codes", "lengths"]',
            r"step 1 \(`same`\): input `x` of model `same` reads `lengths`.* is FP32, INT64 is wanted",
        ),
        ('outputs = ["codes"', 'max_batch_size = 4\noutputs = ["codes"', "max_batch_size is 4"),
    ],
)
async def test_what_does_not_fit_is_said_with_the_file_the_step_and_the_tensor(
    words: Shop, old: str, new: str, words_said: str
) -> None:
    assert old in WORDS
    pipeline(words, "words", WORDS.replace(old, new))
    async with words.open() as runtime:
        with pytest.raises(Unavailable):
            await split(runtime, b"a")
        assert re.search(words_said, reason(runtime, "words"))
        assert "words/pipeline.toml: " in reason(runtime, "words")


GATED = """
    inputs = ["x"]
    outputs = ["y"]
    max_inflight_requests = 6
    step = [{ model = "gate", each = { x = "x" }, outputs = { y = "y" } }]
"""


def test_who_leaves_or_is_late_takes_all_items_along(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    pipeline(shop, "gated", GATED)
    gate = Gate(tmp_path / "gate")
    with serving(shop.folder, gate.path) as live:
        runtime: Runtime = live.server.runtime  # type: ignore[union-attr]

        async def begin(values: list[float], **more: int) -> "asyncio.Task[InferResponse]":
            inputs = {"x": np.array(values, np.float32).reshape(-1, 1)}
            return asyncio.ensure_future(runtime.infer(InferRequest(model_name="gated", inputs=inputs, **more)))  # type: ignore[arg-type]

        async def result(task: "asyncio.Task[InferResponse]") -> InferResponse:
            return await task

        waiting = runtime.resolve("gate").statistics
        first = live.run(begin([1]))
        eventually(lambda: gate.seen() == [1])
        leaves = live.run(begin([2.0] * 20))
        eventually(lambda: live.on_loop(lambda: waiting.pending_requests) == 6)  # of 20, as many as may be under way
        live.on_loop(leaves.cancel)
        eventually(lambda: live.on_loop(lambda: waiting.pending_requests) == 0)
        late = live.run(begin([3.0] * 20, timeout_us=20_000))
        with pytest.raises(DeadlineExceeded, match=r"item \d+ of 20"):
            live.run(result(late))
        eventually(lambda: live.on_loop(lambda: waiting.pending_requests) == 0)
        gate.open()
        assert live.run(result(first)).outputs["y"].tolist() == [[1]]
        assert gate.seen() == [1], "nothing of those who left was run"
        answer = live.run(result(live.run(begin([float(value) for value in range(30)]))))
        assert answer.outputs["y"][:, 0].tolist() == list(range(30))
