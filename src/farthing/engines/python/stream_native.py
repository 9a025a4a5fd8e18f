"""Runs a class whose `infer` answers as often as it likes: a generator, or whatever returns dicts one after the other.

    class Count:
        inputs = [Tensor("n", "INT32", [1])]
        outputs = [Tensor("i", "INT32", [1])]

        def infer(self, inputs):
            for i in range(inputs["n"][0]):
                yield {"i": [i]}

`infer` is called once for each request, with that request's own tensors. All run on the main thread and take turns at
every `yield`, or, where they are `async`, at every `await` too. One whose client is behind, waits; one whose client
has left, is closed.
"""

import asyncio
import inspect
import queue
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

from farthing.engines.contract import Member
from farthing.engines.python.interface import ModelMistake, as_tensor
from farthing.engines.python.messages import Raised
from farthing.engines.python.native import NativeModel, StreamRequest
from farthing.engines.python.stream_worker import Answering, Port, StreamBatch
from farthing.engines.python.subrequest_client import answered_here
from farthing.types.errors import Cancelled
from farthing.types.tensors import Tensor


class NativeStreams:
    """A class that streams, run."""

    def __init__(self, model: NativeModel, raised: Callable[[Exception], Raised], turn_threads: set[int]) -> None:
        """Into `turn_threads` go the threads that requests take turns on."""
        self._model = model
        self._turn_threads = turn_threads
        self._raised = raised
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, port: Port) -> None:
        """Runs batches until there are no more to come."""
        self._turn_threads.add(threading.get_ident())
        asyncio.run(self._serve(port))

    async def _serve(self, port: Port) -> None:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        port.on_batch = lambda: loop.call_soon_threadsafe(arrived.set)
        arrived.set()  # one may have come before this was listening
        while True:
            await arrived.wait()
            arrived.clear()
            while True:
                try:
                    batch = port.next_batch(blocks=False)
                except queue.Empty:
                    break
                if batch is None:
                    await self._end()
                    return
                self._begin(batch)
                port.returned()

    async def _end(self) -> None:
        """Nobody waits any more: each is closed at its next turn."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(self, batch: StreamBatch) -> None:
        for member, inputs, answering in zip(batch.members, batch.inputs, batch.answerings, strict=True):
            task = asyncio.get_running_loop().create_task(self._answer(member, inputs, batch.outputs, answering))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, member: Member, inputs: dict[str, Tensor], outputs: tuple[str, ...], answering: Answering
    ) -> None:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        own = asyncio.current_task()
        assert own is not None

        def wake() -> None:
            changed.set()
            if answering.is_cancelled and is_async:
                own.cancel()  # it may be waiting for something that takes long

        is_async = False
        answering.wake = lambda: loop.call_soon_threadsafe(wake)
        request = StreamRequest(member.id, member.parameters, answering)
        answered_here.set((answering.number,))  # of this task, and of those that it starts
        try:
            answers = self._model.infer(inputs, request)
            if inspect.isawaitable(answers):
                is_async = True
                answers = await answers
            is_async = isinstance(answers, AsyncIterator)
            try:
                async for answer in _each(answers):
                    while not answering.has_room:
                        changed.clear()
                        await changed.wait()
                    if answering.is_cancelled:
                        break
                    answering.respond(_tensors(answer, outputs), request.take_parameters())
            finally:
                await _close(answers)
            answering.end()
        except asyncio.CancelledError:
            answering.end()
        except Exception as problem:
            if answering.is_cancelled and isinstance(problem, Cancelled):  # what it asked of another model
                answering.end()
                return
            traceback.print_exc()
            said = self._raised(problem)
            answering.fail(said.error_kind, said.error)

    def close(self) -> None:
        """Calls `unload`."""
        self._model.close()


async def _each(answers: object) -> AsyncIterator[object]:
    """What there is to say, with a turn for the others after each."""
    if answers is None:
        return
    if isinstance(answers, Mapping):
        yield answers
    elif isinstance(answers, AsyncIterator):
        async for answer in answers:
            yield answer
            await asyncio.sleep(0)
    elif isinstance(answers, Iterable):
        for answer in answers:
            yield answer
            await asyncio.sleep(0)
    else:
        raise ModelMistake(f"infer returned a {type(answers).__name__}; expected dicts of arrays, one or many")


async def _close(answers: Any) -> None:
    """Lets a generator that was left in the middle tidy up."""
    if isinstance(answers, AsyncIterator):
        if (aclose := getattr(answers, "aclose", None)) is not None:
            await aclose()
    elif isinstance(answers, Iterator) and (close := getattr(answers, "close", None)) is not None:
        close()


def _tensors(answer: object, outputs: tuple[str, ...]) -> dict[str, Tensor]:
    if not isinstance(answer, Mapping):
        raise ModelMistake(f"infer yielded a {type(answer).__name__}; expected a dict of arrays: {', '.join(outputs)}")
    return {name: as_tensor(name, answer[name]) for name in outputs if name in answer}
