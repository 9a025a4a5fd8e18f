import numpy as np

from farthing.bench.steady import steadiness


def latencies(n=4000, seed=0):
    return np.random.default_rng(seed).gamma(4, 0.25, n)


def test_a_run_at_rest_keeps_nearly_everything():
    found = steadiness(latencies())
    assert (found.problem, found.warm_up < 1200) == ("", True)


def test_a_slow_beginning_is_dropped():
    values = latencies()
    values[:400] *= np.linspace(6, 1.5, 400)
    found = steadiness(values)
    assert not found.problem
    assert 360 <= found.warm_up < 1400


def test_a_queue_that_grows_is_no_rest():
    assert (
        "still changed" in steadiness(latencies() + np.linspace(0, 50, 4000)).problem
        or "grows" in steadiness(latencies() + np.linspace(0, 50, 4000)).problem
    )


def test_a_rare_stall_is_not_taken_for_warm_up():
    values = latencies()
    values[1500:1512] = 100
    assert steadiness(values).warm_up < 1200


def test_too_few_requests_are_said_to_be_too_few():
    assert "too few" in steadiness(latencies(49)).problem
