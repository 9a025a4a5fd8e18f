"""What is told of a stream adds up, and its percentiles are near the truth."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from farthing.runtime.frame_tally import FrameTally
from farthing.types.frames import DropReason


@given(st.lists(st.integers(1_000, 10**10), min_size=1, max_size=200))
def test_percentiles_are_within_two_percent(latencies_ns: list[int]) -> None:
    tally = FrameTally()
    for latency_ns in latencies_ns:
        tally.answered(latency_ns, is_on_time=True)
    for percent in (50, 95, 99):
        truth_ms = np.percentile(latencies_ns, percent, method="inverted_cdf") / 1e6
        assert abs(tally.summary().latency_ms[f"p{percent}"] - truth_ms) <= 0.02 * truth_ms + 0.001


def test_what_became_of_frames_is_counted_once() -> None:
    tally = FrameTally()
    tally.received = 5
    tally.answered(1_000_000, is_on_time=True)
    tally.answered(1_000_000, is_on_time=False)
    tally.dropped(DropReason.LATE)
    tally.dropped(DropReason.SUPERSEDED)
    tally.failed()
    said = tally.summary()
    assert said.received == said.on_time + said.late + said.failed + sum(said.dropped.values())
    assert FrameTally().summary().latency_ms["p99"] == 0
