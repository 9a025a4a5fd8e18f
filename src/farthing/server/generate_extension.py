"""Triton's generate extension: exchange to runtime and back, through `protocols.kserve.generate`.

Here for language models; requests to models of tensors go on to `generate_tensors`.
"""

from collections.abc import Awaitable, Sequence
from functools import partial

from farthing.protocols.kserve import WireLimits
from farthing.protocols.kserve.generate import GenerateChunks, GenerateFields, generate_json, parse_generate
from farthing.protocols.openai import Choice
from farthing.runtime.constrain import grammar_of
from farthing.runtime.generate import generate_request, prompt_tokens
from farthing.runtime.language_model import LanguageModel
from farthing.runtime.runtime import Runtime
from farthing.server.auth import Door
from farthing.server.exchange import Exchange
from farthing.server.generate_tensors import ManyAnswers, OneAnswer, generate_tensors
from farthing.server.generation import Logprobs, StreamedAnswer, WholeAnswer
from farthing.server.preparation import deadline_ns, prepare
from farthing.server.routes import Route
from farthing.telemetry.counters import RouteClass
from farthing.types.generation import GenerateRequest, Usage


class GenerateExtension:
    """The handlers of one server."""

    def __init__(self, runtime: Runtime, body_bytes_max: int) -> None:
        self._runtime = runtime
        self._limits = WireLimits(body_bytes_max=body_bytes_max)

    def routes(self) -> list[Route]:
        """The lines of the table; both forms of a path, with and without a version."""
        table: list[Route] = []
        for model in ("/v2/models/{m}", "/v2/models/{m}/versions/{v}"):
            table += [
                Route(b"POST", f"{model}/generate", self.whole, Door.INFERENCE, RouteClass.GENERATE),
                Route(b"POST", f"{model}/generate_stream", self.streamed, Door.INFERENCE, RouteClass.GENERATE),
            ]
        return table

    def whole(self, exchange: Exchange, name: str, version: str = "") -> Awaitable[None] | None:
        """`POST /v2/models/{m}[/versions/{v}]/generate`."""

        def begin(asked: GenerateFields, model: LanguageModel, request: GenerateRequest) -> None:
            def answer(choices: Sequence[Choice], usages: Sequence[Usage], _: Sequence[Logprobs]) -> bytes:
                return generate_json(asked, name, model.version, choices[0], usages[0])

            WholeAnswer(exchange, [request], answer).start(model)

        model = self._runtime.resolve(name, version)
        if not isinstance(model, LanguageModel):
            return generate_tensors(exchange, model, version, self._limits, OneAnswer)
        return prepare(
            exchange,
            parse=parse_generate,
            find=lambda _: model,
            is_slow=lambda asked: asked.needs_grammar,
            encode=partial(_request, exchange),
            begin=begin,
        )

    def streamed(self, exchange: Exchange, name: str, version: str = "") -> Awaitable[None] | None:
        """`POST /v2/models/{m}[/versions/{v}]/generate_stream`."""

        def begin(asked: GenerateFields, model: LanguageModel, request: GenerateRequest) -> None:
            chunks = GenerateChunks(asked, name, model.version)
            StreamedAnswer(exchange, [request], chunks, lambda *_: chunks.begin()).start(model)

        model = self._runtime.resolve(name, version)
        if not isinstance(model, LanguageModel):
            return generate_tensors(exchange, model, version, self._limits, ManyAnswers)
        return prepare(
            exchange,
            parse=parse_generate,
            find=lambda _: model,
            is_slow=lambda asked: asked.needs_grammar,
            encode=partial(_request, exchange),
            begin=begin,
        )


def _request(exchange: Exchange, asked: GenerateFields, model: LanguageModel) -> GenerateRequest:
    return generate_request(
        model,
        prompt_tokens(model, asked.text_input, "text_input"),
        asked,
        id=asked.id or exchange.request_id,
        tokens_max=asked.tokens_max,
        logprobs=asked.logprobs,
        grammar=grammar_of(model, asked.form),
        tenant=exchange.tenant,
        arrival_ns=exchange.received_ns,
        deadline_ns=deadline_ns(exchange),
        field="text_input",
    )
