from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.bench.traces import TraceRow, read_trace, scaled
from farthing.types.errors import InvalidInput

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
MOONCAKE = """{"timestamp": 500, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 0, "input_length": 1030, "output_length": 6, "hash_ids": [0, 2, 3]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_azures_format_is_read(tmp_path):
    first, second = read_trace(write(tmp_path, AZURE))
    assert first == TraceRow(at_s=0, prompt_tokens=374, output_tokens=44)
    assert (second.at_s, second.output_tokens) == (pytest.approx(4.314579, abs=1e-6), 109)


def test_mooncakes_format_is_read_and_put_in_order(tmp_path):
    rows = read_trace(write(tmp_path, MOONCAKE))
    assert rows == [
        TraceRow(at_s=0, prompt_tokens=1030, output_tokens=6, blocks=(0, 2, 3)),
        TraceRow(at_s=0.5, prompt_tokens=600, output_tokens=5, blocks=(0, 1)),
    ]


def test_a_trace_is_played_faster_and_cut(tmp_path):
    rows = read_trace(write(tmp_path, AZURE))
    assert [row.at_s for row in scaled(rows, speed=2)] == [0, pytest.approx(2.15729, abs=1e-5)]
    assert len(scaled(rows, speed=2, duration_s=2)) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "line 1: columns a, b"),
        (AZURE + "2023-11-16 18:15:51,x,1\n", "line 4: "),
        (AZURE + "2023-11-16 18:15:51,-1,1\n", "line 4: -1 prompt"),
        (MOONCAKE + "{}\n", "line 3: "),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no requests"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, text, said):
    with pytest.raises(InvalidInput, match=said):
        read_trace(write(tmp_path, text))


@given(st.text())
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("t") / "trace"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + text, errors="replace")
    with suppress(InvalidInput):
        assert read_trace(path)[0].at_s == 0
