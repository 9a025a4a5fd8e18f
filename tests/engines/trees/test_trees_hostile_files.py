"""Files nobody trusts: whatever is in them, the answer is a forest or `LoadFailed`, soon and in bounded memory."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engines.trees.forests import DATA, load, predict

from farthing.engines.trees import Trees
from farthing.engines.trees.engine import MODEL_BYTES_MAX
from farthing.engines.trees.forest import DEPTH_MAX
from farthing.types.errors import LoadFailed

MODELS = sorted(p for p in DATA.iterdir() if p.suffix in Trees.suffixes and "expected" not in p.name)
FUZZ = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def attempt(path: Path, content: bytes) -> LoadFailed | None:
    """Loads; a model that loads must also run."""
    path.write_bytes(content)
    Trees().recognises(path)
    try:
        model = load(path)
    except LoadFailed as error:
        return error if str(path) in error.message else pytest.fail(f"does not name the file: {error.message}")
    predict(model, np.full((3, model.inputs[0].shape[1]), np.nan))
    return None


@pytest.mark.parametrize("source", MODELS, ids=lambda p: p.name)
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path, source: Path) -> None:
    content = source.read_bytes().rstrip()
    end = content.index(b"end of trees") if source.suffix == ".txt" else len(content)
    for size in [*range(0, end, 97), end - 1]:
        assert attempt(tmp_path / source.name, content[:size]) is not None, size


@FUZZ
@given(source=st.sampled_from(MODELS), data=st.data())
def test_changed_bytes_give_a_forest_or_load_failed(tmp_path: Path, source: Path, data: st.DataObject) -> None:
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    attempt(tmp_path / source.name, bytes(content))


@FUZZ
@given(source=st.sampled_from([p for p in MODELS if p.suffix == ".txt"]), data=st.data())
def test_changed_numbers_give_a_forest_or_load_failed(tmp_path: Path, source: Path, data: st.DataObject) -> None:
    lines = source.read_text().split("\n")
    places = [i for i, line in enumerate(lines) if "=" in line]
    at = data.draw(st.sampled_from(places))
    key, _, value = lines[at].partition("=")
    words = value.split(" ")
    words[data.draw(st.integers(0, len(words) - 1))] = data.draw(
        st.sampled_from(["-1", "0", "7", "99999", "4294967296", "-99999999999999999999", "nan", "inf", "x", "", "1 2"])
    )
    lines[at] = f"{key}={' '.join(words)}"
    attempt(tmp_path / source.name, "\n".join(lines).encode())


def places_in(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inner for place in places_in(item, (*at, key)))]


JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-2, -1, 0, 1, 5, 1 << 24, 1 << 31, 1 << 63, 1 << 70, 1e308, -0.5, "", "7", "-1", "[1,2]", "x"]),
    st.lists(st.integers(-3, 3), max_size=4),
    st.just({}),
)


@FUZZ
@given(source=st.sampled_from([p for p in MODELS if p.suffix == ".json"]), data=st.data())
def test_changed_json_gives_a_forest_or_load_failed(tmp_path: Path, source: Path, data: st.DataObject) -> None:
    document = json.loads(source.read_bytes())
    *path, last = data.draw(st.sampled_from(places_in(document)[1:]))
    inside = document
    for key in path:
        inside = inside[key]
    if data.draw(st.booleans()):
        inside[last] = data.draw(JSON_VALUES)
    else:
        del inside[last]
    attempt(tmp_path / source.name, json.dumps(document).encode())


@FUZZ
@given(
    content=st.binary(max_size=300),
    head=st.sampled_from([b"", b"tree\n", b'{"learner":', b"{L" + bytes(7) + b"\x07learner"]),
)
def test_any_bytes_give_load_failed(tmp_path: Path, content: bytes, head: bytes) -> None:
    for suffix in Trees.suffixes:
        assert attempt(tmp_path / f"model{suffix}", head + content) is not None


def test_text_that_is_no_utf8_is_refused_or_does_not_matter(tmp_path: Path) -> None:
    content = (DATA / "xgboost_binary.json").read_bytes().replace(b'"name":"gbtree"', b'"name":"\x80btree"')
    error = attempt(tmp_path / "model.json", content)
    assert error is not None
    assert "utf-8" in error.message


def test_a_child_that_is_its_own_ancestor_is_refused(tmp_path: Path) -> None:
    text = (DATA / "lightgbm_zero_as_missing.txt").read_text()
    line = next(line for line in text.splitlines() if line.startswith("left_child="))
    error = attempt(tmp_path / "model.txt", text.replace(line, "left_child=0 " + line.split(" ", 1)[1]).encode())
    assert error is not None
    assert "child of two nodes" in error.message


def chain(splits: int) -> bytes:
    """One tree, each split's right child the next split."""
    lines = {
        "num_leaves": [splits + 1],
        "split_feature": [0] * splits,
        "threshold": range(splits),
        "decision_type": [2] * splits,
        "left_child": [~i for i in range(splits)],
        "right_child": [*range(1, splits), ~splits],
        "leaf_value": range(splits + 1),
    }
    head = "tree\nversion=v4\nnum_tree_per_iteration=1\nmax_feature_idx=0\nobjective=regression\n\nTree=0\n"
    return (head + "\n".join(f"{k}={' '.join(map(str, v))}" for k, v in lines.items()) + "\n\nend of trees\n").encode()


