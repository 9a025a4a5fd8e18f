"""Steps on a small model: who shares which blocks, what is cached, what is freed."""

from typing import Any

import pytest
from tests.llm.fakes import EOS, FakeModel, FakeRunner, FakeTokenizer

from farthing.llm.grammar import GrammarCompiler
from farthing.llm.scheduler import Limits
from farthing.llm.stepper import Stepper
from farthing.telemetry.clock import ManualClock
from farthing.types.errors import EngineFailed, FarthingError
from farthing.types.generation import (
    Delta,
    Finished,
    GenerateRequest,
    PromptDone,
    SamplingParameters,
    StopConditions,
)

PROMPT = tuple(range(5, 15))
"""Two blocks of four and a half."""


class Room:
    """A stepper whose readers write everything down."""

    def __init__(self, blocks: int = 64, **given: Any) -> None:
        clock = ManualClock(1)
        self.runner = FakeRunner(FakeModel(), blocks=blocks, clock=clock, cost_ns=lambda rows: 3_000_000)
        limits = given.pop("limits", Limits(step_tokens=64, sequences_max=8))
        self.stepper = Stepper(
            self.runner, FakeTokenizer(), limits=limits, clock=clock, **({"speculates": False} | given)
        )
        self.roster = self.stepper.roster
        self.events: dict[str, list[Any]] = {}

    def arrive(self, name: str, prompt: tuple[int, ...] = PROMPT, tokens: int = 6, n: int = 1, **given: Any) -> Any:
        sampling = given.pop("sampling", SamplingParameters(temperature=1.0, seed=1))
        request = GenerateRequest(
            id=name,
            model="m",
            prompt_ids=prompt,
            n=n,
            sampling=sampling,
            ends=StopConditions(tokens_max=tokens, ignores_eos=True),
            **given,
        )
        self.events[name] = []
        return self.roster.add(request, self.events[name].append, tokens, 1)

    def run(self, steps: int = 1000) -> None:
        for _ in range(steps):
            if not self.stepper.step():
                return
            self.roster.check_integrity()

    def end(self, name: str) -> Finished:
        last = self.events[name][-1]
        assert isinstance(last, Finished)
        return last

    def tokens(self, name: str, index: int = 0) -> list[int]:
        deltas = [one for one in self.events[name] if isinstance(one, Delta) and one.index == index]
        return [token for one in deltas for token in one.token_ids]


def test_a_beginning_is_read_once_and_then_found() -> None:
    room = Room()
    room.arrive("first")
    room.run()
    room.arrive("second")
    room.arrive("other", prompt=(*PROMPT[:5], 30, 31, 32))
    room.run()
    assert room.end("first").usage.cached_tokens == 0
    assert room.end("second").usage.cached_tokens == 8
    assert room.end("other").usage.cached_tokens == 4
    assert room.tokens("second") == room.tokens("first")
    counters = room.roster.counters
    assert (counters.cached_tokens, counters.prompt_tokens) == (12, 28)


def test_a_conversation_goes_on_where_it_stopped() -> None:
    room = Room()
    room.arrive("turn", tokens=7)
    room.run()
    room.arrive("next", prompt=(*PROMPT, *room.tokens("turn"), 20, 21))
    room.run()
    assert room.end("next").usage.cached_tokens == 16, "the answer's blocks are found too"


@pytest.mark.parametrize("other", [{"tenant": "b"}, {"cache_salt": "s"}])
def test_nobody_finds_what_another_tenant_or_salt_has_read(other: dict[str, str]) -> None:
    room = Room()
    room.arrive("mine", tenant="a")
    room.run()
    room.arrive("theirs", **{"tenant": "a"} | other)
    room.arrive("mine again", tenant="a")
    room.run()
    assert room.end("theirs").usage.cached_tokens == 0
    assert room.end("mine again").usage.cached_tokens == 8


def test_choices_share_the_prompt_and_copy_only_the_block_they_write() -> None:
    room = Room()
    copies: list[tuple[int, int]] = []
    copy = room.runner.copy_block
    room.runner.copy_block = lambda source, target: (copies.append((source, target)), copy(source, target))[0]  # type: ignore[method-assign, assignment]
    room.arrive("four", n=4)
    room.run(1)
    assert len(room.roster.running) == 4
    assert room.roster.pool.blocks - room.roster.pool.free == 3, "all four are on the prompt's blocks"
    room.run(1)
    assert len(copies) == 3, "the last one left writes where it is"
    assert len({source for source, _ in copies}) == 1
    assert room.roster.pool.blocks - room.roster.pool.free == 2 + 4
    room.run()
    assert room.end("four").usage.completion_tokens == 24
    assert room.end("four").usage.prompt_tokens == 10
    assert len({tuple(room.tokens("four", index)) for index in range(4)}) > 1, "each has its own chance"
    assert room.roster.pool.free == room.roster.pool.blocks


def test_choices_for_which_there_is_no_place_wait_and_come_to_the_same() -> None:
    wide, narrow = Room(), Room(limits=Limits(step_tokens=64, sequences_max=1))
    for room in (wide, narrow):
        room.arrive("three", n=3)
        room.run()
    for index in range(3):
        assert wide.tokens("three", index) == narrow.tokens("three", index)
    assert narrow.end("three").usage == wide.end("three").usage


def test_who_reads_the_same_at_the_same_time_shares_it_afterwards() -> None:
    room = Room()
    room.arrive("one")
    room.arrive("two")
    room.run(1)
    assert room.roster.pool.blocks - room.roster.pool.free == 2 + 2, "two full blocks, and a tail each"


