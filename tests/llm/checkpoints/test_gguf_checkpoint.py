"""A GGUF file as a checkpoint: the sample's figures, and what is refused before a tensor is read."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.llm.checkpoints.gguf_bytes import F32, STRING, U32
from tests.llm.checkpoints.tiny import ENTRIES, TEMPLATE, TOKENS, tiny_gguf

from farthing.llm.checkpoints.checkpoint import GenerationDefaults
from farthing.llm.checkpoints.opening import open_checkpoint
from farthing.llm.spec import RotaryKind, tensor_shapes
from farthing.repository.samples import sample_path
from farthing.types.errors import LoadFailed

TINY = tiny_gguf()
HEAD_BYTES = TINY.index(b"blk.1.ffn_down.weight") + 60
"""Up to where the tensors' own bytes begin."""


def written(folder: Path, raw: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(raw)
    return path


@pytest.mark.samples
def test_the_sample_says_what_it_is() -> None:
    checkpoint = open_checkpoint(sample_path("smollm2-135m") / "1" / "model.gguf")
    spec = checkpoint.spec
    assert (spec.architecture, spec.layers, spec.width, spec.heads, spec.kv_heads) == ("llama", 30, 576, 9, 3)
    assert (spec.vocabulary, spec.context_tokens, spec.ffn_width, spec.head_size) == (49152, 8192, 1536, 64)
    assert (spec.rotary_kind, spec.ties_head) == (RotaryKind.INTERLEAVED, True)
    assert spec.rotaries[0].frequencies[1] == pytest.approx(100_000 ** (-2 / 64))
    assert {checkpoint.stored(name).kind for name in tensor_shapes(spec)} == {"F32", "Q4_1", "Q8_0"}
    assert (checkpoint.chat_template() or "").startswith("{% for message in messages %}")
    assert checkpoint.tokenizer() is checkpoint.tokenizer()


def test_every_tensor_has_the_shape_the_spec_says(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(written(tmp_path, TINY))
    for name, shape in tensor_shapes(checkpoint.spec).items():
        assert checkpoint.tensor(name).shape == shape
    with pytest.raises(KeyError, match="`head` is no canonical tensor"):
        checkpoint.tensor("head")
    assert checkpoint.chat_template() == TEMPLATE
    assert checkpoint.tokenizer().eos_ids == {0, 2}  # end of turn by its field, end of text by its name


def test_a_folder_with_one_file_stands_for_it(tmp_path: Path) -> None:
    assert open_checkpoint(written(tmp_path, TINY).parent).path == tmp_path / "model.gguf"
    (tmp_path / "other.gguf").write_bytes(TINY)
    with pytest.raises(LoadFailed, match=r"here: 2 \.gguf files"):
        open_checkpoint(tmp_path)


def test_the_identity_changes_with_the_file_and_only_then(tmp_path: Path) -> None:
    path = written(tmp_path, TINY)
    first = open_checkpoint(path).identity
    assert open_checkpoint(path).identity == first
    raw = bytearray(TINY)
    raw[-1] ^= 1
    seen = path.stat()
    path.write_bytes(raw)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))
    assert open_checkpoint(path).identity != first


def test_the_makers_advice_is_read(tmp_path: Path) -> None:
    assert open_checkpoint(written(tmp_path, TINY)).generation_defaults == GenerationDefaults()
    said = [("general.sampling.temp", F32, 0.5), ("general.sampling.top_k", U32, 20)]
    checkpoint = open_checkpoint(written(tmp_path, tiny_gguf([*ENTRIES, *said])))
    assert checkpoint.generation_defaults == GenerationDefaults(temperature=0.5, top_k=20)


def changed(key: str, kind: int, value: object) -> bytes:
    return tiny_gguf([entry for entry in ENTRIES if entry[0] != key] + [(key, kind, value)])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (changed("llama.block_count", U32, 3), r"tensor `blk\.2\.attn_norm\.weight` is missing"),
        (changed("llama.block_count", U32, 1), r"9 tensors are not of a plain llama model: `blk\.1"),
        (changed("llama.block_count", U32, 1 << 30), r"`llama\.block_count` is '1073741824'; an integer of 1 to 1024"),
        (changed("llama.block_count", STRING, "2"), r"`llama\.block_count` is '2'; an integer"),
        (changed("llama.attention.head_count_kv", U32, 3), "4 query heads do not divide among 3"),
        (changed("llama.attention.head_count", U32, 6), "does not divide into 6 heads"),
        (changed("llama.feed_forward_length", U32, 64), r"`blk\.0\.ffn_gate\.weight` is \[32, 32\]; .* \[64, 32\]"),
        (changed("llama.rope.dimension_count", U32, 7), "pairs are needed"),
        (changed("llama.rope.scaling.type", STRING, "magic"), "known: none, linear, yarn, longrope"),
        (changed("llama.expert_count", U32, 8), "this variant is not supported"),
        (changed("split.count", U32, 3), r"`split\.count` is '3'; a model in parts cannot be read; join them"),
        (changed("general.sampling.top_p", F32, 7.0), r"`general\.sampling\.top_p` is '7\.0'; a number of 0 to 1"),
    ],
)
def test_a_configuration_its_tensors_do_not_bear_out_is_refused(tmp_path: Path, raw: bytes, reason: str) -> None:
    with pytest.raises(LoadFailed, match=reason):
        open_checkpoint(written(tmp_path, raw))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (changed("tokenizer.ggml.model", STRING, "rwkv"), "'rwkv'; gpt2 and llama are understood"),
        (changed("tokenizer.ggml.pre", STRING, "later"), r"pre is 'later'; understood: codeshell, .*smollm"),
        (changed("tokenizer.ggml.merges", STRING, "x"), "merges has to be an array of strings"),
        (changed("tokenizer.ggml.eos_token_id", U32, 10_000), f"10000; there are {len(TOKENS)} tokens"),
        (changed("tokenizer.ggml.tokens", STRING, "x"), "tokens has to be an array of strings"),
    ],
)
def test_a_vocabulary_that_makes_no_sense_is_refused_when_asked_for(tmp_path: Path, raw: bytes, reason: str) -> None:
    checkpoint = open_checkpoint(written(tmp_path, raw))
    with pytest.raises(LoadFailed, match=reason):
        checkpoint.tokenizer()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, HEAD_BYTES), new=st.binary(min_size=1, max_size=6))
def test_a_head_with_bytes_changed_gives_a_model_or_an_error(tmp_path: Path, at: int, new: bytes) -> None:
    path = written(tmp_path, TINY[:at] + new + TINY[at + len(new) :])
    try:
        checkpoint = open_checkpoint(path)
        tokenizer = checkpoint.tokenizer()
    except LoadFailed:
        return
    assert all(0 <= one < checkpoint.spec.vocabulary for one in tokenizer.encode("hello <|im_end|>"))
