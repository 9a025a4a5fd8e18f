"""Server-sent events, both ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.protocols import sse
from farthing.types.errors import TooLarge

LINES = st.binary(max_size=30).filter(lambda data: b"\n" not in data and b"\r" not in data)


@given(st.lists(LINES.filter(bool), max_size=6), st.data())
def test_what_is_framed_is_read_back_however_it_is_cut(events: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(sse.event(one) + (sse.PING if data.draw(st.booleans()) else b"") for one in events)
    reader, read, at = sse.Reader(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 40))
        read += reader.feed(stream[at : at + size])
        at += size
    assert read == events


def test_other_fields_and_line_ends_are_understood() -> None:
    reader = sse.Reader()
    assert reader.feed(b"event: x\r\ndata: a\r\ndata:b\r\nid: 3\r\n\r\n: comment\n\nretry: 5\n\n") == [b"a\nb"]


def test_an_event_without_an_end_is_refused() -> None:
    reader = sse.Reader()
    assert reader.feed(b"data: " + b"x" * (sse.EVENT_BYTES_MAX - 6)) == []
    with pytest.raises(TooLarge):
        reader.feed(b"x")
