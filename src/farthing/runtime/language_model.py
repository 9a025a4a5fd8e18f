"""A language model that answers under a name: tokenizer, template, generator and counters in one place.

Made by `runtime.catalog` from a `LoadedLanguageModel`; lives on the event loop, while its generator runs on a thread of
its own. Which fields a client may send belongs to `protocols`, how they become a request to `runtime.generate`,
scheduling and sampling to `llm`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from farthing.batching.mailbox import Mailbox
from farthing.config.model import ModelConfig
from farthing.llm import tool_prompt
from farthing.llm.statistics import DURATION_BOUNDS_S, Histogram
from farthing.protocols.openai import SamplingDefaults
from farthing.telemetry.generation import GenerationSample, HistogramSample
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.telemetry.watchdog import Running
from farthing.types.errors import (
    Cancelled,
    EngineFailed,
    FarthingError,
    InvalidInput,
    Overloaded,
    Unavailable,
)
from farthing.types.generation import Delta, Finished, FinishReason, GenerateRequest, GenerationEvent
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest
from farthing.types.tensors import TensorSpec

if TYPE_CHECKING:  # heavy, and a server without language models does without
    from farthing.llm.chat_template import ChatTemplate
    from farthing.llm.generator import Generator
    from farthing.llm.grammar import GrammarCompiler
    from farthing.llm.tokenizer import Tokenizer

PLATFORM: Final = "farthing_llm"
BACKEND: Final = "llm"

Event = GenerationEvent | FarthingError
OnEvent = Callable[[Event], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedLanguageModel:
    """A language model ready to be served."""

    spec: ModelSpec
    config: ModelConfig
    tokenizer: "Tokenizer"
    template: "ChatTemplate | None"
    generator: "Generator"
    grammars: "GrammarCompiler"
    vocabulary: int
    token_characters_max: int
    """Of the longest token: what bounds a prompt before it is tokenized."""
    context_tokens: int
    """Tokens of prompt and completion together: the model's, or what the KV memory holds if that is less."""
    defaults: SamplingDefaults
    fingerprint: str
    description: str
    """For people: size, precision, memory, threads."""
    load_s: float
    close: Callable[[float], bool]
    """Frees all it holds, within so many seconds; False if it is still inside a step then."""


def spec_of(name: str, version: int, namespace: str = "") -> ModelSpec:
    """A language model as KServe's metadata shows it; its fields are those of Triton's generate extension."""
    return ModelSpec(
        name=name,
        namespace=namespace,
        version=version,
        platform=PLATFORM,
        inputs=(TensorSpec(name="text_input", datatype="BYTES", shape=(1,)),),
        outputs=(TensorSpec(name="text_output", datatype="BYTES", shape=(1,)),),
        batch_rows_max=0,
    )


