"""Other models, for a Python model to ask: `context.models["name"]`.

    def load(self, context):
        self.classify = context.models["effnet-lite0"]

    def infer(self, inputs):
        return {"best": self.classify({"images": inputs["x"]})["scores"].argmax(axis=1)}

How a subrequest travels is up to `subrequest_client`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from farthing.engines.python.subrequest_answers import Answers
from farthing.engines.python.subrequest_client import SubrequestClient
from farthing.engines.python.subrequest_question import Question, Reply
from farthing.types.errors import FarthingError, InvalidInput
from farthing.types.requests import Parameter
from farthing.types.tensors import Tensor

if TYPE_CHECKING:
    from farthing.engines.python.native import Request, StreamRequest


class OtherModel:
    """A model of the same server, by name. Calling it sends it a request and waits for the outputs."""

    __slots__ = ("_client", "name", "version")

    def __init__(self, client: SubrequestClient, name: str, version: str) -> None:
        self._client = client
        self.name = name
        self.version = version

    def __call__(
        self,
        inputs: Mapping[str, object],
        *,
        outputs: Sequence[str] = (),
        request: "Request | StreamRequest | None" = None,
        parameters: Mapping[str, Parameter] | None = None,
        priority: int = 0,
        timeout_s: float = 0.0,
        request_id: str = "",
    ) -> dict[str, Tensor]:
        """The outputs, by name. May be called from any thread.

        `inputs` are arrays, or what numpy makes one of, in shapes with rows if the model batches. `outputs`: only
        these. `request`: the one of the batch that this is for, whose tenant, priority and deadline it has; without
        one it is for all of them. `timeout_s`: how long it may wait before it runs, if shorter than that deadline.
        Raises the `farthing.types.errors.FarthingError` that the model answered with.
        """
        question = self._question(inputs, outputs, request, parameters, priority, timeout_s, request_id)
        return self._client.ask(question).outputs

    async def infer_async(
        self,
        inputs: Mapping[str, object],
        *,
        outputs: Sequence[str] = (),
        request: "Request | StreamRequest | None" = None,
        parameters: Mapping[str, Parameter] | None = None,
        priority: int = 0,
        timeout_s: float = 0.0,
        request_id: str = "",
    ) -> dict[str, Tensor]:
        """The same in a coroutine, where several can be under way: `asyncio.gather(a.infer_async(...), ...)`.

        Cancelling it withdraws the request.
        """
        question = self._question(inputs, outputs, request, parameters, priority, timeout_s, request_id)
        return (await self._client.ask_async(question)).outputs

    def stream(
        self,
        inputs: Mapping[str, object],
        *,
        outputs: Sequence[str] = (),
        request: "Request | StreamRequest | None" = None,
        parameters: Mapping[str, Parameter] | None = None,
        priority: int = 0,
        timeout_s: float = 0.0,
        request_id: str = "",
    ) -> "Drawn":
        """Asks a model that answers zero, one or many times: an iterator of outputs by name.

        An error among the answers is raised and ends it. A model that draws slowly makes the other one wait; letting
        go of the iterator, or its `close`, withdraws the request.
        """
        question = self._question(inputs, outputs, request, parameters, priority, timeout_s, request_id)
        return Drawn(Answers(self._client, replace(question, is_stream=True)))

    def stream_async(
        self,
        inputs: Mapping[str, object],
        *,
        outputs: Sequence[str] = (),
        request: "Request | StreamRequest | None" = None,
        parameters: Mapping[str, Parameter] | None = None,
        priority: int = 0,
        timeout_s: float = 0.0,
        request_id: str = "",
    ) -> "DrawnAsync":
        """The same for coroutines: `async for outputs in model.stream_async(...)`."""
        question = self._question(inputs, outputs, request, parameters, priority, timeout_s, request_id)
        return DrawnAsync(Answers(self._client, replace(question, is_stream=True, can_block=False)))

    def _question(
        self,
        inputs: Mapping[str, object],
        outputs: Sequence[str],
        request: "Request | StreamRequest | None",
        parameters: Mapping[str, Parameter] | None,
        priority: int,
        timeout_s: float,
        request_id: str,
    ) -> Question:
        return Question(
            model=self.name,
            version=self.version,
            inputs={name: _as_input(self.name, name, value) for name, value in inputs.items()},
            outputs=tuple(outputs),
            id=request_id or (request.id if request is not None else ""),
            parameters=dict(parameters or {}),
            priority=priority,
            timeout_us=max(1, round(timeout_s * 1e6)) if timeout_s else 0,
            member=getattr(request, "place", -1),
            stream=getattr(request, "stream", 0),
        )


class Drawn:
    """A request's answers, as they are drawn."""

    __slots__ = ("_answers",)

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Tensor]:
        if (answer := self._answers.next()) is None:
            raise StopIteration
        return _outputs(self._answers, answer)

    def close(self) -> None:
        """Withdraws the request."""
        self._answers.close()


class DrawnAsync:
    """A request's answers, as a coroutine draws them."""

    __slots__ = ("_answers",)

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Tensor]:
        if (answer := await self._answers.next_async()) is None:
            raise StopAsyncIteration
        return _outputs(self._answers, answer)

    async def aclose(self) -> None:
        """Withdraws the request."""
        self._answers.close()


def _outputs(answers: Answers, answer: Reply | FarthingError) -> dict[str, Tensor]:
    if isinstance(answer, FarthingError):
        answers.close()
        raise answer
    return answer.outputs


class Models:
    """All models of the server, by name or by name and version: `models["a"]`, `models["a", 2]`.

    Whether a model is there is seen when it is asked: it may come later.
    """

    __slots__ = ("_client",)

    def __init__(self, client: SubrequestClient) -> None:
        self._client = client

    def __getitem__(self, key: str | tuple[str, int | str]) -> OtherModel:
        name, version = (key, "") if isinstance(key, str) else key
        return OtherModel(self._client, name, str(version))


def _as_input(model: str, name: str, value: object) -> Tensor:
    tensor: Tensor = np.asarray(value)
    if tensor.dtype.kind in "US":
        tensor = tensor.astype(object)
    if tensor.dtype.kind == "O" and any(not isinstance(e, bytes | str) for e in tensor.ravel().tolist()):
        raise InvalidInput(f"a request to model `{model}`: input `{name}` is no array of numbers, bytes or str")
    return tensor
