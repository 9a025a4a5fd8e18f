"""The instances of a model: which are idle, and how there come to be more or fewer of them while they run.

What they run is up to `batching.loop`, and where to `batching.instances`; here they are numbers.
"""

from collections.abc import Callable

from farthing.batching.instances import Instances, Scheduler


class Crew:
    """Instances from 0 to `size`; some beyond may still be running their last batch."""

    def __init__(self, size: int, threads: Instances, scheduler: Scheduler) -> None:
        self.size = size
        """How many may run at a time."""
        self.idle = list(range(size))
        """Those that run nothing, last come first to go; whoever gives one work takes it out. Always the same list."""
        self._leaving: set[int] = set()
        """Those beyond, as long as they run or rest."""
        self._on_shrunk: Callable[[], None] | None = None
        self._threads = threads
        self._scheduler = scheduler

    def grow(self, size: int) -> None:
        """There are so many now, the new ones idle."""
        self.idle += range(self.size, size)
        self.size = size

    def shrink(self, size: int, gone: Callable[[], None]) -> None:
        """From now on only the first `size` get work; `gone` is called once the others run nothing."""
        beyond = set(range(size, self.size))
        self.size = size
        self._on_shrunk = gone
        self._leaving = beyond - set(self.idle)
        self.idle[:] = [instance for instance in self.idle if instance < size]
        for instance in beyond - self._leaving:
            self._threads.retire(instance)
        self._tell_if_shrunk()

    def rested(self, instance: int) -> None:
        """An instance may run again, unless there are fewer by now."""
        if instance < self.size:
            self.idle.append(instance)
        else:
            self._leaving.discard(instance)
            self._threads.retire(instance)
            self._tell_if_shrunk()

    def _tell_if_shrunk(self) -> None:
        if not self._leaving and self._on_shrunk is not None:
            self._scheduler.call_soon(self._on_shrunk)
            self._on_shrunk = None
