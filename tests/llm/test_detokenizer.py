"""Text from tokens, character by character."""

from hypothesis import given
from hypothesis import strategies as st

from farthing.llm.detokenizer import Detokenizer, token_text

PIECES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from([bytes([one]) for one in b"\xf0\x9f\x98\x80\xe2\x82\xac\xc3\xa9\xed\xa0\x80\xf4\x90\xc0\xff a"]),
)


@given(st.lists(PIECES, max_size=24))
def test_pieces_joined_are_the_text_of_the_whole(pieces: list[bytes]) -> None:
    detokenizer = Detokenizer(pieces.__getitem__)
    shown = [detokenizer.add(at) for at in range(len(pieces))]
    assert "".join(shown) + detokenizer.end() == b"".join(pieces).decode("utf-8", "replace")


@given(st.text(max_size=20), st.randoms())
def test_no_character_is_ever_cut(text: str, chance: object) -> None:
    data = text.encode()
    detokenizer = Detokenizer(lambda at: data[at : at + 1])
    shown = ""
    for at in range(len(data)):
        shown += detokenizer.add(at)
        assert text.startswith(shown)
    assert shown == text
    assert not detokenizer.is_inside_character


def test_special_tokens_are_skipped_if_asked() -> None:
    words = [b"<s>", b"hi", b"</s>"]
    assert "".join(map(Detokenizer(words.__getitem__, {0, 2}).add, range(3))) == "hi"
    assert "".join(map(Detokenizer(words.__getitem__).add, range(3))) == "<s>hi</s>"


def test_a_tokens_label_shows_bytes_that_are_no_text() -> None:
    assert token_text("é".encode()) == "é"
    assert token_text(b"\xe2\x80") == r"bytes:\xe2\x80"
