"""Tokenizers rebuilt from GGUF metadata do what the algorithm they name does."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from farthing.llm.gguf_vocabulary import PRE_TOKENIZERS, tokenizer_from_metadata
from farthing.llm.tokenizer import Tokenizer
from farthing.types.errors import LoadFailed

# No two merges of one score: real vocabularies number them, and among equals the `tokenizers` library takes the earlier
# piece, where SentencePiece takes the earlier place.
PIECES = {
    "\u2581": -1.0,
    **{letter: -2.0 - at / 10 for at, letter in enumerate("etaoinshr")},
    "th": -3.0,
    "he": -3.1,
    "the": -3.2,
    "in": -3.3,
    "an": -3.35,
    "\u2581t": -3.4,
    "\u2581the": -3.5,
    "er": -3.6,
    "ther": -4.0,
    "nin": -2.5,
    "\u2581\u2581": -4.1,
}
SPECIAL = ["<unk>", "<s>", "</s>"]


def metadata(**changes: Any) -> dict[str, Any]:
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<tool>"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(PIECES), 4]
    scores = [0.0] * (len(SPECIAL) + 256) + list(PIECES.values()) + [0.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{name}": value for name, value in changes.items()},
    }


def rebuilt(**changes: Any) -> Tokenizer:
    return tokenizer_from_metadata(Path("model.gguf"), metadata(**changes))


def by_hand(text: str) -> list[str]:
    """SentencePiece's BPE as its paper has it: again and again the best two neighbours, the first place of equals."""
    parts = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        found = [
            (-PIECES[left + right], at) for at, (left, right) in enumerate(pairwise(parts)) if left + right in PIECES
        ]
        if not found:
            break
        _, at = min(found)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    pieces = []
    for part in parts:
        pieces += [part] if part in PIECES else [f"<0x{byte:02X}>" for byte in part.encode()]
    return pieces


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="etaoinshr  zß\n", max_size=24))
def test_pieces_merge_by_score_and_unknown_letters_are_bytes(text: str) -> None:
    tokenizer = rebuilt()
    tokens = metadata()["tokenizer.ggml.tokens"]
    ids = tokenizer.encode(text, adds_special=False)
    assert [tokens[one] for one in ids] == (by_hand(text) if text else [])
    assert tokenizer.decode(ids) == text


def test_a_text_begins_as_the_file_says() -> None:
    assert rebuilt().encode("the")[0] == 1
    assert rebuilt(add_bos_token=False).encode("the")[0] != 1
    assert rebuilt(add_eos_token=True).encode("the")[-1] == 2
    plain = rebuilt(add_space_prefix=False)
    assert plain.decode(plain.encode("the")) == "the"
    assert plain.token_bytes(plain.encode("the")[1]) == b"the"


def test_user_defined_pieces_are_found_whole_and_are_no_control_tokens() -> None:
    tokenizer = rebuilt()
    number = len(metadata()["tokenizer.ggml.tokens"]) - 1
    assert number in tokenizer.encode("the<tool>the")
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.decode([number]) == "<tool>"


def test_a_piece_without_end_is_refused() -> None:
    tokens = metadata()["tokenizer.ggml.tokens"]
    tokens[262] = "t" * 5_000_000
    with pytest.raises(LoadFailed, match="a piece of 5000000 characters; 1000 are allowed"):
        rebuilt(tokens=tokens)


def test_turn_ends_are_ends_too() -> None:
    tokens = [*metadata()["tokenizer.ggml.tokens"], "<end_of_turn>"]
    more = {"token_type": np.append(metadata()["tokenizer.ggml.token_type"], 3), "scores": np.zeros(len(tokens))}
    assert rebuilt(tokens=tokens, **more).eos_ids == {2, len(tokens) - 1}
    assert rebuilt(eot_token_id=0).eos_ids == {0, 2}


def test_phi3s_control_tokens_swallow_the_space_behind_them() -> None:
    said = {**metadata(), "general.architecture": "phi3"}
    phi3, other = tokenizer_from_metadata(Path("model.gguf"), said), rebuilt()
    spaced, tight = "</s>\n the", "</s>the"
    assert phi3.encode(spaced, parses_special=True) == phi3.encode(tight, parses_special=True)
    assert other.encode(spaced, parses_special=True) != other.encode(tight, parses_special=True)
    assert phi3.encode("<s> the", parses_special=True) != phi3.encode("<s>the", parses_special=True)


WORDS = {
    "gpt-2": ["I", "'m", " 12345", " cats", "  ", " x", "\n", "\n", "y"],
    "llama-bpe": ["I", "'m", " ", "123", "45", " cats", "  ", " x", "\n\n", "y"],
    "qwen2": ["I", "'m", " ", "1", "2", "3", "4", "5", " cats", "  ", " x", "\n\n", "y"],
    "gpt-4o": ["I'm", " ", "123", "45", " cats", "  ", " x", "\n\n", "y"],
    "tekken": ["I", "'m", " ", "1", "2", "3", "4", "5", " cats", "  ", " x", "\n\n", "y"],
}


@pytest.mark.parametrize(("name", "words"), WORDS.items())
def test_texts_are_cut_into_words_as_the_name_means(name: str, words: list[str]) -> None:
    text = "I'm 12345 cats   x\n\ny"
    assert "".join(words) == text
    cut = pre_tokenizers.Split(Regex(PRE_TOKENIZERS[name]), behavior="isolated").pre_tokenize_str(text)
    assert [word for word, _ in cut] == words


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("qwen2", False)])
def test_some_vocabularies_take_a_whole_word_before_any_merge(pre: str, whole: bool) -> None:
    tokens = ["<s>", "a", "b", "c", "ab", "abc", "bc"]
    said = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3, 1, 1, 1, 1, 1, 1], np.int32),
        "tokenizer.ggml.merges": ["b c"],
        "tokenizer.ggml.bos_token_id": 0,
    }
    tokenizer = tokenizer_from_metadata(Path("model.gguf"), said)
    assert tokenizer.encode("abc", adds_special=False) == ([5] if whole else [1, 6])
    assert tokenizer.adds_bos is whole


def test_cased_words_are_cut_where_the_case_turns() -> None:
    cut = pre_tokenizers.Split(Regex(PRE_TOKENIZERS["tekken"]), behavior="isolated").pre_tokenize_str(
        "HTMLParser fooBar"
    )
    assert [word for word, _ in cut] == ["HTMLParser", " foo", "Bar"]
