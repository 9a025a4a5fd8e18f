"""The loads of `--frames` and of MLPerf's ConstantStream: which work, over which of a server's doors, at what times."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from farthing.bench.arrivals import OpenLoad, Process, Times, arrivals
from farthing.bench.endpoint import Endpoint, Measurable
from farthing.bench.frames import FramePlan
from farthing.bench.in_process import InProcess
from farthing.bench.inputs import Inputs
from farthing.bench.load import Load, Work
from farthing.bench.workload import frame_work
from farthing.types.errors import FarthingError


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesAsked:
    """Of the command line. `deadline_s` None: the time until the next frame."""

    model: str
    rate: float
    deadline_s: float | None
    policy: str
    duration_s: float
    timeout_s: float
    connections_max: int


def frame_plan(asked: FramesAsked, endpoint: Measurable) -> FramePlan:
    """How it is done here: over the server's own streams of frames if it has them."""
    plan = FramePlan(
        model=asked.model,
        rate=asked.rate,
        deadline_s=asked.deadline_s or 1 / asked.rate,
        policy=asked.policy,
        is_told=False,
    )
    if isinstance(endpoint, InProcess) or endpoint.kind != "http" or not _has_streams(endpoint, plan, asked.timeout_s):
        return plan
    return FramePlan(model=plan.model, rate=plan.rate, deadline_s=plan.deadline_s, policy=plan.policy, is_told=True)


def _has_streams(endpoint: Endpoint, plan: FramePlan, timeout_s: float) -> bool:
    """Asked by opening one. It answers ordinary requests, as was seen before, so whatever else it says means no."""
    from farthing.bench.frame_driver import open_frames

    try:
        open_frames(endpoint, plan.model, plan.policy, plan.deadline_s, timeout_s).close()
    except FarthingError as error:
        if error.http_status in {401, 403}:
            raise
        return False
    return True


def frame_load(
    asked: FramesAsked, plan: FramePlan, streams: int, work: Work, requests: Sequence[Inputs]
) -> tuple[Work, Load, str]:
    """The work, the load and its name. `work` are the same frames as plain requests."""
    due = arrivals(OpenLoad(rate=plan.rate, process=Process.CONSTANT), asked.duration_s, 0)
    load = Load(
        connections=streams if plan.is_told else asked.connections_max,
        duration_s=asked.duration_s,
        arrivals_s=due if plan.is_told else _together(due, streams, plan.rate),
        timeout_s=asked.timeout_s,
        frames=plan,
    )
    label = f"{streams} x {plan.rate:g} frames/s{f', {plan.policy}' if plan.is_told else ''}"
    return (frame_work(requests) if plan.is_told else work), load, label


def _together(due: Times, streams: int, rate: float) -> Times:
    """The frames of all streams, which are not in step, as one row of requests."""
    return np.sort(np.concatenate([due + number / streams / rate for number in range(streams)]))
