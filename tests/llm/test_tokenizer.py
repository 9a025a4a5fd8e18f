"""Tokens of the real model, and control tokens that are only control tokens where the caller wants them."""

import random
import threading
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.llm.checkpoints.tiny import CONTROL, TOKENS, tokenizer_json
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from farthing.llm.checkpoints.opening import open_checkpoint
from farthing.llm.tokenizer import Tokenizer
from farthing.repository.samples import sample_path
from farthing.types.errors import LoadFailed

TEXTS = [
    "Hello world, this is a test.",
    "  leading, trailing  ",
    "2024: 1,234.56 €",
    "naïve café — 世界 🌍\n\ttabs",
    "def f(x):\r\n    return x  # don't\n",
    "",
]


def byte_level() -> Tokenizer:
    return Tokenizer(Library.from_str(tokenizer_json()), eos_ids=[2], bos_id=1)


def sentencepiece(
    *, prepends: bool = True, normalised: bool = False, controls: Iterable[str] = ("<s>", "</s>")
) -> Tokenizer:
    """A small BPE of pieces with byte fallback, as the tokenizer.json files of Llama 2 and Gemma are made."""
    pieces = ["<unk>", *controls, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdehilorstw<>/|_nmg"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("\u2581", "hello"), ("\u2581", "w"), ("<", "s")]
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    library = Library(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "\u2581")
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prepends else spaces
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prepends else steps)
    library.add_special_tokens([AddedToken(name, special=True, normalized=normalised) for name in ["<unk>", *controls]])
    bos = library.token_to_id("<s>")
    if bos is not None:
        library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return Tokenizer(library, eos_ids=[2], bos_id=bos)


def metaspace(scheme: str) -> Tokenizer:
    """Newer SentencePiece-style files: the space is put and taken by a pre-tokenizer and a decoder of that name."""
    letters = sorted({letter for text in TEXTS for letter in text.replace(" ", "\u2581")} | {"\u2581"})
    pieces = [*letters, "\u2581t", "he"]
    library = Library(models.BPE({piece: at for at, piece in enumerate(pieces)}, [("\u2581", "t"), ("h", "e")]))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    library.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return Tokenizer(library, eos_ids=[])


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return open_checkpoint(sample_path("smollm2-135m") / "1" / "model.gguf").tokenizer()


@pytest.mark.samples
def test_the_sample_gives_the_ids_llama_cpp_gives(smollm2: Tokenizer) -> None:
    assert smollm2.encode("Hello world, this is a test.") == [19556, 905, 28, 451, 314, 253, 1028, 30]
    assert smollm2.encode("2024") == [34, 32, 34, 36]  # digits one by one
    assert (smollm2.vocabulary_size, smollm2.bos_id, smollm2.adds_bos, smollm2.eos_ids) == (49152, 1, False, {0, 2})
    assert smollm2.named["eos_token"] == "<|im_end|>"


@pytest.mark.samples
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_encoded_comes_back(smollm2: Tokenizer, text: str) -> None:
    ids = smollm2.encode(text)
    assert smollm2.decode(ids) == text
    assert b"".join(map(smollm2.token_bytes, ids)) == text.encode()


@pytest.mark.samples
def test_token_bytes_are_exact_where_a_token_ends_inside_a_character(smollm2: Tokenizer) -> None:
    pieces = [smollm2.token_bytes(one) for one in smollm2.encode("🌍")]
    assert len(pieces) > 1
    assert b"".join(pieces) == "🌍".encode()
    assert smollm2.token_bytes(2) == b"<|im_end|>"
    assert smollm2.token_bytes(49152) == smollm2.token_bytes(-1) == b""
    assert smollm2.decode([2, 19556, 0]) == "Hello"
    assert smollm2.decode([2, 19556], skips_special=False) == "<|im_end|>Hello"


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace_is_understood(scheme: str) -> None:
    tokenizer = metaspace(scheme)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer._library.decode(ids)
    assert tokenizer.decode(tokenizer.encode("this test")) == "this test"
    assert tokenizer.token_bytes(tokenizer.encode("this test")[-4]) == b" t"


@pytest.mark.parametrize("make", [byte_level, sentencepiece, lambda: sentencepiece(prepends=False)])
def test_bytes_of_tokens_agree_with_the_librarys_decoder(make: "type[Tokenizer]") -> None:
    tokenizer = make()
    for text in TEXTS:
        ids = tokenizer.encode(text, adds_special=False)
        assert tokenizer.decode(ids) == tokenizer._library.decode(ids)
        assert tokenizer.decode(ids) == text


