"""Models that ask a language model, in real processes: whole texts and streamed ones, errors, and who leaves."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tests.language import CONTEXT, PacedRunner, write_tiny_model
from tests.runtime.shop import Shop
from tests.runtime.test_subrequests import until

from farthing.llm.runners.reference import ReferenceRunner
from farthing.runtime.language_model import LanguageModel
from farthing.runtime.runtime import Runtime
from farthing.runtime.served_streams import ServedStreams, Stream
from farthing.types.errors import FarthingError, InvalidInput
from farthing.types.requests import InferRequest, InferResponse, StreamedResponse

NATIVE = """
import asyncio, json
import numpy as np
from farthing import Tensor

class Model:
    inputs = [Tensor("text", "BYTES", [1]), Tensor("more", "BYTES", [1])]
    outputs = [Tensor("said", "BYTES", [-1])]

    def load(self, context):
        self.tiny = context.models["tiny"]

    def asked(self, inputs):  # what else is said comes as JSON, and becomes tensors
        kinds = {bool: bool, int: np.int32, float: np.float32, str: object, list: object}
        more = json.loads(inputs["more"][0])
        return {"text_input": np.array([inputs["text"][0]], object)} | {
            name: np.array(value if isinstance(value, list) else [value], kinds[type(value)])
            for name, value in more.items()
        }

"""

WHOLE = """
def infer(self, inputs):
    return {"said": self.tiny(self.asked(inputs))["text_output"]}
"""

PIECES = """
def infer(self, inputs):
    for piece in self.tiny.stream(self.asked(inputs)):
        yield {"said": piece["text_output"]}
"""

PIECES_ASYNC = """
async def infer(self, inputs):
    async for piece in self.tiny.stream_async(self.asked(inputs)):
        yield {"said": piece["text_output"]}
"""

TRITON = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        for name in ("text", "more"):
            config.add_input({"name": name, "data_type": "TYPE_STRING", "dims": [1]})
        config.add_output({"name": "said", "data_type": "TYPE_STRING", "dims": [-1]})
        config.set_max_batch_size(0)
        config.set_model_transaction_policy({"decoupled": True})
        return config

    def execute(self, requests):
        for request in requests:
            text, more = [pb_utils.get_input_tensor_by_name(request, n).as_numpy()[0] for n in ("text", "more")]
            more = json.loads(more)
            is_whole = more.pop("is_whole", False)
            asked = pb_utils.InferenceRequest(
                model_name="tiny",
                requested_output_names=["text_output"],
                inputs=[
                    pb_utils.Tensor("text_input", np.array([text], object)),
                    pb_utils.Tensor("stream", np.array([True])),
                    pb_utils.Tensor("sampling_parameters", np.array([json.dumps(more).encode()], object)),
                    pb_utils.Tensor("max_tokens", np.array([[more["max_tokens"]]], np.int32)),
                ],
                trace=request.trace(),
            )
            sender = request.get_response_sender()
            for answer in [asked.exec()] if is_whole else asked.exec(decoupled=True):
                if answer.has_error():
                    sender.send(pb_utils.InferenceResponse(error=answer.error()))
                elif answer.output_tensors():
                    [piece] = answer.output_tensors()
                    sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("said", piece.as_numpy())]))
            sender.send(flags=FINAL)
"""

PLAIN = '{"max_tokens": 8, "temperature": 0.0, "ignore_eos": true}'


@pytest.fixture
def runners() -> Iterator[list[PacedRunner]]:
    """Those of the language models that are loaded."""
    made: list[PacedRunner] = []

    def open_runner(*args: Any) -> PacedRunner:
        made.append(PacedRunner(ReferenceRunner(args[0], blocks=args[2])))
        return made[-1]

    with mock.patch("farthing.runtime.load_language_model.open_runner", open_runner):
        yield made


