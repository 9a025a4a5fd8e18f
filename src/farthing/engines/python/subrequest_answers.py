"""What another model says to a subrequest, one answer after the other: to be drawn in a thread or in a coroutine.

Each is asked for by itself, once the one before it has been taken: a model that draws slowly makes the other one wait.
How a subrequest travels is up to `subrequest_client`.
"""

from typing import Self

from farthing.engines.python.subrequest_client import Pending, SubrequestClient
from farthing.engines.python.subrequest_question import Question, Reply
from farthing.types.errors import FarthingError


class Answers:
    """An iterator, and an asynchronous one. Letting go of it, or `close`, withdraws the subrequest."""

    def __init__(self, client: SubrequestClient, question: Question) -> None:
        """Nothing is sent before the first answer is drawn, or `start`."""
        self._client = client
        self._question = question
        self._pending: Pending | None = None
        self._is_over = False

    def start(self) -> None:
        """Sends the subrequest. Raises as `SubrequestClient.ask` does, but for what the model answers."""
        if self._pending is None and not self._is_over:
            self._pending = self._client.begin(self._question)

    async def start_async(self) -> None:
        """The same for coroutines."""
        if self._pending is None and not self._is_over:
            self._pending = await self._client.begin_async(self._question)

    def next(self) -> Reply | FarthingError | None:
        """The next answer; errors are given, for others may follow. None: there is none. Blocks."""
        while not self._is_over:
            self.start()
            assert self._pending is not None
            self._client.wait(self._pending)
            if (answer := self._taken(self._pending)) is not None:
                return answer
        return None

    async def next_async(self) -> Reply | FarthingError | None:
        """The same for coroutines. Cancelling withdraws the subrequest."""
        try:
            while not self._is_over:
                await self.start_async()
                assert self._pending is not None
                await self._client.wait_async(self._pending)
                if (answer := self._taken(self._pending)) is not None:
                    return answer
        except BaseException:
            self.close()
            raise
        return None

    def _taken(self, pending: Pending) -> Reply | FarthingError | None:
        answer, self._is_over = self._client.take(pending)
        return answer

    def close(self) -> None:
        """Withdraws the subrequest, unless all its answers were drawn."""
        if not self._is_over:
            self._is_over = True
            if self._pending is not None:
                self._client.withdraw(self._pending)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
