"""Who could never go on."""

from hypothesis import given
from hypothesis import strategies as st

from farthing.engines.contract import Sender
from farthing.runtime.subrequest_waits import Wait, stuck

A, B, C, ONNX = "a", "b", "c", "onnx"


def one_instance() -> int:
    return 1


def two_instances() -> int:
    return 2


def sender(model: str, instance: int = 0, of: int = 1) -> Sender:
    return Sender(model, instance, two_instances if of == 2 else one_instance)


def wait(who: Sender, *targets: str, on: frozenset[Sender] = frozenset()) -> Wait:
    return Wait(who, frozenset(targets), on)


def test_a_wait_for_a_model_that_waits_for_nobody_ends() -> None:
    assert stuck([wait(sender(A), ONNX), wait(sender(B), A), wait(sender(C), B, ONNX)]) == set()


def test_a_circle_of_single_instances_is_stuck_with_all_that_wait_for_it() -> None:
    assert stuck([wait(sender(A), A)]) == {sender(A)}
    circle = [wait(sender(A), B), wait(sender(B), A)]
    assert stuck([*circle, wait(sender(C), B)]) == {sender(A), sender(B), sender(C)}


def test_an_instance_that_is_free_ends_a_circle() -> None:
    one, other = sender(A, 0, of=2), sender(A, 1, of=2)
    assert stuck([wait(one, A)]) == set()
    assert stuck([wait(one, A), wait(other, A)]) == {one, other}
    assert stuck([wait(one, A), wait(other, ONNX)]) == set()


def test_what_runs_already_needs_the_instance_it_runs_on() -> None:
    # A asks B, whose first instance has it and asks A: that B's second instance is free helps nobody.
    one = sender(B, 0, of=2)
    assert stuck([wait(sender(A), B), wait(one, A)]) == set()
    assert stuck([wait(sender(A), B, on=frozenset({one})), wait(one, A)]) == {sender(A), one}


def test_an_ensemble_needs_each_of_its_models() -> None:
    assert stuck([wait(sender(A), ONNX, B), wait(sender(B), A)]) == {sender(A), sender(B)}


senders = st.builds(Sender, st.sampled_from("abcd"), st.integers(0, 1), st.just(two_instances))
waits = st.lists(st.builds(Wait, senders, st.frozensets(st.sampled_from("abcde"), min_size=1), st.frozensets(senders)))


@given(waits, senders)
def test_fewer_waits_never_leave_more_stuck_and_what_is_stuck_waits_for_what_is(
    all_waits: list[Wait], who: Sender
) -> None:
    found = stuck(all_waits)
    assert stuck([w for w in all_waits if w.sender != who]) <= found
    blocked = {s.model for s in found if sum(other.model == s.model for other in found) == s.instances()}
    for one in found:
        assert any(w.targets & blocked or w.runs_on & found for w in all_waits if w.sender == one)
