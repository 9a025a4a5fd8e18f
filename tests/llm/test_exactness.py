"""The same request gives the same tokens: on the real model, whatever else is in the step and however it was cut.

Each request is first run alone, its prompt in one piece, nothing cached, no drafts, one thread. Then it is run in random
schedules: among others, cached or not, chunked, preempted, forked, drafted, with one thread and with two. Tokens, texts
and log-probabilities must be equal to the bit. `FARTHING_EXACT_SCHEDULES` sets how many schedules there are at least: it
goes on until all of that has happened, drafts that fell among it, which depends on the tokens and so on the processor.
"""

import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.llm.oracle import Choice, assert_same

from farthing.llm.checkpoints.opening import open_checkpoint
from farthing.llm.grammar import GrammarCompiler
from farthing.llm.runners.runner import Step
from farthing.llm.scheduler import Limits
from farthing.llm.stepper import Stepper
from farthing.llm.tokenizer import Tokenizer
from farthing.repository.samples import sample_path
from farthing.types.generation import Delta, Finished, GenerateRequest, SamplingParameters, StopConditions

cpu = pytest.importorskip("farthing.llm.runners.cpu", reason="the native core is not built")

SCHEDULES = int(os.environ.get("FARTHING_EXACT_SCHEDULES", "10"))
BLOCKS = 64
PLAIN = Limits(step_tokens=512, sequences_max=16, long_share=1.0)

TEXT = (
    "The tide tables for the harbour are printed every year in March. They list, for each day, the time and height of "
    "high water and of low water. A skipper reads them twice: once when the voyage is planned, and once more before the "
    "lines are cast off, because a table is only as good as the date on which it is read. "
)


GRAMMARS = (
    'start: %json {"type":"object","properties":{"port":{"type":"string","maxLength":20},"depths":{"type":"array",'
    '"items":{"type":"integer"},"minItems":2,"maxItems":9}},"required":["port","depths"],"additionalProperties":false}',
    "start: /(high|low) water( and (high|low) water){1,9}\\.?/",
)
"""Forced and free parts, and words that repeat themselves, so that drafts stand."""


class Narrow:
    """A runner with a part of its blocks, so that pools can be tiny."""

    def __init__(self, runner: Any, blocks: int, chance: random.Random) -> None:
        self._runner = runner
        self.spec = runner.spec
        self.block_tokens = runner.block_tokens
        self.blocks = blocks
        self._names = np.array(chance.sample(range(runner.blocks), blocks), np.int32)

    def run(self, step: Step) -> np.ndarray:
        logits: np.ndarray = self._runner.run(self._renamed(step))
        return logits

    def run_likeliest(self, step: Step) -> tuple[list[int], list[float]]:
        found: tuple[list[int], list[float]] = self._runner.run_likeliest(self._renamed(step))
        return found

    def _renamed(self, step: Step) -> Step:
        sequences = tuple(type(one)(one.rows, one.start, self._names[one.blocks]) for one in step.sequences)
        return Step(step.tokens, sequences, step.logits_rows)

    def copy_block(self, source: int, target: int) -> None:
        self._runner.copy_block(int(self._names[source]), int(self._names[target]))

    def close(self) -> None:
        pass


class Bench:
    """The model twice, with one thread and with two, and requests with what they give alone."""

    def __init__(self, folder: Path) -> None:
        checkpoint = open_checkpoint(sample_path("smollm2-135m") / "1" / "model.gguf")
        self.tokenizer: Tokenizer = checkpoint.tokenizer()
        self.grammars = GrammarCompiler(self.tokenizer, checkpoint.spec.vocabulary)
        self.runners = {
            threads: cpu.CpuRunner(checkpoint, kv_blocks=BLOCKS, threads=threads, cache_folder=folder)
            for threads in (1, 2)
        }
        self.requests = self._requests(random.Random(7))
        self.alone = {
            request.id: run(self.stepper(1, BLOCKS, PLAIN, speculates=False), [[request]])[request.id]
            for request in self.requests
        }

    def stepper(
        self, threads: int, blocks: int, limits: Limits, *, speculates: bool, chance: random.Random | None = None
    ) -> Stepper:
        runner = Narrow(self.runners[threads], blocks, chance or random.Random(0))
        return Stepper(runner, self.tokenizer, limits=limits, speculates=speculates)

    def _requests(self, chance: random.Random) -> list[GenerateRequest]:
        ids = self.tokenizer.encode(TEXT * 3)
        requests = []
        for number in range(22):
            start = chance.choice([0, 0, 0, 40])
            prompt = ids[start : start + chance.choice([1, 9, 20, 28, 31, 32, 33, 90])]
            if chance.random() < 0.5:
                prompt = prompt + self.tokenizer.encode(f" {number} and {number} and {number} and")
            is_penalised = chance.random() < 0.2
            is_constrained = number >= 16
            requests.append(
                GenerateRequest(
                    id=str(number),
                    model="smollm2",
                    prompt_ids=tuple(prompt),
                    n=chance.choice([1, 1, 1, 3]),
                    sampling=SamplingParameters(
                        temperature=chance.choice([0.0, 0.0, 0.5, 1.0]),
                        top_p=chance.choice([1.0, 0.9]),
                        top_k=chance.choice([0, 40]),
                        presence_penalty=0.4 if is_penalised else 0.0,
                        repetition_penalty=1.2 if is_penalised else 1.0,
                        seed=number,
                        logprobs=2 if chance.random() < 0.3 else None,
                    ),
                    grammar=self.grammars.compile(GRAMMARS[number % 2]) if is_constrained else None,
                    ends=StopConditions(tokens_max=chance.choice([4, 12, 70]), ignores_eos=chance.random() < 0.8),
                )
            )
        return requests


