"""A language model asked as any other model is: text comes in a tensor, and goes out in one, whole or piece by piece.

For models that ask it (`subrequests`); clients have endpoints of their own. What may be asked is
`protocols.kserve.generation_inputs`', scheduling `llm`'s.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from farthing.batching.stream_loop import HearResponse
from farthing.protocols.kserve.generate import GenerateFields
from farthing.protocols.kserve.generation_inputs import asked_generation
from farthing.runtime.constrain import grammar_of
from farthing.runtime.generate import generate_request, prompt_tokens
from farthing.runtime.language_model import Event, LanguageModel
from farthing.telemetry.generation_spans import note_generation
from farthing.telemetry.statistics import FailureReason
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput
from farthing.types.generation import Delta, Finished, FinishReason, GenerateRequest
from farthing.types.requests import InferRequest, InferResponse, Parameter, StreamedResponse, Timing

INLINE_CHARACTERS_MAX: Final = 4 * 1024
"""Texts up to this length are tokenized on the event loop (1 to 2 ms), longer ones on a thread."""

AHEAD_MAX: Final = 32
"""Pieces that are handed over before one is taken; what comes then is joined to the next."""

OUTPUT: Final = "text_output"


class TextStream:
    """What a language model says to one request; lives on the event loop (a `served_streams.Stream`)."""

    def __init__(
        self, model: LanguageModel, request: InferRequest, arrival_ns: int, hear: HearResponse, *, is_whole: bool
    ) -> None:
        """Nothing is asked before `start`. `is_whole`: one answer, whatever the request says. Raises `InvalidField` for
        what the model cannot be asked."""
        self._model = model
        self._request = request
        self._arrival_ns = arrival_ns
        self._hear = hear
        self._text = ""
        """Made and not handed over."""
        self._ahead = 0
        self._is_over = False
        self._finish: FinishReason | None = None
        self._end: Finished | None = None
        self._withdraw: Callable[[], None] | None = None
        self._is_whole = is_whole
        try:
            self._fields = asked_generation(request)
        except InvalidInput:
            model.statistics.failed(FailureReason.INVALID)
            raise

    def start(self) -> None:
        """Raises as `LanguageModel.generate` does, and `InvalidField`; a long text's errors are heard instead."""
        if self._fields.exclude_input_in_output is False:
            self._text = self._fields.text_input
        if len(self._fields.text_input) <= INLINE_CHARACTERS_MAX and not self._fields.needs_grammar:
            self._ask(self._wanted())
            return
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, self._wanted).add_done_callback(self._prepared)

    def withdraw(self) -> None:
        """Nobody listens any more: the scheduler lets go of it."""
        self._is_over = True
        if self._withdraw is not None:
            self._withdraw()

    def taken(self) -> None:
        """One more piece has been dealt with."""
        self._ahead -= 1
        self._tell()

    def _wanted(self) -> GenerateRequest:
        fields, request, model = self._fields, self._request, self._model
        return generate_request(
            model,
            prompt_tokens(model, fields.text_input, "text_input"),
            fields,
            id=request.id or "subrequest",
            tokens_max=fields.tokens_max,
            logprobs=None,
            grammar=grammar_of(model, fields.form),
            tenant=request.tenant,
            arrival_ns=self._arrival_ns,
            deadline_ns=self._arrival_ns + request.timeout_us * 1000 if request.timeout_us else 0,
            field="text_input",
        )

    def _prepared(self, ready: "asyncio.Future[GenerateRequest]") -> None:
        if self._is_over:
            return
        try:
            self._ask(ready.result())
        except FarthingError as error:
            self._fail(error)
        except Exception as problem:
            self._fail(EngineFailed(f"model `{self._model.spec.name}`: preparing the request failed: {problem}"))

    def _ask(self, wanted: GenerateRequest) -> None:
        self._withdraw = self._model.generate(wanted, partial(self._event, wanted))

    def _event(self, wanted: GenerateRequest, event: Event) -> None:
        if self._is_over:
            return
        if isinstance(event, FarthingError):
            self._fail(event)
        elif isinstance(event, Delta):
            self._text += event.text
            self._finish = event.finish or self._finish
            self._tell()
        elif isinstance(event, Finished):
            if self._request.trace is not None:
                note_generation(self._request.trace, "text_completion", wanted, event, ())
            self._end = event
            self._tell()

    def _fail(self, error: FarthingError) -> None:
        self._is_over = True
        self._hear(StreamedResponse(error, is_last=True))

    def _tell(self) -> None:
        """Hands over what there is, if there is room for it."""
        end = self._end
        if self._is_over or self._ahead >= AHEAD_MAX:
            return
        if end is None and (not self._text or self._finish is not None or self._is_whole or not self._fields.stream):
            return  # the last piece waits for the figures, and who wants it whole for all of it
        text, self._text = self._text, ""
        self._ahead += 1
        self._is_over = end is not None
        self._hear(StreamedResponse(self._answer(text, end), is_last=end is not None))

    def _answer(self, text: str, end: Finished | None) -> InferResponse:
        timing = (0, 0, 0) if end is None else (end.queue_ns, end.prefill_ns, end.decode_ns)
        return InferResponse(
            model_name=self._model.spec.name,
            model_version=self._model.version,
            id=self._request.id,
            outputs={OUTPUT: np.array([text.encode(errors="replace")], object)},
            parameters=_details(self._fields, self._finish, end),
            timing=Timing(*timing, 0, 1, 1),
        )


def _details(fields: GenerateFields, finish: FinishReason | None, end: Finished | None) -> dict[str, Parameter]:
    if not fields.details or end is None:
        return {}
    usage = end.usage
    return {
        "finish_reason": str(finish.value) if finish is not None else "",
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }
