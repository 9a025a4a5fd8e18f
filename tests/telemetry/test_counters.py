from farthing.telemetry.counters import DurationHistogram, HttpCounters


def test_answers_are_counted_by_route_and_status_and_an_unlisted_route_is_other() -> None:
    http = HttpCounters()
    for route, status in (("infer", 200), ("infer", 200), ("infer", 400), ("/v2/models/x", 404)):
        http.answered(route, status)
    assert http.requests["infer"] == {200: 2, 400: 1}
    assert http.requests["other"] == {404: 1}
    assert "/v2/models/x" not in http.requests


def test_copies_stay_as_they_were() -> None:
    http, lag = HttpCounters(), DurationHistogram()
    http.connections_open = 7
    http.answered("infer", 200)
    lag.observe(5)
    http_copy, lag_copy = http.copy(), lag.copy()
    http.answered("infer", 200)
    http.rejected["slow"] += 1
    lag.observe(6)
    assert (http_copy.connections_open, http_copy.requests["infer"], http_copy.rejected["slow"]) == (7, {200: 1}, 0)
    assert (sum(lag_copy.buckets), lag_copy.total_ns) == (1, 5)
