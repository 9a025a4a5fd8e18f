"""The vocabularies that llama.cpp tests its own tokenizer with, and the ids it expects; the library finds the same.

They lie in llama.cpp's source, which `benchmarks/llm_cpu` unpacks into the cache folder; without it this is skipped.
"""

from pathlib import Path

import pytest

from farthing.llm.checkpoints.gguf import GgufFile
from farthing.llm.gguf_vocabulary import tokenizer_from_metadata
from farthing.repository.samples import cache_folder

MODELS = "peers-llm/src/*/vendor/llama.cpp/models"
VOCABULARIES = ["command-r", "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "refact", "starcoder"]


def vocabulary(name: str) -> Path:
    found = sorted(cache_folder().glob(f"{MODELS}/ggml-vocab-{name}.gguf"))
    if not found or not found[-1].with_suffix(".gguf.inp").is_file():
        pytest.skip("llama.cpp's source is not in the cache folder: benchmarks/llm_cpu unpacks it there")
    return found[-1]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_texts_become_the_ids_that_llama_cpp_expects(name: str) -> None:
    path = vocabulary(name)
    tokenizer = tokenizer_from_metadata(path, GgufFile(path).metadata)
    texts = path.with_suffix(".gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [[*map(int, line.split())] for line in path.with_suffix(".gguf.out").read_text().split("\n")]
    assert len(texts) > 40
    for text, ids in zip(texts, expected, strict=False):
        assert tokenizer.encode(text, adds_special=False) == ids, text
        assert tokenizer.decode(ids) == text
