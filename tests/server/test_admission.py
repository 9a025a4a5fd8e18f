"""Room: bytes under way, a tenant's share, a model's queue. The answer at each limit is at once and says when."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serving import Gate, eventually, serving

from farthing.config.server import AdmissionLimits
from farthing.server.admission import Admission
from farthing.types.errors import Overloaded, TenantLimited


def test_bytes_fit_up_to_the_limit_and_refused_ones_are_not_counted() -> None:
    admission = Admission(AdmissionLimits(inflight_bytes_max=10))
    admission.take_bytes(10)
    with pytest.raises(Overloaded, match="10 bytes, and 1 more would exceed the 10 allowed") as caught:
        admission.take_bytes(1)
    assert caught.value.retry_after_s == 1
    admission.give_bytes(4)
    admission.take_bytes(4)
    assert admission.bytes == 10


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=60))
def test_no_tenant_is_ever_over_its_share_and_nothing_is_kept_of_those_who_left(
    steps: list[tuple[bool, str]],
) -> None:
    admission = Admission(AdmissionLimits())
    under_way = dict.fromkeys("abc", 0)
    for enters, tenant in steps:
        if enters and under_way[tenant] == 3:
            with pytest.raises(TenantLimited):
                admission.enter(tenant, 3)
        elif enters:
            admission.enter(tenant, 3)
            under_way[tenant] += 1
        elif under_way[tenant]:
            admission.leave(tenant)
            under_way[tenant] -= 1
    assert admission._inflight_of == {tenant: count for tenant, count in under_way.items() if count}


def test_a_full_queue_is_503_with_when_to_come_back(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with serving(gate.path, admission=AdmissionLimits(queue_requests_max=2)) as live:
        running = live.connect().send(gate.request(1))
        eventually(gate.seen)
        waiting = [live.connect().send(gate.request(value)) for value in (2, 3)]
        eventually(lambda: live.metric("nv_inference_pending_request_count", model="gate") == 2)
        refused = live.connect().send(gate.request(4)).read_reply()
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "Exceeds maximum queue size" in refused.error
        gate.open()
        assert [wire.read_reply().status for wire in (running, *waiting)] == [200] * 3
        assert live.metric("nv_inference_request_failure", model="gate", reason="REJECTED") == 1


def test_a_request_whose_time_runs_out_in_the_queue_is_503_and_never_runs(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with serving(gate.path) as live:
        running = live.connect().send(gate.request(1))
        eventually(gate.seen)
        late = live.infer("gate", [[2.0]], parameters={"timeout": 50_000})
        by_header = live.connect().send(gate.request(3, X_Envoy_Expected_Rq_Timeout_Ms="50")).read_reply()
        for refused in (late, by_header):
            assert refused.status == 503
            assert refused.error.startswith("Request timeout expired")
        gate.open()
        assert running.read_reply().status == 200
        assert live.infer("gate", [[4.0]], parameters={"timeout": 20_000_000}).status == 200
        assert gate.seen() == [1, 4]
