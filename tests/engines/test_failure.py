"""Messages repeat what runtimes and files say, in one printable line."""

from hypothesis import given
from hypothesis import strategies as st

from farthing.engines.failure import NAME_CHARACTERS_MAX, REASON_CHARACTERS_MAX, reason_of, shown


def test_source_places_and_statuses_are_left_out() -> None:
    ort = RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Load failed: /onnxruntime_src/core/graph.cc:12 bad\nnode")
    assert reason_of(ort) == "Load failed: bad node"
    openvino = RuntimeError(
        "Exception from src/core.cpp:117:\nCheck '!a.b()' failed at src/node.cpp:108:\nNo such thing\n\n"
    )
    assert reason_of(openvino) == "No such thing"


def test_an_error_without_words_has_its_type() -> None:
    assert reason_of(MemoryError()) == "MemoryError"


@given(st.text())
def test_whatever_a_file_says_is_one_short_printable_line(text: str) -> None:
    for line, most in ((shown(text), NAME_CHARACTERS_MAX), (reason_of(ValueError(text)), REASON_CHARACTERS_MAX)):
        assert line.isprintable()
        assert len(line) <= most + 3
