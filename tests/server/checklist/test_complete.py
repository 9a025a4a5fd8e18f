"""Is every row of the checklist tried, and every one where Triton errs decided?

The rows are those of the KServe v2 protocol and Triton's extensions to it; a test says in its name which it tries, such
as `test_v12_...` or `test_s6_8_...` for section 6.8.
"""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "reference" / "triton-differences.md"

ROWS = [
    *(f"t{number}" for number in range(1, 15)),
    *("s2", "s2_1", "s2_2", "s2_3", "s3", "s4", "s4_3"),
    *(f"v{number}" for number in range(1, 37)),
    *(f"b{number}" for number in range(1, 11)),
    *(f"g{number}" for number in range(1, 16)),
    *(f"s6_{number}" for number in range(1, 13)),
]

ELSEWHERE = {
    "v26": "a model with several answers on /infer",
    "s6_4": "the generate extension",
    "g8": "ModelInfer on a model with several answers",
}
"""Rows that have their tests beside what they are about; where that is stands in `PLACES`."""

PLACES = {
    "v26": ["tests/server/test_decoupled.py"],
    "g8": ["tests/server/test_decoupled.py"],
    "s6_4": ["tests/server/test_decoupled.py", "tests/protocols/kserve/test_generate_tensors.py"],
}

DECIDED = {
    "V5": "no JSON",
    "V6": "wrong type",
    "V7": "Negative dimension",
    "V11": "fill `shape`",
    "B2": "12abc",
    "B7": "binary_data_output",
    "G2": "raw_input_contents",
    "6.2": "default_timeout_microseconds",
    "6.5": "log_format",
    "6.6": "Unknown trace settings",
    "6.8": "unload_dependents",
}
"""The checklist's quirks: where Triton's code does what its text or good sense does not."""


def _tried() -> set[str]:
    names = re.findall(r"^def test_(\w+)\(", "\n".join(path.read_text() for path in HERE.glob("test_*.py")), re.M)
    found = set()
    for name in names:
        rows = re.match(r"(?:(?:s\d+(?:_\d+)*|[tvbg]\d+)_)+", name)
        found.update(re.findall(r"(s\d+(?:_\d+)*|[tvbg]\d+)_", rows[0] if rows else ""))
    return found


def test_every_row_has_a_test_named_after_it() -> None:
    assert sorted(set(ROWS) - _tried() - set(ELSEWHERE)) == []
    assert sorted(_tried() - set(ROWS)) == []


def test_rows_tried_elsewhere_are_tried_there() -> None:
    assert PLACES.keys() == ELSEWHERE.keys()
    for places in PLACES.values():
        for place in places:
            assert "def test_" in (HERE.parents[2] / place).read_text()


def _decisions() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in rows if row[0] != "Row"]


@pytest.mark.parametrize(("row", "words"), DECIDED.items())
def test_every_quirk_is_decided_in_one_place(row: str, words: str) -> None:
    found = [line for line in _decisions() if line[0] == row and words in line[1]]
    assert len(found) == 1, f"{row}: {found}"


def test_every_difference_says_who_does_what_and_why_and_stands_once() -> None:
    decisions = _decisions()
    assert len(decisions) > 60
    cases = [line[1] for line in decisions]
    assert sorted({case for case in cases if cases.count(case) > 1}) == []
    for line in decisions:
        assert len(line) == 5, line
        assert line[1], line
        assert line[3], line
    known = {row.replace("_", ".").removeprefix("s").upper() for row in ROWS} | {"–"}
    assert {line[0] for line in decisions} <= known


def test_other_pages_keep_no_tables_of_their_own() -> None:
    for page in PAGE.parent.glob("*.md"):
        if page != PAGE:
            assert "| Triton | Farthing |" not in page.read_text(), page.name