@pytest.fixture
def house(shop: Shop, runners: list[PacedRunner]) -> Shop:
    write_tiny_model(shop.folder / "tiny")
    for name, methods in (("whole", WHOLE), ("pieces", PIECES), ("pieces_async", PIECES_ASYNC), ("triton", "")):
        folder = shop.folder / name / "1"
        folder.mkdir(parents=True)
        body = NATIVE + indent(dedent(methods).strip() + "\n", "    ") if methods else TRITON
        (folder / "model.py").write_text(body)
    return shop


class Talk:
    """One request, and the pieces it was told."""

    def __init__(self, runtime: Runtime, name: str, text: str = "hello", more: str = PLAIN) -> None:
        inputs = {"text": np.array([text.encode()], object), "more": np.array([more.encode()], object)}
        request = InferRequest(model_name=name, inputs=inputs)
        served = runtime.resolve(name)
        self.said: list[StreamedResponse] = []
        self.over = asyncio.Event()
        self.stream: Stream | None = None
        if isinstance(served, ServedStreams):
            checked = served.check_stream(request)
            self.stream = served.stream(request, *checked, time.monotonic_ns(), self._hear)
        else:
            hear = lambda answer: self._hear(StreamedResponse(answer, is_last=True))  # noqa: E731
            served.submit(request, *served.check(request), time.monotonic_ns(), hear)

    def _hear(self, said: StreamedResponse) -> None:
        self.said.append(said)
        if said.is_last:
            self.over.set()
        elif self.stream is not None:
            self.stream.taken()

    async def pieces(self) -> list[bytes]:
        await asyncio.wait_for(self.over.wait(), 20)
        for said in self.said:
            if isinstance(said.answer, FarthingError):
                raise said.answer
        return [said.answer.outputs["said"][0] for said in self.said if isinstance(said.answer, InferResponse)]


def language_model(runtime: Runtime) -> LanguageModel:
    served = runtime.resolve("tiny")
    assert isinstance(served, LanguageModel)
    return served


async def test_a_text_comes_whole_or_as_it_is_made_and_is_always_the_same(house: Shop) -> None:
    async with house.open() as runtime:
        [whole] = await Talk(runtime, "whole").pieces()
        assert whole
        for name in ("pieces", "pieces_async", "triton"):
            pieces = await Talk(runtime, name).pieces()
            assert b"".join(pieces) == whole, name
            assert len(pieces) > 2, name
        one = PLAIN.replace("}", ', "is_whole": true}')
        assert await Talk(runtime, "triton", more=one).pieces() == [whole]
        unstreamed = await Talk(runtime, "pieces", more=PLAIN.replace("}", ', "stream": false}')).pieces()
        assert [piece for piece in unstreamed if piece] == [whole]
        echo = PLAIN.replace("}", ', "exclude_input_in_output": false}')
        assert await Talk(runtime, "whole", more=echo).pieces() == [b"hello" + whole]
        figures = language_model(runtime).sample()
        assert figures.finished["length"] == 7, "each is a generation like any other's"
        assert figures.generated_tokens == 7 * 8


async def test_every_word_of_the_generate_extension_is_understood(house: Shop) -> None:
    async with house.open() as runtime:
        [whole] = await Talk(runtime, "whole").pieces()
        letter = next(chr(code) for code in whole[2:] if code < 128)
        stopped = json.dumps({**json.loads(PLAIN), "stop": [letter, "never this"]})
        assert await Talk(runtime, "whole", more=stopped).pieces() == [whole[: whole.index(letter.encode())]]
        warm = '{"max_tokens": 8, "temperature": 0.9, "seed": 7, "top_p": 0.8, "top_k": 40, "ignore_eos": true}'
        first = await Talk(runtime, "whole", more=warm).pieces()
        assert first == await Talk(runtime, "whole", more=warm).pieces() != [whole]


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("hello", '{"surprise": 1}', "unexpected inference input 'surprise'"),
        ("", PLAIN, "text_input: empty"),
        ("hello", '{"temperature": 9.0}', "temperature"),
        ("hello", '{"max_tokens": "eight"}', "'max_tokens' is BYTES"),
        ("hello", '{"max_tokens": ["1", "2"]}', "expected one element"),
        ("x" * (CONTEXT + 1), PLAIN, "maximum context length"),
        ("x" * 5000, PLAIN, "maximum context length"),
    ],
)
async def test_what_cannot_be_asked_is_the_askers_error(house: Shop, text: str, more: str, message: str) -> None:
    async with house.open() as runtime:
        for name in ("whole", "pieces_async"):
            with pytest.raises(InvalidInput, match=message):
                await Talk(runtime, name, text, more).pieces()


