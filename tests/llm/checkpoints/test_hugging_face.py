"""Hugging Face folders: whole and in shards, and what is not read from them whatever they say."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.llm.checkpoints.tiny import CONFIG, TEMPLATE, tiny_folder, weights, write_json

from farthing.llm.checkpoints.checkpoint import GenerationDefaults
from farthing.llm.checkpoints.opening import open_checkpoint
from farthing.llm.checkpoints.safetensors import safetensors_in
from farthing.llm.spec import tensor_shapes
from farthing.types.errors import LoadFailed


def test_shards_are_one_model(tmp_path: Path) -> None:
    whole, cut = open_checkpoint(tiny_folder(tmp_path / "a")), open_checkpoint(tiny_folder(tmp_path / "b", shards=3))
    assert whole.spec == cut.spec
    for name in tensor_shapes(whole.spec):
        np.testing.assert_array_equal(whole.tensor(name), cut.tensor(name))
    np.testing.assert_array_equal(whole.tensor("embedding"), weights()["model.embed_tokens.weight"])
    assert whole.stored("layers.1.gate").kind == "F32"


def test_tokenizer_template_and_ends_come_from_their_files(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_folder(tmp_path / "m"))
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"
    assert (tokenizer.eos_ids, tokenizer.bos_id, tokenizer.adds_bos) == ({2}, 1, False)
    assert tokenizer.named == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert checkpoint.chat_template() == TEMPLATE
    (tmp_path / "m" / "chat_template.jinja").write_text("newer")
    assert open_checkpoint(tmp_path / "m").chat_template() == "newer"


def test_templates_by_name_mean_the_default_one(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    write_json(folder / "tokenizer_config.json", {"chat_template": named})
    assert open_checkpoint(folder).chat_template() == "d"


def test_the_makers_advice_is_read(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    assert open_checkpoint(folder).generation_defaults == GenerationDefaults()
    write_json(
        folder / "generation_config.json", {"eos_token_id": [2, 0], "temperature": 0.6, "top_p": 0.9, "top_k": 20}
    )
    checkpoint = open_checkpoint(folder)
    assert checkpoint.generation_defaults == GenerationDefaults(temperature=0.6, top_p=0.9, top_k=20)
    assert checkpoint.tokenizer().eos_ids == {0, 2}
    write_json(folder / "generation_config.json", {"do_sample": False, "temperature": 0.6})
    assert open_checkpoint(folder).generation_defaults == GenerationDefaults(temperature=0.0)


def refused(folder: Path) -> str:
    with pytest.raises(LoadFailed) as caught:
        open_checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "bert"}, "`bert` is not known; known: llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3"),
        ({"model_type": None}, "`model_type` is missing"),
        ({"hidden_size": "32"}, "`hidden_size` is '32'; an integer of 1 to"),
        ({"num_hidden_layers": 3}, "tensor `model.layers.2.input_layernorm.weight` is missing"),
        ({"num_hidden_layers": 1}, "9 tensors are not of a plain llama model"),
        ({"attention_bias": True}, "`attention_bias` is 'True'; this variant is not supported"),
        ({"hidden_act": "relu"}, "supported: silu"),
        ({"quantization_config": {"bits": 4}}, "weights quantised for other programs"),
        ({"rope_scaling": {"rope_type": "ntk"}}, "rotary scaling `ntk` is not known"),
        ({"rope_scaling": [1]}, "an object is needed"),
        ({"rope_scaling": {"rope_type": "linear"}}, "`factor` is missing"),
        ({"rms_norm_eps": float("nan")}, "a number of 0 to 1 is needed"),
        ({"tie_word_embeddings": False}, "tensor `lm_head.weight` is missing"),
    ],
)
def test_a_configuration_that_cannot_be_carried_out_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    assert reason in refused(tiny_folder(tmp_path / "m", config={**CONFIG, **changes}))


@pytest.mark.parametrize(
    "place", ["../model.safetensors", "/etc/passwd", "..", "a/b.safetensors", "model.bin", "a\\b.safetensors"]
)
def test_an_index_names_no_file_but_safetensors_beside_it(tmp_path: Path, place: str) -> None:
    folder = tiny_folder(tmp_path / "m", shards=2)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    write_json(index, {"weight_map": {**places, "model.norm.weight": place}})
    assert "only *.safetensors beside it are read" in refused(folder)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickles, which are programs" in refused(folder)


def test_what_is_missing_or_torn_is_named(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", shards=2)
    (folder / "model-1.safetensors").unlink()
    assert "model-1.safetensors: no such file" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "config.json: not sound JSON" in refused(folder)
    (folder / "config.json").unlink()
    assert "here: neither config.json nor a .gguf file" in refused(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(LoadFailed, match=r"tokenizer\.json: no tokenizer can be made of it"):
        open_checkpoint(folder).tokenizer()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(LoadFailed, match=r"tokenizer\.json: no such file"):
        open_checkpoint(folder).tokenizer()


def table(value: object, data: bytes = bytes(64)) -> bytes:
    raw = json.dumps(value).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(**changes: object) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **changes}}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "a table of 0 bytes in a file of 0"),
        (struct.pack("<Q", 1 << 60) + bytes(50), "a table of 1152921504606846976 bytes"),
        (struct.pack("<Q", 10) + bytes(50), "its table is no JSON"),
        (table([1]), "its table is no object"),
        (table({"w": 5}), "lacks dtype, shape or data_offsets"),
        (table(entry(dtype="I64")), "of type I64; types that are read: F32, F16, BF16"),
        (table(entry(shape=[-4, -4])), "has shape [-4, -4]"),
        (table(entry(shape=[4.0, 4])), "has shape [4.0, 4]"),
        (table(entry(shape=[1 << 40, 1 << 40])), "with 64 bytes of data"),
        (table(entry(data_offsets=[0, 68])), "with 64 bytes of data"),
        (table(entry(data_offsets=[-64, 0])), "with 64 bytes of data"),
        (table(entry(data_offsets=[0, "64"])), "has shape"),
        (table(entry()) [:-1], "with 63 bytes of data"),
    ],
)  # fmt: skip
def test_a_safetensors_file_that_lies_is_told_where(tmp_path: Path, raw: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(LoadFailed) as caught:
        safetensors_in(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), new=st.binary(min_size=1, max_size=6))
def test_a_table_with_bytes_changed_is_read_or_refused(tmp_path: Path, at: int, new: bytes) -> None:
    sound = table({"__metadata__": {"format": "pt"}, **entry(), "v": entry(shape=[16])["w"]})
    path = tmp_path / "model.safetensors"
    path.write_bytes(sound[:at] + new + sound[at + len(new) :])
    try:
        tensors = safetensors_in(path)
    except LoadFailed:
        return
    assert all(len(one.data) <= 64 for one in tensors.values())
