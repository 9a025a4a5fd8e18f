"""The life of a busy generator, step by step in virtual time: everyone gets an end, and the tokens they get alone.

Tiny pools, forks, priorities, tenants, deadlines, readers who leave, machines that fail; the fake runner reads its
logits through the block tables, so a wrong block gives a wrong token. `FARTHING_LIFE_STEPS` sets the steps of the long
life; a million take some minutes.
"""

import os
import random
from collections import defaultdict
from typing import Any

import pytest
from tests.llm.fakes import FakeModel, FakeRunner, FakeTokenizer
from tests.llm.oracle import Choice, assert_same, choice_alone

from farthing.llm import picker
from farthing.llm.generation import RequestState
from farthing.llm.grammar import GrammarCompiler
from farthing.llm.picker import likelihoods
from farthing.llm.sampler import Likelihood
from farthing.llm.scheduler import Limits, fits
from farthing.llm.stepper import Stepper
from farthing.telemetry.clock import ManualClock
from farthing.types.errors import DeadlineExceeded, EngineFailed, FarthingError
from farthing.types.generation import (
    Delta,
    Finished,
    GenerateRequest,
    PromptDone,
    SamplingParameters,
    StopConditions,
)

MS = 1_000_000
CONTEXT = 96
GRAMMARS = GrammarCompiler(FakeTokenizer(40), 40)
PATTERNS = [
    "(a|b|c)*",
    "ab(cd|[e-h]{2,5} )+",
    "[a-h ]{0,9}",
    "hi (no|mod|a+b)",
    "(\u00e9|\u65e5|[a-d]+){3,}",
    "(abc ){2,40}",
]
"""Some end by themselves, some need characters that tokens cut in two, some repeat themselves so that drafts stand."""


class Told:
    """What a request was told so far."""

    def __init__(self, request: GenerateRequest, tokens_max: int, step: int) -> None:
        self.request = request
        self.tokens_max = tokens_max
        self.step = step
        self.choices: dict[int, Choice] = defaultdict(Choice)
        self.prompt: PromptDone | None = None
        self.end: Finished | FarthingError | None = None
        self.is_left = False
        self.state: RequestState | None = None

    @property
    def is_over(self) -> bool:
        return self.end is not None or self.is_left