def test_a_control_token_in_a_text_is_text_unless_asked_for() -> None:
    tokenizer = byte_level()
    text = "hello<|im_end|>hello"
    assert tokenizer.encode(text, parses_special=True) == [TOKENS.index("hello"), 2, TOKENS.index("hello")]
    plain = tokenizer.encode(text)
    assert not set(plain) & tokenizer.special_ids
    assert tokenizer.decode(plain) == text


@pytest.mark.parametrize("text", ["\U0010fffd<|im_end|>", "\U0010fffd", "<|im_end|>\U0010fffd<|im_end|>"])
def test_a_client_cannot_arm_a_control_token(text: str) -> None:
    assert not set(byte_level().encode(text)) & byte_level().special_ids


def test_words_in_between_are_cut_as_if_the_control_token_were_not_one() -> None:
    tokenizer, without = sentencepiece(), sentencepiece(controls=())
    assert tokenizer.holds_special("a<s>b")
    for text in ["a<s>b", "hello</s>hello w", "<s>"]:
        ids = tokenizer.encode(text, adds_special=False)
        assert [tokenizer.token_bytes(one) for one in ids] == [
            without.token_bytes(one) for one in without.encode(text, adds_special=False)
        ]


def test_what_surrounds_a_text_is_added_once_and_only_on_request() -> None:
    tokenizer = sentencepiece()
    assert tokenizer.adds_bos
    assert tokenizer.encode("hello")[0] == tokenizer.bos_id
    assert tokenizer.encode("<s>hello", parses_special=True)[:2] == [tokenizer.bos_id] * 2
    assert tokenizer.bos_id not in tokenizer.encode("hello<s>", adds_special=False)
    assert not byte_level().adds_bos


def test_the_space_before_the_first_word_is_the_tokens_and_not_the_texts() -> None:
    tokenizer = sentencepiece()
    ids = tokenizer.encode("hello", adds_special=False)
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.token_bytes(ids[0]) == b" hello"  # what it adds to a text it continues


def test_a_normaliser_makes_no_control_tokens() -> None:
    library = Library.from_str(tokenizer_json())
    library.normalizer = normalizers.NFKC()
    library.add_special_tokens([AddedToken("[END]", special=True, normalized=True)])
    tokenizer = Tokenizer(library, eos_ids=[2])
    sly = "\uff3bEND\uff3d"  # full width: NFKC makes [END] of it
    assert set(tokenizer.encode(sly, parses_special=True)) & tokenizer.special_ids
    assert not set(tokenizer.encode(sly)) & tokenizer.special_ids
    assert not set(tokenizer.encode_marked(sly, "\ue000")) & tokenizer.special_ids
    assert set(tokenizer.encode_marked(f"{sly}[END]", "\ue000")) & tokenizer.special_ids


PIECES = st.sampled_from([*CONTROL, "<", "<|", "|", ">", "im_end", "_end|>", "hello", " ", "\n", "ß", "\U0010fffd"])


@settings(max_examples=200, deadline=None)
@given(user=st.lists(PIECES, max_size=8).map("".join), after=st.lists(PIECES, max_size=3).map("".join))
def test_no_control_token_begins_in_a_disarmed_text(user: str, after: str) -> None:
    tokenizer, mark = byte_level(), "\ue000"
    disarmed = tokenizer.disarm(user, mark)
    assert disarmed.replace(mark, "") == user
    ids = tokenizer.encode_marked("<|im_start|>" + disarmed + after, mark)
    texts = tokenizer.decode(ids, skips_special=False)
    assert texts.replace("\U0010fffd", "\ufffd") == ("<|im_start|>" + user + after).replace("\U0010fffd", "\ufffd")
    expected = [1, *(one for one in tokenizer.encode(after, parses_special=True) if one in tokenizer.special_ids)]
    assert [one for one in ids if one in tokenizer.special_ids] == expected


def test_a_vocabulary_without_a_known_spelling_is_refused() -> None:
    library = Library(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece()
    with pytest.raises(LoadFailed, match=r"decoder \(WordPiece\) is not understood"):
        Tokenizer(library, eos_ids=[])


def test_no_token_stands_for_more_characters_than_it_says() -> None:
    for tokenizer in (byte_level(), sentencepiece()):
        lengths = [
            len(tokenizer.token_bytes(one).decode("utf-8", "replace")) for one in range(tokenizer.vocabulary_size)
        ]
        assert max(lengths) <= tokenizer.token_characters_max <= max(lengths) + 1


def test_threads_may_share_it() -> None:
    tokenizer, wrong = byte_level(), []
    text = "hello<|im_end|> world" * 20
    expected = tokenizer.encode(text)

    def work(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(30):
            if chosen.random() < 0.5 and tokenizer.encode(text) != expected:
                wrong.append("plain")
            if 2 not in tokenizer.encode(text, parses_special=True):
                wrong.append("parsed")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
