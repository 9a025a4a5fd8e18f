"""Streams of frames over `ModelStreamInfer`: a call whose metadata says how its requests are to be treated as frames.

Each model that a call sends frames to has a stream of its own. Answers keep the order of the call's requests. What
became of a frame stands in its response's parameters; a dropped one has no outputs, and is no error. Reading and
sending belong to `server.grpc_streams`.
"""

from collections.abc import Callable
from typing import Any, Final

from farthing.protocols.frames import answered_parameters, dropped_parameters, summary_parameters
from farthing.protocols.kserve_grpc import encode_infer, stream_answer
from farthing.runtime.frame_stream import FrameAnswer, FrameStream, Tell
from farthing.runtime.runtime import Runtime
from farthing.types.errors import FarthingError
from farthing.types.frames import DropReason, FrameOptions
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, Parameter, Timing

ASKS_SUMMARY: Final = "frame_summary"
"""The parameter of a request that is no frame, but asks what became of those so far."""

NO_TIME: Final = Timing(0, 0, 0, 0, 0, 0)


class FrameCall:
    """The streams of one call."""

    def __init__(self, runtime: Runtime, options: FrameOptions) -> None:
        self._runtime = runtime
        self._options = options
        self._streams: dict[tuple[str, str], FrameStream] = {}

    def stream(self, message: Any) -> FrameStream:
        """That of the model which a request names. Raises as `FrameStream` does."""
        key = (message.model_name, message.model_version)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = FrameStream(self._runtime, *key, self._options)
        return stream

    def close(self) -> None:
        """Ends all of them."""
        for stream in self._streams.values():
            stream.close()

    def teller(
        self, request_id: str, request: InferRequest | None, tell: Callable[[bytes | FarthingError], None]
    ) -> Tell:
        """Turns what became of a frame into its message, or an error to be sent as errors are."""

        def told(answer: FrameAnswer) -> None:
            try:
                tell(self._message(request_id, request, answer))
            except FarthingError as error:
                tell(error)

        return told

    def _message(self, request_id: str, request: InferRequest | None, answer: FrameAnswer) -> bytes:
        outcome = answer.outcome
        if isinstance(outcome, FarthingError):
            raise outcome
        if isinstance(outcome, DropReason):
            return _without_outputs(
                answer.spec, request_id, dropped_parameters(answer.number, outcome, answer.latency_ns)
            )
        assert request is not None
        said = answered_parameters(answer.number, outcome.timing, answer.latency_ns, is_on_time=answer.is_on_time)
        outcome.parameters = {**outcome.parameters, **said}
        return stream_answer(encode_infer(outcome, request, answer.spec, self._runtime.regions), is_final=True)

    @staticmethod
    def asks_summary(message: Any) -> bool:
        """Whether a request is no frame."""
        return ASKS_SUMMARY in message.parameters and message.parameters[ASKS_SUMMARY].bool_param

    @staticmethod
    def summary(message: Any, stream: FrameStream) -> bytes:
        """What became of the frames so far, as a response without outputs."""
        said = stream.summary()
        counts = {"on_time": said.on_time, "late": said.late, "failed": said.failed}
        counts |= {f"dropped_{reason}": count for reason, count in said.dropped.items()}
        latencies = {f"latency_{name}_ms": value for name, value in said.latency_ms.items()}
        return _without_outputs(stream.spec, message.id, summary_parameters(said.received, {**counts, **latencies}))


def _without_outputs(spec: ModelSpec, request_id: str, parameters: dict[str, Parameter]) -> bytes:
    response = InferResponse(
        model_name=spec.name,
        model_version=str(spec.version),
        id=request_id,
        outputs={},
        parameters=parameters,
        timing=NO_TIME,
    )
    return stream_answer(encode_infer(response, InferRequest(model_name=spec.name, inputs={}), spec), is_final=True)
