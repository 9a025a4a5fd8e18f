"""`Server-Timing` is read as far as it makes sense and never raises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.client.result import TimingEntry, parse_server_timing


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", {}),
        ("miss", {"miss": TimingEntry()}),
        ("db;dur=53", {"db": TimingEntry(53.0)}),
        ('cache;desc="Read, then; \\"kept\\"";dur=23.2', {"cache": TimingEntry(23.2, 'Read, then; "kept"')}),
        ("a;dur=1,b;DUR=2 , c ; dur = 3", {"a": TimingEntry(1.0), "b": TimingEntry(2.0), "c": TimingEntry(3.0)}),
        ("a;dur=soon", {"a": TimingEntry()}),
        ("a;dur=1, ???;=", {"a": TimingEntry(1.0)}),
    ],
)
def test_entries_are_read(header: str, expected: dict[str, TimingEntry]) -> None:
    assert parse_server_timing(header) == expected


@given(st.text(alphabet='ab;=", \\dur1.', max_size=60) | st.text(max_size=40))
def test_any_header_is_read_somehow(header: str) -> None:
    parse_server_timing(header)
