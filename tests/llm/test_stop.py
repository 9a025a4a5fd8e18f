"""Stop strings, wherever tokens begin and end."""

from hypothesis import given
from hypothesis import strategies as st

from farthing.llm.stop import StopStrings

LETTERS = st.text(alphabet="abc", max_size=12)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the stop string that is complete first, of several the longest."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(LETTERS, STOPS, st.data())
def test_the_text_is_cut_in_the_same_place_however_it_comes(text: str, stops: list[str], data: st.DataObject) -> None:
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    strings = StopStrings(stops)
    shown, found = "", None
    expected, expected_stop = cut(text, stops)
    for start, end in zip([0, *borders], [*borders, len(text)], strict=True):
        more, found = strings.add(text[start:end])
        shown += more
        assert expected.startswith(shown), "nothing is shown that is taken back later"
        if found is not None:
            break
    if found is None:
        shown += strings.end()
    assert (shown, found) == (expected, expected_stop)


@given(LETTERS, STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    strings = StopStrings(stops)
    shown = ""
    for character in text:
        more, found = strings.add(character)
        shown += more
        if found is not None:
            return
        held = text[len(shown) : len(shown) + strings.held]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_the_stop_string_stays_if_asked() -> None:
    assert StopStrings(["END"], includes=True).add("theENDthere") == ("theEND", "END")
    assert StopStrings(["END"]).add("theENDthere") == ("the", "END")


def test_one_complete_before_it_may_stop_is_text_and_one_complete_after_stops() -> None:
    strings = StopStrings(["ab"])
    assert strings.add("xab", may_stop=False) == ("xab", None)
    assert strings.add("a", may_stop=False) == ("", None)
    assert strings.add("b") == ("", "ab")


def test_a_long_text_with_long_stop_strings_takes_no_time() -> None:
    strings = StopStrings(["a" * 1000 + "b"])
    shown = sum(len(strings.add("a").text) for _ in range(5_000))
    assert shown + len(strings.end()) == 5_000