def test_a_deep_tree_is_served_and_one_over_the_limit_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.txt").write_bytes(chain(DEPTH_MAX))
    found = predict(load(tmp_path / "deep.txt"), np.array([[0.0], [500.5], [DEPTH_MAX - 0.5]]))
    assert found[:, 0].tolist() == [0, 501, DEPTH_MAX]
    error = attempt(tmp_path / "deeper.txt", chain(DEPTH_MAX + 1))
    assert error is not None
    assert f"deeper than {DEPTH_MAX}" in error.message


@pytest.mark.parametrize(
    ("line", "value", "message"),
    [
        ("max_feature_idx", "2000000000", "features"),
        ("num_tree_per_iteration", "1000000000", "does not divide"),
        ("version", "v9", "v2, v3, v4"),
        ("objective", "binary sigmoid:nan", "not a positive number"),
        ("objective", "shapes", "`shapes` is not known"),
        ("tree_sizes", "1 2", "announces 2"),
    ],
)
def test_a_head_that_promises_too_much_is_refused(tmp_path: Path, line: str, value: str, message: str) -> None:
    text = (DATA / "lightgbm_binary.txt").read_text()
    old = next(written for written in text.splitlines() if written.startswith(f"{line}="))
    error = attempt(tmp_path / "model.txt", text.replace(old, f"{line}={value}", 1).encode())
    assert error is not None
    assert message in error.message


def test_an_unknown_objective_can_be_served_raw(tmp_path: Path) -> None:
    text = (DATA / "lightgbm_binary.txt").read_text().replace("objective=binary", "objective=shapes")
    (tmp_path / "model.txt").write_text(text)
    rows = np.zeros((2, 5))
    known = load(DATA / "lightgbm_binary.txt", output="raw")
    assert np.array_equal(predict(load(tmp_path / "model.txt", output="raw"), rows), predict(known, rows))


def test_a_file_over_the_size_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    with path.open("wb") as file:
        file.write(b"tree\n")
        file.truncate(MODEL_BYTES_MAX + 1)  # sparse: takes no room on disk
    with pytest.raises(LoadFailed, match="bytes"):
        load(path)


def test_nesting_and_counts_in_ubjson_cannot_ask_for_more_than_the_file_holds(tmp_path: Path) -> None:
    key = b"{L" + struct.pack(">q", 7) + b"learner"
    for bomb, message in (
        (b"[" * 100_000, "nested deeper"),
        (b"[$Z#i\x05     ", "takes no bytes"),
        (b"[$N#i\x05     ", "takes no bytes"),
        (b"[#L" + struct.pack(">q", 1 << 40), "length"),
        (b"[$d#L" + struct.pack(">q", 1 << 40), "length"),
        (b"SL" + struct.pack(">q", -1), "length"),
        (b"{$dd", "without a count"),
        (b"{$T#i\x05     ", "takes no bytes"),
        (b"@", "no value begins"),
    ):
        (tmp_path / "model.ubj").write_bytes(key + bomb)
        with pytest.raises(LoadFailed, match=message):
            load(tmp_path / "model.ubj")


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    opening = '{"split_feature":0,"threshold":1.0,"right_child":{"leaf_value":1},"left_child":' * 50_000
    head = '{"version":"v4","num_tree_per_iteration":1,"max_feature_idx":0,"tree_info":[{"tree_structure":'
    error = attempt(tmp_path / "model.json", (head + opening).encode())
    assert error is not None


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="No such file"):
        load(tmp_path / "model.txt")
    assert not Trees().recognises(tmp_path / "model.txt")
