"""The event loop of a worker's own thread, kept from batch to batch: making one costs as much as a small run."""

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

T = TypeVar("T")

_RUNNER: Final = asyncio.Runner()


def run(awaitable: Awaitable[T]) -> T:
    """Runs a coroutine to its end. As `asyncio.run`, it cancels what the coroutine has left behind."""
    return _RUNNER.run(_finished(awaitable))


async def _finished(awaitable: Awaitable[T]) -> T:
    try:
        return await awaitable
    finally:
        own = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not own]
        for task in left:
            task.cancel()
        if left:
            await asyncio.gather(*left, return_exceptions=True)