async def test_who_leaves_takes_the_generation_along(house: Shop, runners: list[PacedRunner]) -> None:
    async with house.open() as runtime:
        model = language_model(runtime)
        for name in ("pieces", "pieces_async", "triton"):
            runners[0].step_s = 0.01
            talk = Talk(runtime, name, more=PLAIN.replace("8", "400"))
            await until(lambda talk=talk: len(talk.said) >= 2)  # type: ignore[misc]
            assert model.sample().running == 1
            assert talk.stream is not None
            talk.stream.withdraw()
            await until(lambda: model.sample().running == 0)
            runners[0].step_s = 0
        assert model.sample().finished["abort"] == 3
        assert model.sample().generated_tokens < 3 * 400


async def test_many_ask_at_once_and_share_steps(house: Shop, runners: list[PacedRunner]) -> None:
    async with house.open() as runtime:
        texts = [f"text {number}" for number in range(16)]
        alone = [(await Talk(runtime, "pieces_async", text).pieces()) for text in texts]
        steps = runners[0].steps
        together = await asyncio.gather(*(Talk(runtime, "pieces_async", text).pieces() for text in texts))
        assert [b"".join(pieces) for pieces in together] == [b"".join(pieces) for pieces in alone]
        assert runners[0].steps - steps < steps


async def test_who_reads_slowly_gets_the_pieces_joined(house: Shop, runners: list[PacedRunner]) -> None:
    async with house.open() as runtime:
        more = PLAIN.replace("8", "300")
        quick = await Talk(runtime, "pieces_async", more=more).pieces()
        slow = Talk(runtime, "pieces_async", more=more)
        assert slow.stream is not None
        taken, slow.stream = slow.stream, None  # nothing is taken
        await until(lambda: language_model(runtime).sample().generated_tokens == 2 * 300)
        assert len(slow.said) <= 32
        await until(lambda: len(slow.said) == 32)
        slow.stream = taken
        for _ in range(len(slow.said)):
            taken.taken()
        pieces = await slow.pieces()
        assert b"".join(pieces) == b"".join(quick)
        assert len(pieces) < len(quick)


async def test_the_model_of_the_reference_page_tells_a_story(shop: Shop, runners: list[PacedRunner]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "python-models.md").read_text()
    [code] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Teller" in block]
    write_tiny_model(shop.folder / "smollm2-135m")
    (shop.folder / "teller" / "1").mkdir(parents=True)
    (shop.folder / "teller" / "1" / "model.py").write_text(code)
    async with shop.open() as runtime:
        served = runtime.resolve("teller")
        assert isinstance(served, ServedStreams)
        request = InferRequest(model_name="teller", inputs={"about": np.array([b"a cat"], object)})
        said: asyncio.Queue[StreamedResponse] = asyncio.Queue()
        stream = served.stream(request, *served.check_stream(request), time.monotonic_ns(), said.put_nowait)
        pieces = []
        while not (heard := await asyncio.wait_for(said.get(), 20)).is_last:
            assert isinstance(heard.answer, InferResponse)
            pieces.append(heard.answer.outputs["story"][0])
            stream.taken()
        assert len(b"".join(pieces)) >= 1
