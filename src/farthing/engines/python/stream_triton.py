"""Runs a decoupled `TritonPythonModel`: requests with a response sender in, nothing out; the sender does the rest.

`execute` is called on the main thread, one batch after the other. It may send all responses before it returns, hand
the senders to threads of its own, or be a coroutine: those run side by side on one event loop.
"""

import asyncio
import inspect
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from farthing.engines.python import triton
from farthing.engines.python.interface import ModelMistake, as_tensor, short_text
from farthing.engines.python.messages import Raised
from farthing.engines.python.stream_worker import Answering, Port, StreamBatch
from farthing.engines.python.subrequest_client import answered_here
from farthing.engines.python.triton_model import ERROR_KINDS, TritonModel, _correlation_id, _sequence_flags


class ResponseSender:
    """Sends a request's responses; Triton's `InferenceResponseSender`."""

    def __init__(self, answering: Answering, outputs: Sequence[str]) -> None:
        self._answering = answering
        self._outputs = outputs

    def send(self, response: triton.InferenceResponse | None = None, flags: int = 0) -> None:
        """One response, or with the final flag also none. Waits while the client is behind.

        Raises `TritonModelException` after the final one, and for what is no response.
        """
        if flags not in (0, triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise triton.TritonModelException(f"flags are {flags}; allowed: 0, TRITONSERVER_RESPONSE_COMPLETE_FINAL")
        is_last = flags == triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        answering = self._answering
        if answering.is_rescheduled:
            raise triton.TritonModelException("unable to send a response: the request runs again, respond to it there")
        if answering.is_over:
            raise triton.TritonModelException("unable to send a response: the final one has been sent")
        if response is None:
            if not is_last:
                raise triton.TritonModelException("a response, or the final flag, must be given to send")
            answering.end()
            return
        if not isinstance(response, triton.InferenceResponse):
            raise triton.TritonModelException(
                f"send was given a {type(response).__name__}; expected a pb_utils.InferenceResponse"
            )
        if (error := response.error()) is not None:
            kind = ERROR_KINDS.get(error.code(), "EngineFailed")
            answering.fail(kind, short_text(error.message()), is_last=is_last)
            return
        tensors = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        try:
            outputs = {name: as_tensor(name, tensors[name]) for name in self._outputs if name in tensors}
            answering.respond(outputs, response.parameter_values, is_last=is_last)
        except ModelMistake as mistake:
            raise triton.TritonModelException(str(mistake)) from mistake

    def is_cancelled(self) -> bool:
        """Whether nobody waits for responses any more."""
        return self._answering.is_cancelled


class StreamedRequest(triton.InferenceRequest):
    """A request that is answered through its sender."""

    def __init__(self, answering: Answering, outputs: Sequence[str], **fields: Any) -> None:
        super().__init__(requested_output_names=outputs, **fields)
        self._sender = ResponseSender(answering, outputs)

    def get_response_sender(self) -> ResponseSender:
        return self._sender

    def is_cancelled(self) -> bool:
        return self._sender.is_cancelled()


class TritonStreams:
    """A decoupled `TritonPythonModel`, run."""

    def __init__(self, model: TritonModel, raised: Callable[[Exception], Raised], turn_threads: set[int]) -> None:
        """Into `turn_threads` go the threads that requests take turns on."""
        self._model = model
        self._turn_threads = turn_threads
        self._raised = raised
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve(self, port: Port) -> None:
        """Runs batches until there are no more to come."""
        self._turn_threads.add(threading.get_ident())
        while (batch := port.next_batch()) is not None:
            self._run(batch)
            del batch  # its requests are the model's own from here on
            port.returned()

    def _run(self, batch: StreamBatch) -> None:
        model = self._model
        requests = [
            StreamedRequest(
                answering,
                batch.outputs,
                request_id=member.id,
                correlation_id=_correlation_id(member.parameters.get("sequence_id", 0)),
                model_name=model.name,
                model_version=model.version,
                inputs=[triton.Tensor(name, tensor) for name, tensor in own.items()],
                flags=_sequence_flags(member.parameters),
                parameters=member.parameters,
                trace=triton.InferenceTrace(stream=answering.number),
            )
            for member, own, answering in zip(batch.members, batch.inputs, batch.answerings, strict=True)
        ]
        answered_here.set(tuple(answering.number for answering in batch.answerings))
        try:
            answer = model.instance.execute(requests)
            if inspect.iscoroutine(answer):
                finish = self._finish(answer, batch.answerings)
                running = asyncio.run_coroutine_threadsafe(finish, self._event_loop())
                if not model.is_iterative:
                    return
                running.result()  # who runs again must be known before the batch has returned
            else:
                _check(answer)
        except Exception as problem:
            self._failed(problem, batch.answerings)
        for request, answering in zip(requests, batch.answerings, strict=True):
            if request.is_rescheduled:
                answering.reschedule()

    async def _finish(self, answer: Any, answerings: Sequence[Answering]) -> None:
        try:
            _check(await answer)
        except Exception as problem:
            self._failed(problem, answerings)

    def _failed(self, problem: Exception, answerings: Sequence[Answering]) -> None:
        traceback.print_exc()
        said = self._raised(problem)
        problem.__traceback__ = None  # whose frames would keep the requests
        for answering in answerings:
            answering.fail(said.error_kind, said.error)

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._loop.run_forever, name="farthing-coroutines", daemon=True)
            thread.start()
            assert thread.ident is not None
            self._turn_threads.add(thread.ident)
        return self._loop

    def close(self) -> None:
        """Calls `finalize`."""
        self._model.close()


def _check(answer: object) -> None:
    if answer is not None:
        raise ModelMistake(
            f"execute returned a {type(answer).__name__}; a decoupled model returns None and sends its responses "
            "with request.get_response_sender()"
        )
