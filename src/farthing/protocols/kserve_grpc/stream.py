"""The answers of `ModelStreamInfer`: tensors, text as it is made, and errors that leave the stream open.

Every answer says whether it is its request's last (`triton_final_response`). A client that wants to hear so of text
apart from the last piece asks for an empty answer at the end (`triton_enable_empty_final_response`).
"""

from collections.abc import Iterator
from typing import Any, Final

from farthing.protocols.kserve.generate import GenerateFields
from farthing.protocols.kserve_grpc.decode import EMPTY_FINAL_RESPONSE
from farthing.protocols.kserve_grpc.encode import encode_infer, length_prefix
from farthing.protocols.kserve_grpc.messages import message_class
from farthing.protocols.kserve_grpc.status import status_detail
from farthing.types.errors import FarthingError
from farthing.types.generation import Delta
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, Regions, StreamedResponse

FINAL_RESPONSE: Final = "triton_final_response"


def stream_answer(response: bytes, *, is_final: bool) -> bytes:
    """A `ModelStreamInferResponse` around a serialized `ModelInferResponse`."""
    said = message_class("ModelInferResponse")()
    said.parameters[FINAL_RESPONSE].bool_param = is_final
    # Two occurrences of one message field are merged (protobuf's encoding, "last one wins").
    around = message_class("ModelStreamInferResponse")
    whole: bytes = around(infer_response=said).SerializeToString()
    return whole + length_prefix(2, len(response)) + response


def stream_error(request_id: str, error: FarthingError, *, is_final: bool = True) -> bytes:
    """A `ModelStreamInferResponse` that says what went wrong with one request."""
    message = message_class("ModelStreamInferResponse")(error_message=status_detail(error))
    message.infer_response.id = request_id
    message.infer_response.parameters[FINAL_RESPONSE].bool_param = is_final
    serialized: bytes = message.SerializeToString()
    return serialized


def wants_empty_final(message: Any) -> bool:
    """Whether a request asks for an empty answer after its last."""
    return EMPTY_FINAL_RESPONSE in message.parameters and message.parameters[EMPTY_FINAL_RESPONSE].bool_param


class DecoupledStream:
    """What a model says to one request, zero, one or many times, as answers of a stream."""

    def __init__(
        self, request: InferRequest, spec: ModelSpec, regions: Regions | None, *, wants_empty_final: bool
    ) -> None:
        self._request = request
        self._spec = spec
        self._regions = regions
        self._wants_empty_final = wants_empty_final

    def messages(self, said: StreamedResponse) -> list[bytes]:
        """The answers that tell it: one, or none for an end that the client did not ask to hear of.

        Raises `FarthingError` for a response that cannot be written.
        """
        answer = said.answer
        if isinstance(answer, FarthingError):
            return [stream_error(self._request.id, answer, is_final=said.is_last)]
        if answer is not None:
            response = encode_infer(answer, self._request, self._spec, self._regions)
            return [stream_answer(response, is_final=said.is_last)]
        if not self._wants_empty_final:
            return []
        message = message_class("ModelStreamInferResponse")()
        response = message.infer_response
        response.model_name, response.model_version = self._spec.name, str(self._spec.version)
        response.id = self._request.id
        response.parameters[FINAL_RESPONSE].bool_param = True
        return [message.SerializeToString()]


class GenerateStream:
    """One generation's text as answers of a stream."""

    def __init__(
        self, request: InferRequest, asked: GenerateFields, name: str, version: str, *, wants_empty_final: bool
    ) -> None:
        self._asked = asked
        self._heading = {"model_name": name, "model_version": version, "id": request.id}
        self._wants_empty_final = wants_empty_final
        self._text = ""
        """What a client that wants one answer gets when the text is whole."""

    def begin(self) -> Iterator[bytes]:
        """The text that is continued, if the client wants it back."""
        if self._asked.exclude_input_in_output is False:
            yield from self._piece(self._asked.text_input, is_last=False)

    def delta(self, delta: Delta) -> Iterator[bytes]:
        """Answers for what was gained."""
        yield from self._piece(delta.text, is_last=delta.finish is not None)

    def _piece(self, text: str, *, is_last: bool) -> Iterator[bytes]:
        self._text += text
        if (self._text and self._asked.stream) or is_last:
            text, self._text = self._text, ""
            yield self._answer(text, is_final=is_last and not self._wants_empty_final)
        if is_last and self._wants_empty_final:
            yield self._answer(None, is_final=True)

    def _answer(self, text: str | None, *, is_final: bool) -> bytes:
        message = message_class("ModelStreamInferResponse")()
        response = message.infer_response
        for field, value in self._heading.items():
            setattr(response, field, value)
        response.parameters[FINAL_RESPONSE].bool_param = is_final
        if text is not None:
            response.outputs.add(name="text_output", datatype="BYTES", shape=(1,))
            data = text.encode(errors="replace")
            response.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
        serialized: bytes = message.SerializeToString()
        return serialized
