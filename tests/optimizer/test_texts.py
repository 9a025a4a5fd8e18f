"""Text files become the arrays a model takes, and what does not fit is told with its line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from farthing.optimizer.samples import read_samples
from farthing.optimizer.texts import bytes_array, read_texts, tokenizer_beside
from farthing.types.errors import InvalidInput
from farthing.types.tensors import TensorSpec

IDS = TensorSpec(name="input_ids", datatype="INT64", shape=(-1, -1))
MASK = TensorSpec(name="attention_mask", datatype="INT64", shape=(-1, -1))
WORDS = TensorSpec(name="words", datatype="BYTES", shape=(-1, 1))
X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "cat": 2, "sat": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def put(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_lines_of_text_go_through_the_tokenizer_padded_to_the_longest(tmp_path: Path, tokenizer: Path) -> None:
    file = put(tmp_path, "texts.txt", "a cat\n\na cat sat\n")
    arrays = read_texts(file, [IDS, MASK], tokenizer)
    assert arrays["input_ids"].tolist() == [[1, 2, 0], [1, 2, 3]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_model_with_room_for_so_many_tokens_gets_so_many(tmp_path: Path, tokenizer: Path) -> None:
    fixed = TensorSpec(name="input_ids", datatype="INT64", shape=(-1, 2))
    assert read_texts(put(tmp_path, "t.txt", "a cat sat\na\n"), [fixed], tokenizer)["input_ids"].shape == (2, 2)


def test_json_lines_may_have_texts_pairs_and_labels(tmp_path: Path, tokenizer: Path) -> None:
    lines = '{"text": "a", "text_pair": "cat", "label": 1}\n{"text": "sat", "text_pair": "a", "label": 0}\n'
    samples = read_samples(put(tmp_path, "t.jsonl", lines), [IDS, MASK], has_batch_axis=True, tokenizer=tokenizer)
    assert samples.inputs["input_ids"].tolist() == [[1, 2], [3, 1]]
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0]


def test_json_lines_may_have_the_inputs_themselves(tmp_path: Path) -> None:
    samples = read_samples(put(tmp_path, "t.jsonl", '{"x": [1, 2]}\n{"x": [3, 4.5]}\n'), [X], has_batch_axis=True)
    assert samples.inputs["x"].tolist() == [[1, 2], [3, 4.5]]


def test_a_model_that_takes_text_gets_it_as_it_is(tmp_path: Path) -> None:
    for name, text in (("t.txt", "ein Käse\nzwei\n"), ("t.jsonl", '{"words": "ein Käse"}\n{"words": "zwei"}\n')):
        words = read_samples(put(tmp_path, name, text), [WORDS], has_batch_axis=True).inputs["words"]
        assert words.tolist() == [["ein Käse".encode()], [b"zwei"]]


def test_arrays_of_text_may_come_in_a_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", words=np.array(["a", "bb"]))
    assert read_samples(tmp_path / "data.npz", [WORDS], has_batch_axis=True).inputs["words"].tolist() == [
        [b"a"],
        [b"bb"],
    ]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.jsonl", '{"text": "a"}\n{"text" "b"}\n', "line 2 is no JSON"),
        ("t.jsonl", '{"text": "a"}\n[1]\n', "line 2 is no object"),
        ("t.jsonl", '{"text": "a"}\n{"txet": "b"}\n', "sample 2 has other fields"),
        ("t.jsonl", '{"text": 3}\n{"text": 4}\n', "no strings"),
        ("t.jsonl", '{"input_ids": [1]}\n{"input_ids": [1, 2]}\n', "differs in shape"),
        ("t.txt", "\n\n", "no samples"),
        ("t.jsonl", "", "no samples"),
    ],
)
def test_lines_that_do_not_fit_are_named(tmp_path: Path, tokenizer: Path, name: str, text: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        read_texts(put(tmp_path, name, text), [IDS], tokenizer)


def test_a_tokenizer_that_is_missing_or_of_no_use_is_said(tmp_path: Path, tokenizer: Path) -> None:
    file = put(tmp_path, "t.txt", "a\ncat\n")
    with pytest.raises(InvalidInput, match="need a tokenizer") as caught:
        read_texts(file, [IDS], None)
    assert "--tokenizer" in caught.value.hint
    with pytest.raises(InvalidInput, match="no tokenizer gives input `x`"):
        read_texts(file, [X], tokenizer)
    with pytest.raises(InvalidInput, match="is no tokenizer"):
        read_texts(file, [IDS], put(tmp_path, "odd.json", "{}"))


def test_the_tokenizer_is_found_beside_the_model_or_above_its_version(tmp_path: Path, tokenizer: Path) -> None:
    assert tokenizer_beside(tmp_path / "model.onnx") == tokenizer
    assert tokenizer_beside(tmp_path / "1" / "model.onnx") == tokenizer
    assert tokenizer_beside(tmp_path / "a" / "b" / "model.onnx") is None


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=4))
def test_bytes_stay_as_they_are(values: list[bytes]) -> None:
    assert bytes_array(values).tolist() == values


@given(st.text(max_size=60))
def test_no_text_crashes_the_reader(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name in ("t.txt", "t.jsonl"):
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8", errors="replace")
            with pytest.raises(InvalidInput):
                read_texts(path, [IDS], None)
