"""The spans of a batch: for each traced request in it its wait, and the run it shared with others.

    POST /v2/models/{m}/infer            POST /v2/models/{m}/infer
      queue                                queue
      batch  <------ links ------------->  batch
        compute_input                        compute_input
        compute_infer                        compute_infer
        compute_output                       compute_output

All runs of a batch are the same run, told once in each trace. The first is linked to every other, each other to the
first. Which requests are traced was decided when they came in.
"""

from typing import Final

from farthing.batching.instances import Job
from farthing.batching.queue import ENDED, Waiter
from farthing.batching.run import Ran
from farthing.types.errors import FarthingError
from farthing.types.models import ModelSpec
from farthing.types.trace import Attributes, Trace

LINKS_MAX: Final = 128
"""Links of one span (OpenTelemetry's default limit)."""


def note_batch(spec: ModelSpec, job: Job, ran: Ran) -> None:
    """Notes the wait and the run of those requests of a batch that are traced and wait for their answers."""
    members: list[tuple[Trace, Waiter, str]] = []
    for waiter, result in zip(job.waiters, ran.results, strict=True):
        trace = waiter.request.trace
        if trace is not None and waiter.state != ENDED:
            members.append((trace, waiter, type(result).__name__ if isinstance(result, FarthingError) else ""))
    attributes: Attributes = {
        "farthing.model.name": spec.name,
        "farthing.model.version": str(spec.version),
        "farthing.instance": job.instance,
        "farthing.batch.requests": job.requests,
        "farthing.batch.rows": job.rows,
    }
    started_ns = ran.started_ns
    ready_ns = started_ns + ran.input_ns
    done_ns = ready_ns + ran.compute_ns
    end_ns = done_ns + ran.output_ns
    places = [trace.context.child() for trace, _, _ in members]
    for number, ((trace, waiter, error), place) in enumerate(zip(members, places, strict=True)):
        links = places[1 : LINKS_MAX + 1] if number == 0 else places[:1]
        trace.note("queue", waiter.since_ns, started_ns, attributes)
        trace.note("batch", started_ns, end_ns, attributes, context=place, links=tuple(links), error=error)
        trace.note("compute_input", started_ns, ready_ns, context=place.child())
        trace.note("compute_infer", ready_ns, done_ns, context=place.child(), error=error)
        trace.note("compute_output", done_ns, end_ns, context=place.child())
