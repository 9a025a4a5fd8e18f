"""OpenAI's endpoints, and Triton's generate extension on the same models: exchange to runtime and back.

Everything about bytes is the protocol room's, everything about models the runtime's. Short prompts are tokenized on the
event loop, long ones on a thread.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from farthing.protocols.kserve.generate import GenerateChunks, generate_json, parse_generate
from farthing.protocols.openai import (
    ChatBody,
    ChatChunks,
    Choice,
    CompletionChunks,
    CompletionRequest,
    Heading,
    ListedModel,
    chat_completion,
    detokenize_json,
    model_json,
    models_json,
    parse_chat,
    parse_completion,
    parse_detokenize,
    parse_tokenize,
    sum_usage,
    template_messages,
    text_completion,
    tokenize_json,
)
from farthing.runtime.generate import check_characters, generate_request, prompt_tokens
from farthing.runtime.language_model import LanguageModel
from farthing.runtime.runtime import Runtime
from farthing.server.auth import Door
from farthing.server.exchange import Exchange
from farthing.server.generation import Logprobs, StreamedAnswer, WholeAnswer
from farthing.server.kserve import TIMEOUT_HEADER, timeout_us
from farthing.server.routes import Route
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import InvalidField, InvalidInput, ModelNotFound, NotFound, Unavailable
from farthing.types.generation import GenerateRequest, PromptDone, Usage

INLINE_BYTES_MAX: Final = 4 * 1024
"""Bodies up to this size are parsed and tokenized on the event loop (1 to 2 ms), larger ones on a thread."""

Value = TypeVar("Value")


class OpenAi:
    """The handlers of one server."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def routes(self) -> list[Route]:
        """The lines of the table."""
        get, post, use = b"GET", b"POST", Door.INFERENCE
        table = [
            Route(get, "/v1/models", self.models, use, RouteClass.METADATA),
            Route(get, "/v1/models/{m...}", self.model, use, RouteClass.METADATA),
            Route(post, "/v1/chat/completions", self.chat, use, RouteClass.GENERATE),
            Route(post, "/v1/completions", self.completions, use, RouteClass.GENERATE),
        ]
        for prefix in ("", "/v1"):
            table += [
                Route(post, f"{prefix}/tokenize", self.tokenize, use, RouteClass.GENERATE),
                Route(post, f"{prefix}/detokenize", self.detokenize, use, RouteClass.GENERATE),
            ]
        for model in ("/v2/models/{m}", "/v2/models/{m}/versions/{v}"):
            table += [
                Route(post, f"{model}/generate", self.generate, use, RouteClass.GENERATE),
                Route(post, f"{model}/generate_stream", self.generate_stream, use, RouteClass.GENERATE),
            ]
        return table

    # -- models --------------------------------------------------------------------------------------------------

    def models(self, exchange: Exchange) -> None:
        """`GET /v1/models`."""
        exchange.respond(200, models_json([_listed(model) for model in self._runtime.language_models()]))

    def model(self, exchange: Exchange, name: str) -> None:
        """`GET /v1/models/{id}`."""
        exchange.respond(200, model_json(_listed(self._find(name))))

    def _find(self, name: str | None) -> LanguageModel:
        """The language model of that name, or the only one there is. Raises that there is none, or not yet."""
        if not name:
            models = self._runtime.language_models()
            if len(models) == 1:
                return models[0]
            raise InvalidField(
                "model: missing", field="model", hint=f"models: {', '.join(m.spec.name for m in models) or 'none'}"
            )
        try:
            served = self._runtime.resolve(name)
        except NotFound:
            names = ", ".join(model.spec.name for model in self._runtime.language_models())
            raise ModelNotFound(f"the model `{name[:200]}` does not exist", hint=f"models: {names or 'none'}") from None
        except Unavailable as error:  # whose words name files
            raise Unavailable(f"the model `{name}` is not ready", retry_after_s=error.retry_after_s) from None
        if not isinstance(served, LanguageModel):
            raise InvalidField(
                f"the model `{name}` does not generate text", field="model", hint=f"POST /v2/models/{name}/infer"
            )
        return served

    # -- chat ----------------------------------------------------------------------------------------------------

    def chat(self, exchange: Exchange) -> Awaitable[None] | None:
        """`POST /v1/chat/completions`."""

        def prepare() -> tuple[LanguageModel, ChatBody, GenerateRequest]:
            asked = parse_chat(exchange.body)
            model = self._find(asked.model)
            messages = template_messages(asked.messages)
            check_characters(model, sum(len(message["content"]) for message in messages), "messages")
            ids = model.encode_chat(
                messages,
                adds_generation_prompt=asked.add_generation_prompt is not False,
                continues_final=bool(asked.continue_final_message),
                variables=asked.chat_template_kwargs or {},
            )
            request = generate_request(
                model,
                ids,
                asked,
                id=f"chatcmpl-{exchange.request_id}",
                tokens_max=asked.tokens_max,
                logprobs=asked.logprobs_top,
                tenant=exchange.tenant,
                arrival_ns=exchange.received_ns,
                deadline_ns=_deadline_ns(exchange),
            )
            return model, asked, request

        def begin(prepared: tuple[LanguageModel, ChatBody, GenerateRequest]) -> None:
            model, asked, request = prepared
            heading = _heading(request.id, asked.model, model)
            if not asked.stream:
                _whole_chat(exchange, model, request, heading)
                return
            options = asked.stream_options
            chunks = ChatChunks(
                heading,
                has_usage=options is not None and bool(options.include_usage),
                counts_always=options is not None and bool(options.continuous_usage_stats),
                has_logprobs=request.sampling.logprobs is not None,
            )

            def roles(number: int, event: PromptDone) -> bytes:
                return b"".join(chunks.begin(index) for index in range(request.n))

            StreamedAnswer(exchange, [request], chunks, roles).start(model)

        return _prepared(exchange, prepare, begin)

    # -- completions ---------------------------------------------------------------------------------------------

    def completions(self, exchange: Exchange) -> Awaitable[None] | None:
        """`POST /v1/completions`."""

        def prepare() -> tuple[LanguageModel, CompletionRequest, list[GenerateRequest]]:
            asked = parse_completion(exchange.body)
            body = asked.body
            model = self._find(body.model)
            requests: list[GenerateRequest] = []
            for number, prompt in enumerate(asked.prompts):
                field = "prompt" if len(asked.prompts) == 1 else f"prompt.{number}"
                ids = prompt_tokens(model, prompt, field, adds_special=body.add_special_tokens is not False)
                request = generate_request(
                    model,
                    ids,
                    body,
                    id=f"cmpl-{exchange.request_id}",
                    tokens_max=body.tokens_max,
                    logprobs=body.logprobs,
                    prompt_logprobs=body.logprobs if body.echo else None,
                    tenant=exchange.tenant,
                    arrival_ns=exchange.received_ns,
                    deadline_ns=_deadline_ns(exchange),
                    field=field,
                )
                requests.append(request)
            return model, asked, requests

        def begin(prepared: tuple[LanguageModel, CompletionRequest, list[GenerateRequest]]) -> None:
            model, asked, requests = prepared
            body = asked.body
            heading = _heading(requests[0].id, body.model, model)
            echoes = [
                prompt if isinstance(prompt, str) else model.decode(prompt) for prompt in asked.prompts if body.echo
            ]
            if not body.stream:
                _whole_completion(exchange, model, requests, heading, echoes)
                return
            options = body.stream_options
            chunks = CompletionChunks(
                heading,
                has_usage=options is not None and bool(options.include_usage),
                counts_always=options is not None and bool(options.continuous_usage_stats),
                logprobs=body.logprobs,
            )
            n = requests[0].n

            def echo(number: int, event: PromptDone) -> bytes:
                if not echoes:
                    return b""
                return b"".join(chunks.echo(number * n + k, echoes[number], event.logprobs) for k in range(n))

            StreamedAnswer(exchange, requests, chunks, echo).start(model)

        return _prepared(exchange, prepare, begin)

    # -- tokens --------------------------------------------------------------------------------------------------

    def tokenize(self, exchange: Exchange) -> Awaitable[None] | None:
        """`POST /tokenize`."""

        def prepare() -> bytes:
            asked = parse_tokenize(exchange.body)
            model = self._find(asked.model)
            ids: Sequence[int]
            if asked.prompt is not None:
                ids = model.encode(asked.prompt, adds_special=asked.add_special_tokens is not False)
            else:
                messages = template_messages(asked.messages or ())
                ids = model.encode_chat(messages, adds_generation_prompt=asked.add_generation_prompt is not False)
            texts = [model.decode([token]) for token in ids] if asked.return_token_strs else None
            return tokenize_json(ids, model.context_tokens, texts)

        return _prepared(exchange, prepare, lambda body: exchange.respond(200, body))

    def detokenize(self, exchange: Exchange) -> Awaitable[None] | None:
        """`POST /detokenize`."""

        def prepare() -> bytes:
            asked = parse_detokenize(exchange.body)
            model = self._find(asked.model)
            if any(token >= model.vocabulary for token in asked.tokens):
                raise InvalidField("tokens: an id is not in the vocabulary", field="tokens")
            return detokenize_json(model.decode(asked.tokens))

        return _prepared(exchange, prepare, lambda body: exchange.respond(200, body))

    # -- Triton's generate extension -----------------------------------------------------------------------------

    def generate(self, exchange: Exchange, name: str, version: str = "") -> Awaitable[None] | None:
        """`POST /v2/models/{m}[/versions/{v}]/generate`."""
        return self._generate(exchange, name, version, is_streamed=False)

    def generate_stream(self, exchange: Exchange, name: str, version: str = "") -> Awaitable[None] | None:
        """`POST /v2/models/{m}[/versions/{v}]/generate_stream`."""
        return self._generate(exchange, name, version, is_streamed=True)

    def _generate(self, exchange: Exchange, name: str, version: str, *, is_streamed: bool) -> Awaitable[None] | None:
        model = self._runtime.resolve(name, version)
        if not isinstance(model, LanguageModel):
            raise InvalidInput(f"model `{name}` does not generate text", hint=f"POST /v2/models/{name}/infer")

        def begin(request: GenerateRequest) -> None:
            if is_streamed:
                chunks = GenerateChunks(asked, name, model.version)
                StreamedAnswer(exchange, [request], chunks, lambda *_: chunks.begin()).start(model)
                return

            def encode(choices: Sequence[Choice], usages: Sequence[Usage], _: Sequence[Logprobs]) -> bytes:
                return generate_json(asked, name, model.version, choices[0], usages[0])

            WholeAnswer(exchange, [request], encode).start(model)

        asked = parse_generate(exchange.body)

        def prepare() -> GenerateRequest:
            return generate_request(
                model,
                prompt_tokens(model, asked.text_input, "text_input"),
                asked,
                id=asked.id or exchange.request_id,
                tokens_max=asked.tokens_max,
                logprobs=asked.logprobs,
                tenant=exchange.tenant,
                arrival_ns=exchange.received_ns,
                deadline_ns=_deadline_ns(exchange),
                field="text_input",
            )

        return _prepared(exchange, prepare, begin)


