"""OpenAI's endpoints: exchange to runtime and back, through `protocols.openai`.

Everything about bytes is the protocol room's, everything about models the runtime's; what stands here is which model is
meant, and what is done with what it says.
"""

import time
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import NamedTuple

from farthing.protocols.openai import (
    Calling,
    ChatBody,
    ChatChunks,
    Choice,
    CompletionChunks,
    CompletionRequest,
    Fields,
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
from farthing.protocols.openai.tokens import DetokenizeBody, TokenizeBody
from farthing.runtime.constrain import call_mark_ids, call_reader, grammar_of, template_tools
from farthing.runtime.generate import check_characters, generate_request, prompt_tokens
from farthing.runtime.language_model import LanguageModel
from farthing.runtime.runtime import Runtime
from farthing.server.auth import Door
from farthing.server.exchange import Exchange
from farthing.server.generation import Logprobs, StreamedAnswer, WholeAnswer
from farthing.server.preparation import deadline_ns, prepare
from farthing.server.routes import Route
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import InvalidField, ModelNotFound, NotFound, Unavailable
from farthing.types.generation import GenerateRequest, PromptDone, Usage
from farthing.types.tools import ToolUse


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

    # -- text ----------------------------------------------------------------------------------------------------

    def chat(self, exchange: Exchange) -> Awaitable[None] | None:
        """`POST /v1/chat/completions`."""
        return prepare(
            exchange,
            parse=parse_chat,
            find=lambda asked: self._find(asked.model),
            is_slow=lambda asked: asked.needs_grammar,
            encode=partial(_chat_request, exchange),
            begin=partial(_begin_chat, exchange),
        )

    def completions(self, exchange: Exchange) -> Awaitable[None] | None:
        """`POST /v1/completions`."""
        return prepare(
            exchange,
            parse=parse_completion,
            find=lambda asked: self._find(asked.body.model),
            is_slow=lambda asked: asked.body.needs_grammar,
            encode=partial(_completion_requests, exchange),
            begin=partial(_begin_completions, exchange),
        )

    # -- tokens --------------------------------------------------------------------------------------------------

    def tokenize(self, exchange: Exchange) -> Awaitable[None] | None:
        """`POST /tokenize`."""
        return prepare(
            exchange,
            parse=parse_tokenize,
            find=lambda asked: self._find(asked.model),
            encode=_tokenized,
            begin=lambda _, __, body: exchange.respond(200, body),
        )

    def detokenize(self, exchange: Exchange) -> Awaitable[None] | None:
        """`POST /detokenize`."""
        return prepare(
            exchange,
            parse=parse_detokenize,
            find=lambda asked: self._find(asked.model),
            encode=_detokenized,
            begin=lambda _, __, body: exchange.respond(200, body),
        )


class _Chat(NamedTuple):
    """A request, and what its model may call."""

    request: GenerateRequest
    use: ToolUse | None


def _chat_request(exchange: Exchange, asked: ChatBody, model: LanguageModel) -> _Chat:
    messages = template_messages(asked.messages)
    check_characters(model, sum(len(message["content"]) for message in messages), "messages")
    use = asked.tool_use
    ids = model.encode_chat(
        messages,
        tools=template_tools(use),
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
        grammar=grammar_of(model, asked.form, use),
        shown_special_ids=call_mark_ids(model) if use is not None else frozenset(),
        tenant=exchange.tenant,
        arrival_ns=exchange.received_ns,
        deadline_ns=deadline_ns(exchange),
    )
    return _Chat(request, use)


def _begin_chat(exchange: Exchange, asked: ChatBody, model: LanguageModel, chat: _Chat) -> None:
    request, use = chat
    heading = _heading(request.id, asked.model, model)
    has_logprobs = request.sampling.logprobs is not None
    calls: Calling | None = None
    if use is not None:
        new_reader = partial(call_reader, model, use)
        calls = Calling(new_reader=new_reader, is_named=use.is_named, is_old=asked.functions is not None)
    if not asked.stream:

        def answer(choices: Sequence[Choice], usages: Sequence[Usage], _: Sequence[Logprobs]) -> bytes:
            return chat_completion(heading, choices, usages[0], has_logprobs=has_logprobs, calls=calls)

        WholeAnswer(exchange, [request], answer, new_reader=None if calls is None else calls.new_reader).start(model)
        return
    has_usage, counts_always = _usage_wanted(asked)
    chunks = ChatChunks(
        heading, has_usage=has_usage, counts_always=counts_always, has_logprobs=has_logprobs, calls=calls
    )

    def roles(number: int, event: PromptDone) -> bytes:
        return b"".join(chunks.begin(index) for index in range(request.n))

    StreamedAnswer(exchange, [request], chunks, roles).start(model)


def _completion_requests(exchange: Exchange, asked: CompletionRequest, model: LanguageModel) -> list[GenerateRequest]:
    body = asked.body
    requests: list[GenerateRequest] = []
    grammar = grammar_of(model, body.form)
    for number, prompt in enumerate(asked.prompts):
        field = "prompt" if len(asked.prompts) == 1 else f"prompt.{number}"
        request = generate_request(
            model,
            prompt_tokens(model, prompt, field, adds_special=body.add_special_tokens is not False),
            body,
            id=f"cmpl-{exchange.request_id}",
            tokens_max=body.tokens_max,
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.echo else None,
            grammar=grammar,
            tenant=exchange.tenant,
            arrival_ns=exchange.received_ns,
            deadline_ns=deadline_ns(exchange),
            field=field,
        )
        requests.append(request)
    return requests


def _begin_completions(
    exchange: Exchange, asked: CompletionRequest, model: LanguageModel, requests: Sequence[GenerateRequest]
) -> None:
    body, n = asked.body, requests[0].n
    heading = _heading(requests[0].id, body.model, model)
    prompts = asked.prompts if body.echo else ()
    echoes = [prompt if isinstance(prompt, str) else model.decode(prompt) for prompt in prompts]
    if not body.stream:

        def answer(choices: Sequence[Choice], usages: Sequence[Usage], read: Sequence[Logprobs]) -> bytes:
            repeated = [(text, read[number]) for number, text in enumerate(echoes) for _ in range(n)]
            return text_completion(heading, choices, sum_usage(usages), logprobs=body.logprobs, echoes=repeated)

        WholeAnswer(exchange, requests, answer).start(model)
        return
    has_usage, counts_always = _usage_wanted(body)
    chunks = CompletionChunks(heading, has_usage=has_usage, counts_always=counts_always, logprobs=body.logprobs)

    def echo(number: int, event: PromptDone) -> bytes:
        if not echoes:
            return b""
        return b"".join(chunks.echo(number * n + k, echoes[number], event.logprobs) for k in range(n))

    StreamedAnswer(exchange, requests, chunks, echo).start(model)


def _tokenized(asked: TokenizeBody, model: LanguageModel) -> bytes:
    ids: Sequence[int]
    if asked.prompt is not None:
        ids = model.encode(asked.prompt, adds_special=asked.add_special_tokens is not False)
    else:
        messages = template_messages(asked.messages or ())
        ids = model.encode_chat(
            messages,
            tools=template_tools(asked.tool_use),
            adds_generation_prompt=asked.add_generation_prompt is not False,
        )
    texts = [model.decode([token]) for token in ids] if asked.return_token_strs else None
    return tokenize_json(ids, model.context_tokens, texts)


def _detokenized(asked: DetokenizeBody, model: LanguageModel) -> bytes:
    if any(token >= model.vocabulary for token in asked.tokens):
        raise InvalidField("tokens: an id is not in the vocabulary", field="tokens")
    return detokenize_json(model.decode(asked.tokens))


def _usage_wanted(asked: Fields) -> tuple[bool, bool]:
    """Whether a stream ends with its usage, and whether every chunk tells it."""
    options = asked.stream_options
    return (bool(options.include_usage), bool(options.continuous_usage_stats)) if options else (False, False)


def _heading(id_: str, asked: str | None, model: LanguageModel) -> Heading:
    return Heading(id=id_, created=int(time.time()), model=asked or model.spec.name, fingerprint=model.fingerprint)


def _listed(model: LanguageModel) -> ListedModel:
    return ListedModel(id=model.spec.name, created=model.created_s, context_tokens=model.context_tokens)
