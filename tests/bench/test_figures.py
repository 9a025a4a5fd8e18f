import numpy as np
import pytest
from tests.bench.servers import ANSWER, answering

from farthing.bench.figures import figures
from farthing.bench.load import Load, Message, Work
from farthing.bench.records import Records
from farthing.bench.targets import parse_targets


def records(latency_s, *, gap_s=0.001, status=None, tokens=0, token_gap_s=0.01, **more):
    """Requests `gap_s` apart; each token `token_gap_s` after the one before it."""
    n = len(latency_s)
    intended = np.round(np.arange(n) * gap_s * 1e9).astype(np.int64) + 10**12
    end = intended + np.round(np.asarray(latency_s) * 1e9).astype(np.int64)
    first = end - int(max(tokens - 1, 0) * token_gap_s * 1e9)
    times = first[:, None] + np.round(np.arange(tokens) * token_gap_s * 1e9).astype(np.int64)
    none = np.full(n, -1, np.int32)
    columns = {
        "intended_ns": intended, "sent_ns": intended, "first_ns": first, "end_ns": end, "request": np.zeros(n, np.int32),
        "status": np.full(n, 200, np.int32) if status is None else np.asarray(status, np.int32),
        "tokens": np.full(n, tokens, np.int32), "prompt_tokens": none, "completion_tokens": none, "cached_tokens": none,
        "lag_s": np.zeros(n, np.float32), "held_s": np.zeros(n, np.float32),
        "event_record": np.repeat(np.arange(n, dtype=np.uint32), tokens), "event_ns": times.reshape(-1), "samples": {},
        "started_ns": 10**12, "wall_s": n * gap_s, "cpu_s": 0.1 * n * gap_s, "starved_s": 0.0, "connections_opened": 1,
        "waited_for_connection": 0, "events_lost": 0,
    }  # fmt: skip
    return Records(**{**columns, **more})


def latencies(n=4000):
    return np.random.default_rng(2).gamma(9, 0.001, n)


def test_rates_and_percentiles_are_those_of_the_load():
    values = latencies()
    found = figures(records(values), duration_s=4.0, warm_up_s=0)
    assert found.rate.value == pytest.approx(1000, rel=0.01)
    assert found.latency.at(50).value == pytest.approx(np.median(values), rel=0.01)
    assert found.latency.at(99).value is not None
    assert found.latency.at(99.9).value is None, "4,000 do not support p99.9"
    assert found.is_valid
    assert sum(count for _, _, count in found.histogram) == found.answered == 4000


def test_what_is_warm_up_is_left_out():
    values = latencies()
    values[:500] += 0.2
    found = figures(records(values), duration_s=4.0, warm_up_s=None)
    assert 0.45 <= found.warm_up_s <= 1.5
    assert found.latency.most < 0.1


def test_errors_are_no_throughput_and_have_their_kind():
    status = np.full(1000, 200)
    status[::10], status[5] = 503, -4
    found = figures(records(latencies(1000), status=status), duration_s=1.0, warm_up_s=0)
    assert found.errors == {"HTTP 503": 100, "timed out": 1}
    assert (found.requests, found.answered) == (1000, 899)


def test_goodput_counts_what_meets_every_target():
    values = np.tile([0.001, 0.001, 0.001, 0.05], 500)
    found = figures(records(values), duration_s=2.0, warm_up_s=0, targets=parse_targets("p99<20ms"))
    assert found.goodput.value == pytest.approx(750, rel=0.02)


def test_tokens_have_their_times():
    found = figures(
        records(np.full(200, 0.5), gap_s=0.05, tokens=11, token_gap_s=0.02), duration_s=10, warm_up_s=0, is_stream=True
    )
    assert found.tpot.at(50).value == pytest.approx(0.02, abs=1e-6)
    assert found.itl.at(99).value == pytest.approx(0.02, abs=1e-6)
    assert found.ttft.at(50).value == pytest.approx(0.3, abs=1e-6)
    assert found.user_tokens_s.mean == pytest.approx(50, rel=1e-3)
    assert found.tokens_s.value == pytest.approx(20 * 11, rel=0.1)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"cpu_s": 3.9}, "was the bottleneck"),
        ({"starved_s": 1.0}, "other programs"),
        ({"lag_s": np.full(4000, 0.01, np.float32)}, "left 10.00 ms late"),
        ({"events_lost": 3}, "tokens were more"),
    ],
)
def test_a_generator_that_was_the_bottleneck_makes_the_run_invalid(more, said):
    found = figures(records(latencies(), **more), duration_s=4.0, warm_up_s=0)
    assert said in found.generator.problems[0]
    assert not found.is_valid


def test_no_answer_at_all_is_invalid_and_no_crash():
    found = figures(records(latencies(100), status=np.full(100, -1)), duration_s=0.1, warm_up_s=None)
    assert not found.is_valid
    assert found.latency is None
    assert figures(records([]), duration_s=1, warm_up_s=None).requests == 0


def test_a_real_load_the_generator_cannot_keep_up_with_is_called_invalid():
    native = pytest.importorskip("farthing.bench.native_driver", reason="no epoll here")
    big = Message(data=b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    with answering(lambda _number: (0, ANSWER)) as port:
        times = np.arange(100_000) / 2_000_000  # two million a second: nobody can
        load = Load(connections=4, duration_s=0.2, arrivals_s=times, timeout_s=0.5)
        found = native.NativeDriver("127.0.0.1", port, Work(wire="http", chains=[[big]], order=[0]), load).run()
    assert not figures(found, duration_s=0.2, warm_up_s=0).is_valid
