"""Batches handed to an instance while it still runs the one before, so that its thread goes on without asking.

On the way through the event loop a thread waits until everything else there has had its turn: on two cores with two
instances a tenth of the time of a busy model. A single instance is better off the old way: while its answers are sent
it has nothing to do, and else the loop would break into its next run and drive it out of the caches (EfficientNet on
one core: 102 % of the engine's rate that way, 88 % with a batch ahead). Only full batches go ahead, whom nobody could
still join, and one an instance; what could make one wait for another's sake (priorities, deadlines, frames, shared
resources) is looked at by `batching.loop` first.
"""

from collections.abc import Mapping
from typing import Final

from farthing.batching.crew import Crew
from farthing.batching.instances import Job

INSTANCES_MIN: Final = 2

RUN_NS_MAX: Final = 50_000_000
"""Of a batch that goes ahead. Behind a longer run the way through the event loop is no time, and to be bound to one
instance may be: another could come free before."""


class Ahead:
    """What instances run next, as far as it is settled."""

    def __init__(self, crew: Crew) -> None:
        self.jobs: dict[int, Job] = {}
        """Instance -> the batch it has been handed."""
        self._crew = crew

    def pick(self, running: Mapping[int, Job]) -> int | None:
        """The instance that comes free first of those that have nothing ahead and stay; None if there is none."""
        if self._crew.size < INSTANCES_MIN:
            return None
        free = [job for job in running.values() if job.instance not in self.jobs and job.instance < self._crew.size]
        return min(free, key=lambda job: job.started_ns).instance if free else None

    def begin(self, instance: int, now_ns: int) -> Job | None:
        """The instance has gone on to what it was handed; None if that is nothing."""
        job = self.jobs.pop(instance, None)
        if job is not None:
            job.started_ns = now_ns
        return job
