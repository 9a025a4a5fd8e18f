import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.bench.percentiles import Percentile
from farthing.bench.targets import Metric, Target, Verdict, good, judge, parse_targets
from farthing.types.errors import InvalidInput


def test_targets_are_read_as_people_write_them():
    assert parse_targets("p99<20ms, ttft p95 < 0.3 s,TPOT p95<=40ms") == (
        Target(metric=Metric.LATENCY, percent=99, limit_s=0.02),
        Target(metric=Metric.TTFT, percent=95, limit_s=0.3),
        Target(metric=Metric.TPOT, percent=95, limit_s=0.04),
    )


@given(
    st.builds(
        Target,
        metric=st.sampled_from(Metric),
        percent=st.sampled_from([50.0, 99.9]),
        limit_s=st.sampled_from([0.02, 3.5]),
    )
)
def test_what_is_shown_of_a_target_can_be_read_again(target):
    assert parse_targets(str(target)) == (target,)


@pytest.mark.parametrize("text", ["", "p99", "p100<3ms", "p99<0ms", "p99<20", "speed p99<2ms", "p99<2ms;"])
def test_what_is_no_target_is_refused(text):
    with pytest.raises(InvalidInput, match="is no target"):
        parse_targets(text)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.02, "met"), (0.01, 0.03, "unsure"), (0.021, None, "missed"), (0.01, None, "unsure")],
)
def test_the_whole_interval_decides(low, high, verdict):
    found = Percentile(percent=99, value=low, low=low, high=high, needed=662)
    assert judge(parse_targets("p99<20ms")[0], found) is Verdict(verdict)


def test_a_request_is_good_if_it_meets_every_limit():
    values = {Metric.LATENCY: np.array([0.01, 0.01, 0.03]), Metric.TTFT: np.array([0.1, np.nan, 0.1])}
    assert good(parse_targets("p99<20ms,ttft p95<300ms"), values).tolist() == [True, False, False]
