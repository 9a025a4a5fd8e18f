"""Grammars: what they let through, how they go on from any point, and that hostile ones are refused in bounded work."""

import contextlib
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.language import VOCABULARY, tiny_tokenizer
from tests.llm.fakes import FakeTokenizer

from farthing.llm import grammar
from farthing.llm.grammar import GrammarCompiler
from farthing.types.errors import EngineFailed, InvalidInput
from farthing.types.grammar import GrammarState

BYTES = tiny_tokenizer()
"""One token a byte: a text's tokens are its bytes."""
COMPILER = GrammarCompiler(BYTES, VOCABULARY)
END = next(iter(BYTES.eos_ids))


def may_come(state: GrammarState, unwanted: Any = ()) -> set[int]:
    (mask,) = state.masks((), unwanted)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def takes(text: str, source: str) -> bool:
    """Whether the grammar lets exactly this through, token by token and then its end."""
    state = COMPILER.compile(source).start()
    for token in text.encode():
        if token not in may_come(state):
            return False
        state.accept(token)
    return state.is_complete or END in may_come(state)


def test_a_text_ends_only_where_its_grammar_does() -> None:
    state = COMPILER.compile("start: /ab?/").start()
    assert may_come(state) == {ord("a")}
    state.accept(ord("a"))
    assert may_come(state) == {ord("b"), END}
    assert not state.is_complete
    assert may_come(state, [END]) == {ord("b")}, "an end that is not wanted yet"
    state.accept(ord("b"))
    assert state.is_complete
    assert may_come(state, [END]) == {END}, "nothing else is left"


def test_control_tokens_are_no_text() -> None:
    state = COMPILER.compile("start: /(.|\\n)*/").start()
    assert may_come(state) & {256, 257, 258} == {END}


@pytest.mark.parametrize("token", [ord("b"), 257, 258])
def test_a_token_that_may_not_come_is_our_mistake(token: int) -> None:
    state = COMPILER.compile("start: /ac/").start()
    with pytest.raises(EngineFailed):
        state.accept(token)


def test_padding_beyond_the_tokenizer_never_comes() -> None:
    compiler = GrammarCompiler(BYTES, VOCABULARY + 41)
    allowed = may_come(compiler.compile("start: /(.|\\n)*/").start())
    assert max(allowed) < VOCABULARY


def test_a_vocabulary_without_an_end_of_text_has_grammars_too() -> None:
    class Endless(FakeTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.eos_ids = frozenset()

    state = GrammarCompiler(Endless(), 40).compile("start: /ab?/").start()
    state.accept(8)
    assert [one for one in may_come(state) if one < 40] == [9], "besides what stands for the end"


def test_a_grammar_is_compiled_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = GrammarCompiler(BYTES, VOCABULARY)
    first = compiler.compile("start: /a/")
    assert compiler.compile("start: /a/") is first
    monkeypatch.setattr(grammar, "KEPT_MAX", 3)
    for number in range(5):
        compiler.compile(f"start: /a{{{number + 1}}}/")
    assert len(compiler._kept) == 3
    assert compiler.compile("start: /a/") is not first


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["a", "b\n", "é"]}, "maxItems": 3},
        "size": {"anyOf": [{"type": "integer", "minimum": -5, "maximum": 500}, {"type": "null"}]},
    },
    "required": ["name", "tags", "size"],
    "additionalProperties": False,
}
JSON_GRAMMAR = f"start: %json {json.dumps(SCHEMA)}"


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.lists(st.integers(0, 255), max_size=6))
@settings(deadline=None)
def test_looking_ahead_leaves_no_trace(seed: int, length: int, guess: list[int]) -> None:
    """Masks after a draft are those of a text that really went on so; and the state is where it was."""
    chance = random.Random(seed)
    state, twin = COMPILER.compile(JSON_GRAMMAR).start(), COMPILER.compile(JSON_GRAMMAR).start()
    said = []
    for _ in range(length):
        if state.is_complete:
            break
        token = chance.choice(sorted(may_come(state) - {END}))
        said.append(token)
        state.accept(token)
        twin.accept(token)
    if chance.random() < 0.5 and not state.is_complete:  # a draft that stands for a while
        path = COMPILER.compile(JSON_GRAMMAR).start()
        for token in said:
            path.accept(token)
        guess = []
        while len(guess) < 6 and not path.is_complete:
            guess.append(chance.choice(sorted(may_come(path) - {END})))
            path.accept(guess[-1])
        guess += [0]
    draft = guess[: state.allowed(guess)]
    masks = state.masks(draft, ())
    assert len(masks) == len(draft) + 1
    for at, mask in enumerate(masks):
        (alone,) = twin.masks((), ())
        assert (mask == alone).all(), at
        if at < len(draft):
            twin.accept(draft[at])
    again = COMPILER.compile(JSON_GRAMMAR).start()
    for token in said:
        again.accept(token)
    assert (state.masks((), ())[0] == again.masks((), ())[0]).all()


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_whatever_is_drawn_within_a_schema_is_json_of_that_schema(seed: int) -> None:
    import jsonschema_rs

    chance = random.Random(seed)
    state = COMPILER.compile(JSON_GRAMMAR).start()
    said = bytearray()
    while not state.is_complete:
        allowed = may_come(state)
        if END in allowed:
            break
        closing = allowed & set(b'"}]')
        token = chance.choice(sorted(closing)) if closing and chance.random() < 0.3 else chance.choice(sorted(allowed))
        said.append(token)
        state.accept(token)
    assert jsonschema_rs.validator_for(SCHEMA).is_valid(json.loads(said.decode()))


