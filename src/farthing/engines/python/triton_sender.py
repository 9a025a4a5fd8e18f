"""The response sender of a Triton model that is not decoupled: exactly one response, from whatever thread.

Senders of decoupled models are in `stream_triton`.
"""

from collections.abc import Iterable
from queue import SimpleQueue
from typing import Any

from farthing.engines.python import triton

Sent = tuple[int, triton.InferenceResponse | None]
"""The place of a request, and its response; None: the model let go of the sender without one."""


class LoneSender:
    """Sends a request's one response; Triton's `InferenceResponseSender`."""

    def __init__(self, place: int, sent: "SimpleQueue[Sent]") -> None:
        self._place = place
        self._sent = sent
        self._response: triton.InferenceResponse | None = None
        self._is_over = False

    def send(self, response: triton.InferenceResponse | None = None, flags: int = 0) -> None:
        """The response, then or together with it the final flag. Raises `TritonModelException` for anything else."""
        if flags not in (0, triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise triton.TritonModelException(f"flags are {flags}; allowed: 0, TRITONSERVER_RESPONSE_COMPLETE_FINAL")
        if self._is_over:
            raise triton.TritonModelException("unable to send a response: the final one has been sent")
        if response is not None and not isinstance(response, triton.InferenceResponse):
            raise triton.TritonModelException(
                f"send was given a {type(response).__name__}; expected a pb_utils.InferenceResponse"
            )
        if (response is None) == (self._response is None):
            raise triton.TritonModelException(
                "a model that is not decoupled sends exactly one response to a request, and the final flag with or "
                "after it"
            )
        self._response = response or self._response
        if flags == triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self._is_over = True
            self._sent.put((self._place, self._response))

    def is_cancelled(self) -> bool:
        """Never: a batch that runs is run to its end."""
        return False

    def __del__(self) -> None:
        if not self._is_over:
            self._sent.put((self._place, None))


class LoneRequest(triton.InferenceRequest):
    """A request that may be answered through its sender, instead of by what `execute` returns."""

    def __init__(self, place: int, sent: "SimpleQueue[Sent]", **fields: Any) -> None:
        super().__init__(trace=triton.InferenceTrace(place), **fields)
        self._place = place
        self._sent = sent
        self._sender: LoneSender | None = None

    @property
    def has_sender(self) -> bool:
        """Whether the model took it."""
        return self._sender is not None

    def get_response_sender(self) -> LoneSender:
        self._sender = self._sender or LoneSender(self._place, self._sent)
        return self._sender


def collect(places: Iterable[int], sent: "SimpleQueue[Sent]") -> dict[int, triton.InferenceResponse]:
    """Waits until the requests of these places have been answered through their senders, or cannot be any more."""
    left = set(places)
    responses: dict[int, triton.InferenceResponse] = {}
    while left:
        place, response = sent.get()
        if place in left:
            left.remove(place)
            responses[place] = response or triton.InferenceResponse(
                error=triton.TritonError("the model let go of the request without a last response")
            )
    return responses
