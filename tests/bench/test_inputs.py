import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.bench.inputs import inputs_from_file, random_inputs
from farthing.bench.prompts import conversations, parse_lengths, prompts_of_file, replayed
from farthing.bench.traces import TraceRow
from farthing.bench.wire import _text
from farthing.types.errors import InvalidInput
from farthing.types.tensors import NUMPY_DTYPES, TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))


@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
def test_random_inputs_fit_the_model(datatype):
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, 3))
    for inputs in random_inputs([spec], {"x": (2, 3)}, 0):
        assert (inputs["x"].dtype, inputs["x"].shape) == (spec.dtype, (2, 3))


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(InvalidInput, match=r"\[2, 3\] for input `x`"):
        random_inputs([X], {"x": (2, 3)}, 0)
    with pytest.raises(InvalidInput, match="no input `z`"):
        random_inputs([X], {"z": (1,)}, 0)


def test_files_become_requests(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((1, 2)))
    (tmp_path / "b.json").write_text(
        json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]})
    )
    (tmp_path / "c.jsonl").write_text('{"x": [[1, 1]]}\n\n{"x": [[1, 1]]}\n')
    for name, count in (("a.npz", 1), ("b.json", 1), ("c.jsonl", 2)):
        found = inputs_from_file(tmp_path / name, [X])
        assert len(found) == count
        for inputs in found:
            np.testing.assert_array_equal(inputs["x"], np.ones((1, 2), np.float32))
            assert inputs["x"].dtype == np.float32


def test_a_picture_becomes_what_the_model_takes(tmp_path):
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "p.png"), np.full((9, 7, 3), 255, np.uint8))
    spec = TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 16, 12))
    (inputs,) = inputs_from_file(tmp_path / "p.png", [spec])
    np.testing.assert_array_equal(inputs["image"], np.ones((1, 3, 16, 12), np.float32))


def test_a_sound_becomes_a_row_of_samples_cut_or_padded(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    wave = (np.arange(-500, 500) / 1000).astype(np.float32)
    soundfile.write(tmp_path / "s.wav", np.stack([wave, -wave], 1), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "s.flac", wave, 16_000)
    for length, wanted in ((-1, wave), (300, wave[:300]), (1200, np.pad(wave, (0, 200)))):
        spec = TensorSpec(name="sound", datatype="FP32", shape=(-1, length))
        (inputs,) = inputs_from_file(tmp_path / "s.wav", [spec])
        np.testing.assert_array_equal(inputs["sound"], wanted[None])
        (inputs,) = inputs_from_file(tmp_path / "s.flac", [spec])
        np.testing.assert_allclose(inputs["sound"], wanted[None], atol=2**-15)


def test_a_text_is_a_request_a_line_and_a_folder_is_all_its_files(tmp_path):
    words = TensorSpec(name="text", datatype="BYTES", shape=(-1, 1))
    (tmp_path / "b.txt").write_text("Grüße\n\nto all\n")
    (tmp_path / "a.bin").write_bytes(b"\x00\xff")
    (tmp_path / ".hidden").write_text("no")
    found = inputs_from_file(tmp_path, [words])
    assert [inputs["text"].tolist() for inputs in found] == [[[b"\x00\xff"]], [["Grüße".encode()]], [[b"to all"]]]
    with pytest.raises(InvalidInput, match="text is for BYTES"):
        inputs_from_file(tmp_path / "b.txt", [X])


def test_prompts_come_from_files(tmp_path):
    (tmp_path / "p.txt").write_text("Why?\nHow?\n")
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "Why?"}\n{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How?"}]}\n'
    )
    plain = prompts_of_file(tmp_path / "p.txt", parse_lengths("7"), 0)
    assert [(turn.messages, turn.output_tokens) for (turn,) in plain] == [
        ((("user", "Why?"),), 7),
        ((("user", "How?"),), 7),
    ]
    told = prompts_of_file(tmp_path / "p.jsonl", parse_lengths("5-6"), 0)
    assert told[0][0].messages == (("user", "Why?"),)
    assert told[1][0].messages == (("system", "Be brief."), ("user", "How?"))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n[1]\n')
    with pytest.raises(InvalidInput, match="line 2 is no prompt"):
        prompts_of_file(tmp_path / "bad.jsonl", parse_lengths("5"), 0)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "cannot be read"),
        ("a.json", "[1]", "a request is an object"),
        ("a.json", '{"y": [1]}', "no input `y`"),
        ("a.jsonl", "", "no requests"),
        ("a.txt", "hello", "text is for BYTES"),
        ("a.txt", "\n\n", "no lines"),
        ("a.xyz", "hello", "`.xyz` is not known"),
        ("a.npz", "no zip", "cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInput, match=said):
        inputs_from_file(tmp_path / name, [X])


@given(st.text(alphabet="0123456789-~ x", max_size=9))
def test_lengths_are_read_or_refused(text):
    try:
        lengths = parse_lengths(text)
    except InvalidInput:
        return
    drawn = lengths.draw(50, np.random.default_rng(0))
    assert all(lengths.least <= n <= lengths.most for n in drawn)


def test_conversations_share_what_they_should_and_nothing_else():
    made = conversations(20, parse_lengths("64"), parse_lengths("8"), turns=3, prefix_tokens=32, prefixes=2, seed=1)
    first = [chain[0].messages[0][1].split(" ") for chain in made]
    assert {len(words) for words in first} == {64}
    assert len({tuple(words[:32]) for words in first}) == 2
    assert len({tuple(words[32:]) for words in first}) == 20
    for chain in made:
        assert [len(turn.messages) for turn in chain] == [1, 3, 5]
        assert chain[2].messages[:3] == chain[1].messages, "a turn goes on from the one before"


def test_a_replayed_trace_has_its_lengths_and_shares_its_blocks():
    rows = [
        TraceRow(at_s=0, prompt_tokens=1030, output_tokens=6, blocks=(0, 2, 3)),
        TraceRow(at_s=1, prompt_tokens=600, output_tokens=0, blocks=(0, 1)),
        TraceRow(at_s=2, prompt_tokens=9, output_tokens=3),
    ]
    made = replayed(rows, prompt_tokens_max=10_000, output_tokens_max=5, seed=0)
    words = [chain[0].messages[0][1].split(" ") for chain in made]
    assert [len(one) for one in words] == [1030, 600, 9]
    assert words[0][:512] == words[1][:512]
    assert words[0][512:600] != words[1][512:]
    assert [chain[0].output_tokens for chain in made] == [5, 1, 3]


@given(st.text(alphabet="abc-/.", max_size=5000))
def test_header_texts_are_what_hpack_reads(text):
    import hpack

    ((name, value),) = hpack.Decoder(max_header_list_size=1 << 20).decode(b"\x00" + _text("n") + _text(text))
    assert (name, value) == ("n", text)