HOSTILE = {
    "nested": '{"type":"array","items":' * 300 + "{}" + "}" * 300,
    "alternatives of alternatives": json.dumps(
        {
            "allOf": [
                {"anyOf": [{"properties": {f"a{n}": {"type": "string"}}}, {"properties": {f"b{n}": {}}}]}
                for n in range(20)
            ]
        }
    ),
    "prime": json.dumps({"type": "integer", "multipleOf": 10**9 + 7}),
    "remote": json.dumps({"$ref": "file:///etc/passwd"}),
    "circle": json.dumps({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    "nobody": json.dumps({"$ref": "#/$defs/missing"}),
    "unknown keyword": json.dumps({"type": "array", "contains": {"type": "integer"}}),
    "unknown format": json.dumps({"type": "string", "format": "poem"}),
    "no such type": json.dumps({"type": "poem"}),
    "nothing fits": json.dumps({"type": "integer", "minimum": 5, "maximum": 3}),
    "two patterns": json.dumps({"allOf": [{"type": "string", "pattern": f".*{c}.{{30}}"} for c in "abcdefgh"]}),
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_schema_is_refused(schema: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        COMPILER.compile(f"start: %json {schema}")
    assert 0 < len(caught.value.message) < 1000
    assert "state" not in caught.value.message.lower()
    assert "start:" not in caught.value.message, "nobody wrote that"


@pytest.mark.parametrize(
    "source",
    ["", "start: foo", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "start: a\na: a", "start: /(/", "start: /(?=x)y/",
     "\x00", "start: %json {", "start: @other"],
)  # fmt: skip
def test_a_hostile_grammar_is_refused(source: str) -> None:
    with pytest.raises(InvalidInput):
        COMPILER.compile(source)


def test_a_library_that_panics_is_a_refusal() -> None:
    schema = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1500)}}
    parts = "\n".join(f"t{n}: %json {json.dumps(schema)}" for n in range(9))
    with pytest.raises(InvalidInput, match="more than can be compiled"):
        COMPILER.compile(f"start: {' '.join(f't{n}' for n in range(9))}\n{parts}")


@pytest.mark.parametrize(
    "source", ["start: /((a{100}){100}){1000}/", 'start: ("a"{1000}){1000}', "start: /(.{0,1000}x){1000}/"]
)
def test_a_large_grammar_is_refused_or_followed(source: str) -> None:
    with contextlib.suppress(InvalidInput):
        state = COMPILER.compile(source).start()
        for _ in range(50):
            state.accept(min(may_come(state) - {END}))


def test_a_grammar_that_grows_beyond_its_bounds_later_ends_with_an_error() -> None:
    state = COMPILER.compile("start: /.*[ab].{200}c/").start()
    chance = random.Random(0)

    def go_on() -> None:
        for _ in range(100_000):
            state.masks((), ())
            state.accept(chance.choice(b"abxyz"))

    with pytest.raises(InvalidInput, match="any further"):
        go_on()


def test_a_vocabulary_that_puts_a_space_before_words_spells_texts_as_they_stand() -> None:
    class Spaced(FakeTokenizer):
        def encode(self, text: str, *, adds_special: bool = False) -> list[int]:
            return super().encode(" " + text)

    class Changing(FakeTokenizer):
        def encode(self, text: str, *, adds_special: bool = False) -> list[int]:
            return super().encode(text.replace("a", "b"))

    for tokenizer in (FakeTokenizer(), Spaced(), Changing()):
        spelling = grammar._Spelling(tokenizer, 40)
        assert b"".join(tokenizer.token_bytes(one) for one in spelling("abba hi")) == b"abba hi"
        state = GrammarCompiler(tokenizer, 40).compile('start: "abba hi"').start()
        said = b""
        while not state.is_complete:
            token = min(may_come(state))
            said += tokenizer.token_bytes(token)
            state.accept(token)
        assert said == b"abba hi"