def test_a_reader_that_leaves_frees_its_blocks_at_once() -> None:
    room = Room()
    left = room.arrive("left", n=3, tokens=50)
    room.arrive("stays", prompt=(30, 31, 32), tokens=3)
    room.run(2)
    room.roster.cancel(left)
    assert room.roster.pool.blocks - room.roster.pool.free == 1 + (room.roster.running[0].computed > 4)
    told = len(room.events["left"])
    room.run()
    assert len(room.events["left"]) == told, "nothing is told after leaving"
    assert room.end("stays")


def test_a_request_for_no_tokens_has_its_prompt_read() -> None:
    room = Room()
    room.arrive("echo", tokens=0, n=2, prompt_logprobs=1)
    room.run()
    first, *deltas, last = room.events["echo"]
    assert isinstance(first, PromptDone)
    assert [one.id for one in first.logprobs] == list(PROMPT)
    assert first.logprobs[0].logprob is None
    assert all(one.logprob < 0 and len(one.top) == 1 for one in first.logprobs[1:])
    assert [(one.index, one.text, one.finish) for one in deltas] == [(0, "", "length"), (1, "", "length")]
    assert isinstance(last, Finished)
    assert last.usage.completion_tokens == 0


def test_a_prompt_whose_logprobs_are_wanted_is_read_whole_though_it_is_cached() -> None:
    room = Room()
    room.arrive("first")
    room.run()
    room.arrive("scored", prompt_logprobs=0)
    room.run()
    assert room.end("scored").usage.cached_tokens == 0
    assert len(room.events["scored"][0].logprobs) == len(PROMPT)


def test_damaged_weights_are_an_error_and_not_a_text() -> None:
    room = Room()
    run = room.runner.run
    room.runner.run = lambda step: run(step) * float("nan")  # type: ignore[method-assign]
    room.arrive("poor")
    room.run()
    assert isinstance(room.events["poor"][-1], EngineFailed)
    assert room.roster.pool.free == room.roster.pool.blocks


def test_a_token_that_cannot_be_picked_ends_its_own_request_only() -> None:
    room = Room()
    room.arrive("good")
    poor = room.arrive("poor", n=2)
    poor.choices[0].sampling.temperature = None
    room.run()
    assert room.end("good").usage.completion_tokens == 6
    assert isinstance(room.events["poor"][-1], EngineFailed)
    assert room.roster.pool.free == room.roster.pool.blocks


def test_drafts_make_steps_fewer_and_change_no_token() -> None:
    prompt = tuple([9, 10, 11, 12] * 4)
    greedy = SamplingParameters(temperature=0.0)
    told = {}
    for speculates in (False, True):
        room = Room(speculates=speculates)
        room.arrive("a", prompt=prompt, tokens=200, sampling=greedy)
        room.run()
        told[speculates] = room.tokens("a"), room.roster.counters.steps, room.roster.counters.accepted_tokens
    assert told[True][0] == told[False][0]
    assert told[True][2] > 0
    assert told[True][1] == told[False][1] - told[True][2], "each token that stood saved a step"


def test_what_a_grammar_forces_is_not_waited_for() -> None:
    grammar = GrammarCompiler(FakeTokenizer(), 40).compile('start: /[ab]/ " abcd hi lk" /[cd]/ "mn mn mn"')
    told = {}
    for speculates in (False, True):
        room = Room(speculates=speculates)
        room.arrive("a", tokens=60, n=2, grammar=grammar)
        room.run()
        room.end("a")
        tokens = [room.tokens("a", index) for index in (0, 1)]
        told[speculates] = tokens, room.roster.counters.steps, room.roster.counters.accepted_tokens
    assert told[True][0] == told[False][0]
    text = FakeTokenizer().text(told[True][0][0])
    assert text[0] in "ab"
    assert text[1:12] == " abcd hi lk"
    assert text[13:] == "mn mn mn"
    assert told[True][2] > 5
    assert told[True][1] < told[False][1] / 2


@pytest.mark.parametrize("speculates", [False, True])
def test_a_grammar_that_breaks_down_ends_its_own_request_only(speculates: bool) -> None:
    compiler = GrammarCompiler(FakeTokenizer(), 40)
    room = Room(speculates=speculates)
    room.arrive("plain")
    poor = room.arrive("poor", grammar=compiler.compile("start: /[a-h]{9}/"), n=2, tokens=30)
    good = room.arrive("good", grammar=compiler.compile("start: /[a-h]{9}/"), tokens=30)
    room.run(3)
    poor.choices[0].grammar._matcher.consume_token(17)  # as no token of a text would
    poor.choices[0].grammar._matcher.consume_token(EOS)
    room.run()
    assert room.end("plain").usage.completion_tokens == 6
    assert isinstance(room.events["poor"][-1], FarthingError)
    assert room.end("good")
    assert good.is_ended
    assert len(FakeTokenizer().text(room.tokens("good"))) == 9
    assert room.roster.pool.free == room.roster.pool.blocks


def test_nothing_is_asked_of_grammars_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("masks", "forced", "allowed", "accept"):
        monkeypatch.setattr(f"farthing.llm.grammar._State.{name}", None)
    room = Room(speculates=True)
    room.arrive("a", tokens=30)
    room.run()
    assert room.end("a").usage.completion_tokens == 30


def test_a_control_token_is_text_where_it_is_to_be_shown() -> None:
    grammar = GrammarCompiler(FakeTokenizer(), 40).compile('start: <[1]> "ab"')
    texts = []
    for shown in (frozenset({1}), frozenset()):
        room = Room()
        room.arrive("a", tokens=9, grammar=grammar, shown_special_ids=shown)
        room.run()
        texts.append("".join(one.text for one in room.events["a"] if isinstance(one, Delta)))
    assert texts == ["<x>ab", "ab"]
