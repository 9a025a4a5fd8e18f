"""From another thread to the event loop: everything a step or a model has to say crosses with one wake-up.

Waking a loop costs a system call, and a step of 64 generations has 64 things to say. So the first of them wakes the
loop, and the others ride along until it looks.
"""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from farthing.batching.instances import Scheduler

log = logging.getLogger(__name__)


class Mailbox:
    """Calls on the event loop what other threads ask to be called, in order."""

    def __init__(self, loop: Scheduler) -> None:
        self._loop = loop
        self._letters: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._is_called = False

    def post(self, receive: Callable[[Any], None], letter: Any) -> None:
        """From any thread: `receive(letter)`, soon, on the loop. Never blocks."""
        self._letters.append((receive, letter))
        if not self._is_called:
            self._is_called = True
            with suppress(RuntimeError):  # the loop has been closed: nobody is left to hear it
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Cleared first: what is posted from here on is either seen by the loop below or wakes it again.
        self._is_called = False
        letters = self._letters
        while letters:
            receive, letter = letters.popleft()
            try:
                receive(letter)
            except Exception:  # one receiver's fault must not cost the others their letters
                log.exception("handling what another thread said failed")