def run(stepper: Stepper, arrivals: list[list[GenerateRequest]]) -> dict[str, dict[int, Choice]]:
    """What each request gets if these arrive before these steps."""
    told: dict[str, dict[int, Choice]] = {}
    ended = set()

    def arrive(request: GenerateRequest) -> None:
        choices: dict[int, Choice] = defaultdict(Choice)
        told[request.id] = choices

        def on_event(event: Any) -> None:
            if isinstance(event, Delta):
                choices[event.index].add(event)
            elif isinstance(event, Finished):
                ended.add(request.id)
            else:
                assert not isinstance(event, Exception), event

        stepper.roster.add(request, on_event, request.ends.tokens_max, 1)

    for requests in arrivals:
        for request in requests:
            arrive(request)
        stepper.step()
        stepper.roster.check_integrity()
    while stepper.step():
        stepper.roster.check_integrity()
    assert ended == set(told)
    return told


def has_seen_all(counts: dict[str, int]) -> bool:
    was_preempted, was_cached = counts["preemptions"] > 0, counts["cached_tokens"] > 0
    return was_preempted and was_cached and counts["drafted_tokens"] > counts["accepted_tokens"] > 0


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Bench(tmp_path_factory.mktemp("packed"))
    yield made
    for runner in made.runners.values():
        runner.close()


@pytest.mark.samples
@pytest.mark.timeout(1800)
def test_tokens_are_the_same_alone_among_others_cached_chunked_preempted_and_on_any_number_of_threads(
    bench: Bench,
) -> None:
    counts: dict[str, int] = defaultdict(int)
    for seed in range(10 * SCHEDULES):
        if seed >= SCHEDULES and has_seen_all(counts):
            break
        chance = random.Random(seed)
        step_tokens = chance.choice([3, 17, 64, 512])
        blocks = chance.choice([5, 5, 6, 8, BLOCKS])
        stepper = bench.stepper(
            chance.choice([1, 2]),
            blocks,
            Limits(
                step_tokens=step_tokens,
                sequences_max=min(chance.choice([2, 6, 12]), step_tokens - 1),
                long_share=chance.choice([0.25, 1.0]),
            ),
            speculates=chance.random() < 0.5,
            chance=chance,
        )
        for rows in (1, 64):
            stepper.times.observe(rows, 1_000_000)  # as if drafts cost nothing
        for _ in range(chance.choice([1, 2])):  # the second time beginnings are cached
            fitting = [one for one in bench.requests if -(-(len(one.prompt_ids) + one.ends.tokens_max) // 32) <= blocks]
            chosen = chance.sample(fitting, min(len(fitting), chance.randint(1, 8)))
            arrivals: list[list[GenerateRequest]] = [[] for _ in range(chance.choice([1, 6, 12]))]
            for request in chosen:
                chance.choice(arrivals).append(request)
            told = run(stepper, arrivals)
            for request in chosen:
                for index in range(request.n):
                    assert_same(told[request.id][index], bench.alone[request.id][index], (seed, request.id, index))
        counters = stepper.roster.counters
        for name in ("steps", "preemptions", "cached_tokens", "recomputed_tokens", "drafted_tokens", "accepted_tokens"):
            counts[name] += getattr(counters, name)
        counts["choices"] += counters.requests_finished
    print(dict(counts))
    assert has_seen_all(counts)