class Life:
    """A seeded life."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = chance = random.Random(seed)
        self.clock = ManualClock(1_000_000_000)
        self.model = FakeModel(40, seed % 7)
        self.tokenizer = FakeTokenizer(40)
        self.block_tokens = chance.choice([1, 2, 4, 4, 8, 16])
        tokens = chance.choice([24, 40, 96, 400])
        self.runner = FakeRunner(
            self.model,
            blocks=max(3, tokens // self.block_tokens),
            block_tokens=self.block_tokens,
            context_tokens=CONTEXT,
            clock=self.clock,
            cost_ns=chance.choice([lambda rows: 3 * MS, lambda rows: 3 * MS + rows * MS // 10, lambda rows: rows * MS]),
        )
        step_tokens = chance.choice([2, 5, 16, 64])
        self.limits = Limits(
            step_tokens=step_tokens,
            sequences_max=chance.randint(1, min(step_tokens - 1, 12)),
            long_share=chance.choice([0.25, 0.5, 1.0]),
        )
        self.stepper = Stepper(
            self.runner,
            self.tokenizer,
            limits=self.limits,
            weights={"b": 3.0},
            clock=self.clock,
            secret=b"secret",
            speculates=chance.random() < 0.7,
        )
        self.prefixes = [[chance.randrange(3, 40) for _ in range(chance.randint(1, 60))] for _ in range(4)]
        self.load = chance.choice([0.05, 0.2, 0.5])
        self.told: list[Told] = []
        self.ended = self.failed = self.late = self.left = 0
        self.number = 0

    def arrive(self) -> None:
        chance = self.chance
        self.number += 1
        prefix = chance.choice(self.prefixes)
        prompt = prefix[: chance.randint(1, len(prefix))] if chance.random() < 0.8 else []
        prompt = prompt + [chance.randrange(3, 40) for _ in range(chance.choice([0, 0, 1, 3, 9]))] or [5]
        n = chance.choice([1, 1, 1, 1, 2, 3, 5])
        is_greedy = chance.random() < 0.5
        is_odd = chance.random() < 0.3
        request = GenerateRequest(
            id=str(self.number),
            model="fake",
            prompt_ids=tuple(prompt),
            n=n,
            sampling=SamplingParameters(
                temperature=0.0 if is_greedy else chance.choice([0.3, 1.0]),
                top_p=chance.choice([1.0, 0.9]),
                top_k=chance.choice([0, 5]),
                min_p=chance.choice([0.0, 0.0, 0.1]),
                repetition_penalty=chance.choice([1.0, 1.3]) if is_odd else 1.0,
                presence_penalty=chance.choice([0.0, 0.5]) if is_odd else 0.0,
                frequency_penalty=chance.choice([0.0, 0.5]) if is_odd else 0.0,
                logit_bias={7: 3.0, 8: -100.0} if chance.random() < 0.1 else {},
                seed=chance.randrange(-(2**63), 2**63),
                logprobs=chance.choice([0, 3]) if chance.random() < 0.1 else None,
            ),
            ends=StopConditions(
                tokens_max=chance.choice([0, 1, 2, 5, 10, 30, 80]) if chance.random() < 0.9 else 1000,
                tokens_min=chance.choice([0, 0, 0, 3]),
                stop=chance.choice([(), (), (), ("ab",), ("a", "cd", "bcd"), ("é",), ("\ufffd", "日本")]),
                stop_token_ids=chance.choice([(), (), (17,)]),
                ignores_eos=chance.random() < 0.2,
                includes_stop_text=chance.random() < 0.2,
            ),
            prompt_logprobs=chance.choice([0, 2]) if chance.random() < 0.05 else None,
            skips_special_tokens=chance.random() < 0.8,
            grammar=GRAMMARS.compile(f"start: /{chance.choice(PATTERNS)}/") if chance.random() < 0.3 else None,
            tenant=chance.choice(["", "a", "b"]),
            cache_salt=chance.choice(["", "", "salt"]),
            priority=chance.choice([0, 0, 0, -1, 2]),
            deadline_ns=self.clock.now_ns() + chance.randint(1, 300) * MS if chance.random() < 0.05 else 0,
            arrival_ns=self.clock.now_ns(),
        )
        least = min(1, request.ends.tokens_max)
        if len(prompt) + least > CONTEXT or not fits(len(prompt) + least, self.runner.blocks, self.block_tokens):
            return
        room = min(CONTEXT, self.runner.blocks * self.block_tokens) - len(prompt)
        told = Told(request, min(request.ends.tokens_max, room), self.stepper.roster.counters.steps)
        self.told.append(told)
        leaves_at = chance.choice([1, 1, 2, 5, 10]) if chance.random() < 0.04 else 0

        def on_event(event: Any) -> None:
            nonlocal leaves_at
            assert not told.is_over, "nothing is told after the end"
            if isinstance(event, PromptDone):
                assert told.prompt is None
                told.prompt = event
            elif isinstance(event, Delta):
                assert told.prompt is not None
                told.choices[event.index].add(event)
            else:
                told.end = event
            leaves_at -= 1
            if leaves_at == 0 and told.end is None:
                others = [one for one in self.told if not one.is_over and one.state is not None and one is not told]
                for left in [told, *chance.sample(others, min(3, len(others)))]:  # and takes others along
                    left.is_left = True
                    if left.state is not None:
                        self.stepper.roster.cancel(left.state)
            elif leaves_at == -5 and chance.random() < 0.01 and told.end is None:
                told.is_left = True
                raise ValueError("a reader's own mistake")

        told.state = self.stepper.roster.add(request, on_event, told.tokens_max, self.clock.now_ns())

    def live(self, steps: int) -> None:
        chance = self.chance
        counters = self.stepper.roster.counters
        while counters.steps < steps:
            if chance.random() < self.load and self.stepper.roster.waiting.count < 30:
                self.arrive()
            elif self.told and chance.random() < 0.01:
                told = chance.choice(self.told)
                if not told.is_over and told.state is not None:
                    told.is_left = True
                    self.stepper.roster.cancel(told.state)
            if chance.random() < 0.002:
                self.runner.fails_at.add(self.runner.steps + 1)
            self.one_step()
            if len(self.told) > 40:
                self.told = [told for told in self.told if not self.check_over(told)]
        for _ in range(100_000):
            if not self.one_step():
                break
        assert all(self.check_over(told) for told in self.told), "everyone got an end"
        assert self.stepper.roster.pool.free == self.runner.blocks, "no block leaked"
        assert not self.stepper.roster.tenants.here, "nobody is counted as being here"
        assert counters.requests == counters.requests_finished + counters.requests_failed + counters.requests_cancelled

    def one_step(self) -> bool:
        stepper, roster = self.stepper, self.stepper.roster
        first = roster.running[0] if roster.running else None
        computed = (first.computed, first.known) if first is not None else (0, 0)
        failures = roster.counters.requests_failed
        went_on = stepper.step()
        self.clock.advance(ms=self.chance.choice([0, 0, 10]))
        roster.check_integrity()
        if first is not None and not first.is_ended and failures == roster.counters.requests_failed:
            is_overtaken = not first.is_running or roster.running[0] is not first
            assert is_overtaken or (first.computed, first.known) > computed, "the first in order always goes on"
        return went_on

    def check_over(self, told: Told) -> bool:
        if not told.is_over:
            return False
        request = told.request
        if isinstance(told.end, DeadlineExceeded):
            self.late += 1
            assert request.deadline_ns
        elif isinstance(told.end, EngineFailed):
            self.failed += 1
            assert "on fire" in told.end.message
        elif told.is_left:
            self.left += 1
        else:
            self.ended += 1
        is_whole = isinstance(told.end, Finished)
        expected = [
            choice_alone(self.model, self.tokenizer, request, index, told.tokens_max) for index in range(request.n)
        ]
        if is_whole:
            assert isinstance(told.end, Finished)
            assert told.prompt is not None
            assert told.end.usage.prompt_tokens == len(request.prompt_ids)
            assert told.end.usage.completion_tokens == sum(len(one.ids) for one in expected)
            assert told.end.usage.cached_tokens == told.prompt.cached_tokens < len(request.prompt_ids)
            assert min(told.end.queue_ns, told.end.prefill_ns, told.end.decode_ns) >= 0
        for index, whole in enumerate(expected):
            got = told.choices[index]
            if is_whole:
                assert_same(got, whole, (self.seed, request))
            else:
                assert got.ids == whole.ids[: len(got.ids)]
                assert whole.text.startswith(got.text)
        if told.prompt is not None and request.prompt_logprobs is not None:
            prompt = request.prompt_ids
            assert [one.id for one in told.prompt.logprobs] == list(prompt)
            for at, one in enumerate(told.prompt.logprobs[1:], 1):
                row = self.model.logits(prompt[:at])
                right = likelihoods(row[None], [0], [prompt[at]], request.prompt_logprobs)[0]
                assert right == Likelihood(one.logprob or 0.0, [top[0] for top in one.top], [top[3] for top in one.top])
        return True


@pytest.mark.parametrize("seed", range(40))
def test_in_a_life_of_accidents_everyone_gets_an_end_and_the_tokens_they_get_alone(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 4 == 0:
        monkeypatch.setattr(picker, "native", None)
    life = Life(seed)
    life.live(400)
    assert life.ended > 0


def test_a_long_life_of_accidents() -> None:
    """Skipped unless asked for: `FARTHING_LIFE_STEPS=1000000`."""
    wanted = int(os.environ.get("FARTHING_LIFE_STEPS", "0"))
    if not wanted:
        pytest.skip("set FARTHING_LIFE_STEPS to live longer")
    done, seed = 0, 1000
    while done < wanted:
        life = Life(seed)
        life.live(5_000)
        done += life.stepper.roster.counters.steps
        seed += 1