class LanguageModel:
    """A loaded language model and everything it needs to answer."""

    def __init__(
        self, loaded: LoadedLanguageModel, *, loop: asyncio.AbstractEventLoop, statistics: ModelStatistics
    ) -> None:
        self.spec = loaded.spec
        self.config = loaded.config
        self.statistics = statistics
        self.version = str(loaded.spec.version)
        self.tokenizer = loaded.tokenizer
        self.template = loaded.template
        self.grammars = loaded.grammars
        self.vocabulary = loaded.vocabulary
        self.token_characters_max = loaded.token_characters_max
        self.context_tokens = loaded.context_tokens
        self.defaults = loaded.defaults
        self.fingerprint = loaded.fingerprint
        self.description = loaded.description
        self.created_s = int(time.time())
        self.finished: dict[str, int] = dict.fromkeys(FinishReason, 0)
        """Choices that ended, by reason."""
        self._generator = loaded.generator
        self._close = loaded.close
        self._mailbox = Mailbox(loop)
        self._under_way: set[_UnderWay] = set()
        self._when_empty: Callable[[], None] | None = None
        self._steps_seen = -1
        self._steps_seen_ns = 0

    # -- text and tokens -----------------------------------------------------------------------------------------

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        adds_generation_prompt: bool = True,
        continues_final: bool = False,
        variables: Mapping[str, Any] = {},
    ) -> list[int]:
        """A conversation in the model's own words. Raises `InvalidInput` if it has none, or cannot say this."""
        if self.template is None:
            raise InvalidInput(
                f"model `{self.spec.name}` has no chat template",
                hint="use /v1/completions, or put the template into the model's tokenizer_config.json",
            )
        return tool_prompt.encode(
            self.template,
            messages,
            tools,
            adds_generation_prompt=adds_generation_prompt,
            continues_final=continues_final,
            **variables,
        )

    def encode(self, text: str, *, adds_special: bool = True) -> list[int]:
        """A text's tokens; what looks like a special token in it is text."""
        return self.tokenizer.encode(text, adds_special=adds_special)

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens' text, special ones as they are written."""
        return self.tokenizer.decode(ids, skips_special=False)

    # -- generation ----------------------------------------------------------------------------------------------

    def generate(self, request: GenerateRequest, on_event: OnEvent) -> Callable[[], None]:
        """Starts a request; `on_event` gets what comes of it, on the event loop: events up to `Finished`, or an error.

        Answers how to withdraw it (its client left); then nothing more is called. Raises that it cannot be taken.
        """
        under_way = _UnderWay(self, request, on_event)
        try:
            under_way.withdraw = self._generator.submit(request, partial(self._mailbox.post, under_way.receive))
        except FarthingError as error:
            self.statistics.failed(_reason(error))
            raise
        self._under_way.add(under_way)
        return under_way.cancel

    def ended(self, under_way: "_UnderWay") -> None:
        """A request is no longer under way."""
        self._under_way.discard(under_way)
        if self._when_empty is not None and not self._under_way:
            self._when_empty()
            self._when_empty = None

    def sample(self) -> GenerationSample:
        """The generator's figures now, for the metrics."""
        stats = self._generator.stats()
        return GenerationSample(
            running=stats.running,
            waiting=stats.waiting,
            kv_usage=stats.kv_blocks_used / max(1, stats.kv_blocks),
            kv_tokens=stats.kv_blocks * stats.kv_block_tokens,
            prompt_tokens=stats.prompt_tokens,
            cached_tokens=stats.cached_tokens,
            generated_tokens=stats.completion_tokens,
            preemptions=stats.preemptions,
            steps=stats.steps,
            drafted_tokens=stats.drafted_tokens,
            accepted_tokens=stats.accepted_tokens,
            first_token=_histogram(stats.first_token),
            inter_token=_histogram(stats.between_tokens),
            finished=self.finished.copy(),
        )

    # -- as one of the models served -----------------------------------------------------------------------------

    def spec_now(self) -> ModelSpec:
        """The spec, for those who ask later."""
        return self.spec

    def check(self, request: InferRequest) -> tuple[int, Hashable]:
        """Never: what goes in and comes out here are not tensors."""
        self._refuse_tensors()

    def submit(self, *_: object) -> Callable[[], None]:
        """Never, likewise."""
        self._refuse_tensors()

    def _refuse_tensors(self) -> NoReturn:
        self.statistics.failed(FailureReason.INVALID)
        name = self.spec.name
        raise InvalidInput(
            f"model `{name}` generates text and takes no tensors",
            hint=f"POST /v1/chat/completions, or /v2/models/{name}/generate",
        )

    def health(self) -> str:
        """Nothing can be wrong that would not show otherwise."""
        return ""

    def running(self) -> Iterable[Running]:
        """What is under way, as long as no step has ended since somebody looked."""
        steps = self._generator.stats().steps if self._under_way else -1
        if steps != self._steps_seen:
            self._steps_seen, self._steps_seen_ns = steps, time.monotonic_ns()
        if not self._under_way:
            return ()
        return [Running(f"model `{self.spec.name}` version {self.version}", self._steps_seen_ns)]

    def when_empty(self, call: Callable[[], None]) -> None:
        """Calls once nothing is under way any more."""
        if self._under_way:
            self._when_empty = call
        else:
            call()

    def fail_all(self, error: FarthingError) -> None:
        """Ends what is under way with an error."""
        for under_way in list(self._under_way):
            under_way.fail(error)

    def close(self, timeout_s: float) -> None:
        """Frees all it holds. Blocks."""
        if not self._close(timeout_s):
            log.warning("model %s is still inside a step; left behind", self.spec.name)


class _UnderWay:
    """A request between its arrival and its end: counted, and cut off from its client when that leaves."""

    __slots__ = ("_is_ended", "_model", "_on_event", "_request", "withdraw")

    def __init__(self, model: LanguageModel, request: GenerateRequest, on_event: OnEvent) -> None:
        self._model = model
        self._request = request
        self._on_event = on_event
        self._is_ended = False
        self.withdraw: Callable[[], None] = _nothing

    def receive(self, event: Event) -> None:
        """What the generator said; on the event loop."""
        if self._is_ended:
            return
        if isinstance(event, Delta):
            if event.finish is not None:
                self._model.finished[event.finish] += 1
        elif isinstance(event, Finished):
            self._finished(event)
        elif isinstance(event, FarthingError):
            self._failed(event)
        try:
            self._on_event(event)
        except Exception:
            log.exception("answering request %s failed", self._request.id)
            self.fail(EngineFailed("the server failed to answer this request", hint="its log says why"))

    def cancel(self) -> None:
        """The client left."""
        if not self._is_ended:
            self.withdraw()
            self._failed(Cancelled("the client left"))

    def fail(self, error: FarthingError) -> None:
        """Ends it with an error of ours."""
        if self._is_ended:
            return
        self.withdraw()
        self._failed(error)
        try:
            self._on_event(error)
        except Exception:
            log.exception("failing request %s failed", self._request.id)

    def _finished(self, event: Finished) -> None:
        statistics = self._model.statistics
        statistics.last_inference_ms = time.time_ns() // 1_000_000
        statistics.inference_count += self._request.n
        statistics.request_done(time.monotonic_ns() - self._request.arrival_ns, event.queue_ns)
        self._end()

    def _failed(self, error: FarthingError) -> None:
        self._model.statistics.failed(_reason(error), 1, time.monotonic_ns() - self._request.arrival_ns)
        self._model.finished[FinishReason.ABORT] += self._request.n
        self._end()

    def _end(self) -> None:
        self._is_ended = True
        self._model.ended(self)


def _nothing() -> None:
    """Until it is submitted, there is nothing to withdraw."""


def _histogram(counted: Histogram) -> HistogramSample:
    return HistogramSample(bounds=DURATION_BOUNDS_S, counts=counted.counts, total=counted.sum_ns / 1e9)


def _reason(error: FarthingError) -> FailureReason:
    if isinstance(error, Overloaded):
        return FailureReason.REJECTED
    if isinstance(error, Cancelled):
        return FailureReason.CANCELED
    if isinstance(error, InvalidInput):
        return FailureReason.INVALID
    return FailureReason.UNAVAILABLE if isinstance(error, Unavailable) else FailureReason.BACKEND
