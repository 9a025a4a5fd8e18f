"""Constant-rate frames: what is asked of a server, and what became of them.

A server with streams of frames (docs/reference/frame-streams.md) is told the deadline and says of every frame whether
it was on time, late or dropped, and why. One without gets plain requests at the same times, and the deadline is held
by our own clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from farthing.bench import records as noted
from farthing.bench.percentiles import Percentile, percentiles
from farthing.bench.records import Records

JUDGED: Final = (50.0, 90.0, 95.0, 99.0, 99.9)
DROPS: Final = {"superseded": noted.SUPERSEDED, "late": noted.TOO_LATE, "overload": noted.OVERLOAD}


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePlan:
    """Frames a second of each stream, to one model. `is_told`: over the server's own streams, which tell their fate."""

    model: str
    rate: float
    deadline_s: float
    policy: str
    is_told: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFigures:
    """What became of all frames of a load. `sent` is the sum of the others."""

    streams: int
    deadline_s: float
    by: str
    """Who told: `server`, or `farthing` where the server has no streams of frames."""
    sent: int
    on_time: int
    late: int
    """Answered after the deadline."""
    dropped: Mapping[str, int]
    """By the server: `superseded` by a newer one, too `late` to be worth running, `overload`."""
    failed: int
    seen_in_time: int
    """Answered within the deadline by our clock, from when the frame was due: with the way there and back."""
    judged: tuple[Percentile, ...]
    """Percentiles of 0 (`seen_in_time`) and 1 (not) over the frames: p99 is 0 where 99 in 100 are in time."""
    problem: str
    """Where the server's summary says other than its answers did."""

    @property
    def on_time_share(self) -> float:
        return self.on_time / max(self.sent, 1)


def frame_figures(records: Records, plan: FramePlan) -> FrameFigures:
    """Of every frame of the load: there is no warm-up that a camera would leave out."""
    status, answered = records.status, records.is_answered
    known = status != noted.ABANDONED
    in_time = answered & (records.latency_s <= plan.deadline_s)
    on_time = in_time if records.on_time is None else records.on_time & answered
    dropped = {name: int((status == code).sum()) for name, code in DROPS.items()}
    counts = {
        "sent": int(known.sum()),
        "on_time": int(on_time.sum()),
        "late": int((answered & ~on_time).sum()),
    }
    misses: NDArray[np.float64] = (~in_time[known]).astype(np.float64)
    return FrameFigures(
        streams=max(len(records.summaries), 1),
        deadline_s=plan.deadline_s,
        by="server" if plan.is_told else "farthing",
        dropped=dropped,
        failed=counts["sent"] - int(answered.sum()) - sum(dropped.values()),
        seen_in_time=int(in_time.sum()),
        judged=tuple(percentiles(misses, JUDGED)) if len(misses) else (),
        problem=_contradiction(records, counts, dropped),
        **counts,
    )


def _contradiction(records: Records, counts: Mapping[str, int], dropped: Mapping[str, int]) -> str:
    """The server's own summaries, added up, against what it said frame by frame."""
    told = [summary for summary in records.summaries if summary]
    if not told or len(told) < len(records.summaries):
        return ""
    theirs: dict[str, Any] = {
        "received": sum(one["received"] for one in told),
        "on_time": sum(one["on_time"] for one in told),
        "late": sum(one["late"] for one in told),
        "dropped": {name: sum(one["dropped"][name] for one in told) for name in DROPS},
    }
    ours = {"received": counts["sent"], "on_time": counts["on_time"], "late": counts["late"], "dropped": dict(dropped)}
    if theirs == ours:
        return ""
    return f"the server's summary says {theirs}, and its answers said {ours}"
