"""Messages with their lengths, deadlines and statuses."""

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.protocols.grpc_wire import (
    CODES,
    MessageReader,
    coding_of,
    framed,
    inflate_message,
    percent_encoded,
    prefixed,
    timeout_us,
    trailers,
)
from farthing.types.errors import InvalidInput, MessageTooLarge, Overloaded, Unsupported


@pytest.mark.parametrize(
    ("said", "microseconds"),
    [(b"1S", 10**6), (b"20m", 20_000), (b"7u", 7), (b"1999n", 1), (b"0S", 0), (b"99999999H", 99999999 * 3600 * 10**6)],
)
def test_a_timeout_has_digits_and_a_unit(said: bytes, microseconds: int) -> None:
    assert timeout_us(said) == microseconds


@pytest.mark.parametrize(
    "said", [b"", b"S", b"1", b"-1S", b"1.5S", b"123456789S", b"1s", b" 1S", b"1S\n", "１S".encode()]
)
def test_anything_else_is_no_timeout(said: bytes) -> None:
    with pytest.raises(InvalidInput, match="is no timeout"):
        timeout_us(said)


@given(st.text())
def test_a_text_survives_percent_encoding_as_printable_ascii(text: str) -> None:
    text = text.encode(errors="replace").decode()
    encoded = percent_encoded(text)
    assert all(0x20 <= byte < 0x7F for byte in encoded)
    assert unquote_to_bytes(encoded).decode() == text


def test_trailers_say_when_to_come_back() -> None:
    assert trailers(Overloaded("full", retry_after_s=0.2), "full") == (
        (b"grpc-message", b"full"),
        (b"retry-after", b"1"),
    )
    assert len(CODES) == 17


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_messages_come_out_as_they_went_in_wherever_they_are_cut(messages: list[bytes], data: st.DataObject) -> None:
    body = b"".join(prefixed(message) for message in messages)
    reader = MessageReader(40)
    found, at = [], 0
    while at < len(body):
        size = data.draw(st.integers(1, 30))
        reader.feed(body[at : at + size])
        at += size
        while (message := reader.next()) is not None:
            found.append(message)
    assert [(bytes(message), is_coded) for message, is_coded in found] == [(message, False) for message in messages]
    assert reader.unread_bytes == 0


def test_a_message_over_the_limit_is_refused_before_it_came() -> None:
    reader = MessageReader(100)
    reader.feed(b"\0\0\0\0\x65")
    with pytest.raises(MessageTooLarge, match="a message of 101 bytes is over the limit of 100"):
        reader.next()
    wrong = MessageReader(100)
    wrong.feed(b"\2\0\0\0\1x")
    with pytest.raises(InvalidInput, match="neither 0 nor 1"):
        wrong.next()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_codings_are_undone_and_bombs_are_not(coding: str) -> None:
    message = bytes(range(256)) * 40
    sent = framed(message, coding_of(coding.encode()))
    assert sent[0] == 1
    assert inflate_message(sent[5:], coding_of(coding.encode()), len(message)) == message
    with pytest.raises(MessageTooLarge):
        inflate_message(sent[5:], coding_of(coding.encode()), len(message) - 1)
    with pytest.raises(InvalidInput):
        inflate_message(b"nonsense", coding_of(coding.encode()), 100)
    assert framed(b"short", coding_of(coding.encode())) == prefixed(b"short")


def test_codings_nobody_knows_are_not_supported() -> None:
    assert coding_of(b"") == coding_of(b"identity") == "identity"
    with pytest.raises(Unsupported, match="`br` is not supported"):
        coding_of(b"br")
    with pytest.raises(InvalidInput, match="names no grpc-encoding"):
        inflate_message(b"", "identity", 10)
