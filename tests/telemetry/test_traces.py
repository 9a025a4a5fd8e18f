import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.telemetry.traces import (
    REQUEST_ID_CHARS_MAX,
    TRACEPARENT_CHARS_MAX,
    begin_trace,
    clean_request_id,
    continue_trace,
    request_ids,
    samples,
)
from farthing.types.trace import FLAG_SAMPLED

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
HEADER = f"00-{TRACE_ID}-{SPAN_ID}-01"

hexadecimal = "0123456789abcdef"


def hex_id(digits: int) -> st.SearchStrategy[str]:
    return st.text(hexadecimal, min_size=digits, max_size=digits).filter(lambda value: set(value) != {"0"})


def test_the_recommendations_own_example_is_continued_by_a_child() -> None:
    context = continue_trace(HEADER)
    assert context is not None
    assert (context.trace_id, context.parent_span_id, context.is_sampled) == (TRACE_ID, SPAN_ID, True)
    assert context.span_id != SPAN_ID
    assert context.header() == f"00-{TRACE_ID}-{context.span_id}-01"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        HEADER.upper(),
        HEADER + "\n",
        " " + HEADER,
        HEADER + " ",
        HEADER + "-",
        HEADER + "-extra",
        HEADER[:-1],
        HEADER + "0",
        "ff" + HEADER[2:],
        "0" + HEADER,
        HEADER.replace("-", "_"),
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[:-1]}g-{SPAN_ID}-01",
        f"00-{TRACE_ID[:-1]}\N{ARABIC-INDIC DIGIT ONE}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-0g",
        f"01-{TRACE_ID}-{SPAN_ID}-01" + "x",
        f"01-{TRACE_ID}-{SPAN_ID}-01-" + "x" * TRACEPARENT_CHARS_MAX,
    ],
)
def test_what_is_not_a_traceparent_is_ignored(header: str) -> None:
    assert continue_trace(header) is None


def test_a_later_version_is_read_by_its_first_fields_and_answered_as_version_00() -> None:
    context = continue_trace(f"cc-{TRACE_ID}-{SPAN_ID}-09-what-will-be")
    assert context is not None
    assert context.header().startswith(f"00-{TRACE_ID}-")
    assert context.flags == FLAG_SAMPLED, "flags nobody knows are sent as zero"


@given(hex_id(32), hex_id(16), st.integers(0, 255))
def test_every_valid_header_is_understood(trace_id: str, span_id: str, flags: int) -> None:
    context = continue_trace(f"00-{trace_id}-{span_id}-{flags:02x}")
    assert context is not None
    assert (context.trace_id, context.parent_span_id) == (trace_id, span_id)
    assert context.is_sampled == bool(flags & 1)
    again = continue_trace(context.header())
    assert again is not None
    assert (again.trace_id, again.parent_span_id, again.flags) == (trace_id, context.span_id, context.flags)


@given(st.text(max_size=80) | st.text(hexadecimal + "-", max_size=80))
def test_no_text_breaks_the_parser_and_what_it_accepts_is_well_formed(header: str) -> None:
    context = continue_trace(header)
    if context is not None:
        assert header[3:35] == context.trace_id
        assert continue_trace(context.header()) is not None


def test_a_trace_that_begins_here_has_no_parent_and_says_whether_it_is_sampled() -> None:
    for is_sampled in (True, False):
        context = begin_trace(is_sampled=is_sampled)
        assert context.parent_span_id == ""
        assert context.is_sampled is is_sampled
        assert continue_trace(context.header()) is not None


def test_a_child_is_below_its_parent_in_the_same_trace() -> None:
    parent = begin_trace(is_sampled=True)
    child = parent.child()
    assert (child.trace_id, child.parent_span_id, child.flags) == (parent.trace_id, parent.span_id, parent.flags)
    assert child.span_id != parent.span_id


def test_ids_do_not_repeat() -> None:
    contexts = [begin_trace(is_sampled=False) for _ in range(1000)]
    assert len({context.trace_id for context in contexts}) == 1000
    assert len({context.span_id for context in contexts}) == 1000
    one, other = request_ids(), request_ids()
    assert len({next_id() for _ in range(1000) for next_id in (one, other)}) == 2000


def test_our_own_request_ids_pass_our_own_check() -> None:
    next_id = request_ids("web1")
    assert [next_id() for _ in range(17)][-1] == "web1-11"
    assert clean_request_id(request_ids()()) is not None


@pytest.mark.parametrize("value", ["a", "3f2b8c1e-9d7a-4c1e-8b1f-0242ac120002", "Root=1-67891233-abc", "a" * 128])
def test_a_harmless_request_id_is_kept(value: str) -> None:
    assert clean_request_id(value) == value


@pytest.mark.parametrize("value", ["", "a b", "a\r\nSet-Cookie: x", "a\n", '"', "ä", "\x00", "a" * 129, "{}", "<b>"])
def test_a_request_id_that_could_break_a_log_or_a_header_is_replaced(value: str) -> None:
    assert clean_request_id(value) is None


@given(st.text(max_size=200))
def test_an_accepted_request_id_is_short_printable_ascii(value: str) -> None:
    kept = clean_request_id(value)
    if kept is not None:
        assert kept == value
        assert 1 <= len(kept) <= REQUEST_ID_CHARS_MAX
        assert set(kept) <= set(string.ascii_letters + string.digits + "._~:/+=@-")


def test_sampling_keeps_all_none_or_about_its_share() -> None:
    always, never, half = samples(1.0), samples(0.0), samples(0.5)
    assert all(always() for _ in range(1000))
    assert not any(never() for _ in range(1000))
    # Twelve standard deviations of a fair coin thrown 10,000 times.
    assert abs(sum(half() for _ in range(10_000)) - 5000) < 600


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_sampling_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="allowed: 0 to 1"):
        samples(ratio)
