"""What came of a batch, told to each of its requests and counted.

Riders are counted here and answered by whom they go on to. What runs next belongs to `batching.loop`.
"""

from collections.abc import Callable, Iterable, Sequence

from farthing.batching.instances import Job
from farthing.batching.queue import ENDED, Waiter
from farthing.batching.rider import Rider
from farthing.batching.run import Ran
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.types.errors import FarthingError, InvalidInput, Unavailable
from farthing.types.requests import InferResponse, Timing


def answer_batch(
    job: Job,
    ran: Ran,
    riders: Iterable[Sequence[Rider]],
    end_ns: int,
    statistics: ModelStatistics,
    model: tuple[str, str],
    answer: Callable[[Waiter, InferResponse | FarthingError], None],
) -> tuple[int, int]:
    """Has `answer` called for everyone who waits for one, of a batch of the model of this name and version.

    Gives how many were served well, riders too, and the nanoseconds they waited, all together.
    """
    served = queue_ns = 0
    for together in riders:
        served += len(together)
        queue_ns += statistics.requests_done([rider.arrival_ns for rider in together], ran.started_ns, end_ns)
    if served == job.requests:
        return served, queue_ns
    name, version = model
    timing_rest = (ran.input_ns, ran.compute_ns, ran.output_ns, job.rows, job.requests)
    for waiter, result in zip(job.waiters, ran.results, strict=True):
        if result is None or waiter.state == ENDED:
            continue  # it goes on, or runs again, or its client left meanwhile
        if isinstance(result, FarthingError):
            statistics.failed(reason_of(result), 1, end_ns - waiter.arrival_ns)
            answer(waiter, result)
            continue
        waited_ns = ran.started_ns - waiter.arrival_ns - waiter.ran_ns
        queue_ns += waited_ns
        served += 1
        statistics.request_done(end_ns - waiter.arrival_ns, waited_ns)
        answer(
            waiter,
            InferResponse(
                model_name=name,
                model_version=version,
                id=waiter.request.id,
                outputs=result[0],
                parameters=result[1],
                timing=Timing(waited_ns, *timing_rest),
            ),
        )
    return served, queue_ns


def reason_of(error: FarthingError) -> FailureReason:
    """How a failure of the model itself is counted."""
    if isinstance(error, InvalidInput):
        return FailureReason.INVALID
    return FailureReason.UNAVAILABLE if isinstance(error, Unavailable) else FailureReason.BACKEND
