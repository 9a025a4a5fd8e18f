"""Triton's business-logic scripting: a `pb_utils.InferenceRequest` sent to another model, and its response.

Triton answers with a response that has an error where ours raises; only what is no request at all raises here too.
"""

from dataclasses import replace
from typing import Final

from farthing.engines.python import triton
from farthing.engines.python.interface import short_text
from farthing.engines.python.subrequest_answers import Answers
from farthing.engines.python.subrequest_client import SubrequestClient
from farthing.engines.python.subrequest_question import Question, Reply
from farthing.types import errors
from farthing.types.errors import FarthingError
from farthing.types.requests import Parameter

_client: SubrequestClient | None = None
"""This process's. Users' requests are made out of nothing, so it cannot be handed to them."""


def connect(client: SubrequestClient) -> None:
    """Requests are sent through this one from now on."""
    global _client  # noqa: PLW0603
    _client = client


def execute(request: "triton.InferenceRequest") -> "triton.InferenceResponse":
    """Sends a request and waits for its response."""
    try:
        return _response(_connected().ask(_question(request)))
    except FarthingError as error:
        return _error_response(error)


async def execute_async(request: "triton.InferenceRequest") -> "triton.InferenceResponse":
    """The same for coroutines."""
    try:
        return _response(await _connected().ask_async(_question(request)))
    except FarthingError as error:
        return _error_response(error)


class Responses:
    """An iterator of a request's responses; `async for` draws them without holding up the thread."""

    def __init__(self, answers: Answers, refusal: FarthingError | None = None) -> None:
        """`refusal` is all there is to say, if it is given."""
        self._answers = answers
        self._refusal = refusal
        if refusal is not None:
            answers.close()

    def __iter__(self) -> "Responses":
        return self

    def __next__(self) -> "triton.InferenceResponse":
        answer, self._refusal = self._refusal or self._answers.next(), None
        if answer is None:
            raise StopIteration
        return _drawn(answer)

    def __aiter__(self) -> "Responses":
        return self

    async def __anext__(self) -> "triton.InferenceResponse":
        answer, self._refusal = self._refusal or await self._answers.next_async(), None
        if answer is None:
            raise StopAsyncIteration
        return _drawn(answer)


def draw(request: "triton.InferenceRequest") -> Responses:
    """Sends a request to a model that may answer any number of times."""
    answers = Answers(_connected(), replace(_question(request), is_stream=True))
    try:
        answers.start()
    except FarthingError as error:
        return Responses(answers, error)
    return Responses(answers)


async def draw_async(request: "triton.InferenceRequest") -> Responses:
    """The same for coroutines."""
    answers = Answers(_connected(), replace(_question(request), is_stream=True))
    try:
        await answers.start_async()
    except FarthingError as error:
        return Responses(answers, error)
    return Responses(answers)


def _drawn(answer: Reply | FarthingError) -> "triton.InferenceResponse":
    return _error_response(answer) if isinstance(answer, FarthingError) else _response(answer)


def error_code(error: FarthingError) -> int:
    """Triton's code of an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), triton.TritonError.INTERNAL)


def _connected() -> SubrequestClient:
    if _client is None:
        raise triton.TritonModelException("a request can only be sent from within a model that is served")
    return _client


def _question(request: "triton.InferenceRequest") -> Question:
    if not request.model_name():
        raise triton.TritonModelException("InferenceRequest has no model_name: whom to ask?")
    parameters: dict[str, Parameter] = dict(request.parameter_values)
    if correlation_id := request.correlation_id():
        parameters["sequence_id"] = correlation_id
        parameters["sequence_start"] = bool(request.flags() & triton.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
        parameters["sequence_end"] = bool(request.flags() & triton.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
    version = request.model_version()
    return Question(
        model=request.model_name(),
        version=str(version) if version >= 0 else "",
        inputs={tensor.name(): tensor.as_numpy() for tensor in request.inputs()},
        outputs=tuple(request.requested_output_names()),
        id=request.request_id(),
        parameters=parameters,
        timeout_us=request.timeout(),
        member=request.trace().place,
        stream=request.trace().stream,
    )


def _response(reply: Reply) -> "triton.InferenceResponse":
    return triton.InferenceResponse(
        [triton.Tensor(name, tensor) for name, tensor in reply.outputs.items()], parameters=reply.parameters
    )


def _error_response(error: FarthingError) -> "triton.InferenceResponse":
    return triton.InferenceResponse(error=triton.TritonError(short_text(error.message), error_code(error)))


_CODES: Final = (
    (errors.NotFound, triton.TritonError.NOT_FOUND),
    (errors.AlreadyExists, triton.TritonError.ALREADY_EXISTS),
    (errors.InvalidInput, triton.TritonError.INVALID_ARG),
    (errors.Unavailable, triton.TritonError.UNAVAILABLE),
    (errors.Unsupported, triton.TritonError.UNSUPPORTED),
    (errors.Cancelled, triton.TritonError.CANCELLED),
)
"""The first that fits. Unavailable also stands for a full queue and for a deadline that passed."""