def _whole_chat(exchange: Exchange, model: LanguageModel, request: GenerateRequest, heading: Heading) -> None:
    def encode(choices: Sequence[Choice], usages: Sequence[Usage], _: Sequence[Logprobs]) -> bytes:
        return chat_completion(heading, choices, usages[0], has_logprobs=request.sampling.logprobs is not None)

    WholeAnswer(exchange, [request], encode).start(model)


def _whole_completion(
    exchange: Exchange,
    model: LanguageModel,
    requests: Sequence[GenerateRequest],
    heading: Heading,
    echoes: Sequence[str],
) -> None:
    n, logprobs = requests[0].n, requests[0].sampling.logprobs

    def encode(choices: Sequence[Choice], usages: Sequence[Usage], prompts: Sequence[Logprobs]) -> bytes:
        repeated = [(text, prompts[number]) for number, text in enumerate(echoes) for _ in range(n)]
        return text_completion(heading, choices, sum_usage(usages), logprobs=logprobs, echoes=repeated)

    WholeAnswer(exchange, requests, encode).start(model)


def _prepared(
    exchange: Exchange, prepare: Callable[[], Value], begin: Callable[[Value], None]
) -> Awaitable[None] | None:
    """Does what needs no event loop here and now if it is short, else on a thread; then begins."""
    coding = exchange.headers.get(b"content-encoding", b"identity")
    if coding.lower() != b"identity":
        raise InvalidInput(
            f"a body in Content-Encoding {coding[:32].decode('latin-1')} is not read here: send it plain"
        )
    if exchange.body_bytes <= INLINE_BYTES_MAX:
        begin(prepare())
        return None

    async def later() -> None:
        prepared = await asyncio.get_running_loop().run_in_executor(None, prepare)
        if not exchange.is_done:  # else the client left meanwhile
            begin(prepared)

    return later()


def _deadline_ns(exchange: Exchange) -> int:
    """When the proxy in front will stop waiting; 0 if none said so."""
    said = exchange.headers.get(TIMEOUT_HEADER)
    return exchange.received_ns + timeout_us(said) * 1000 if said is not None else 0


def _heading(id_: str, asked: str | None, model: LanguageModel) -> Heading:
    return Heading(id=id_, created=int(time.time()), model=asked or model.spec.name, fingerprint=model.fingerprint)


def _listed(model: LanguageModel) -> ListedModel:
    return ListedModel(id=model.spec.name, created=model.created_s, context_tokens=model.context_tokens)
