"""Numbers of requests tell where they came from, as long as anything may still ask for them."""

from hypothesis import given
from hypothesis import strategies as st

from farthing.engines.python.stream_messages import depth_of, is_own, numbered
from farthing.runtime.subrequests import DEPTH_MAX


@given(st.integers(1, 2**40), st.integers(0, DEPTH_MAX + 1), st.booleans())
def test_a_number_has_its_depth_and_whose_request_it_is(count: int, depth: int, own: bool) -> None:
    number = numbered(count, depth, is_own=own)
    assert (depth_of(number), is_own(number)) == (depth, own)
    assert number < 2**63, "messages carry 64 bits"
    assert numbered(count + 1, 0, is_own=False) > number, "no other request has it"


def test_a_line_longer_than_a_number_can_tell_is_still_too_long() -> None:
    assert depth_of(numbered(1, 10_000, is_own=True)) > DEPTH_MAX
    assert depth_of(-1) > DEPTH_MAX, "whatever a process says"
