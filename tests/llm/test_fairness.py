"""Who waits for whom: long and short prompts, busy and modest tenants, urgent and patient requests."""

import math
from typing import Any

import pytest
from tests.llm.fakes import FakeModel, FakeRunner, FakeTokenizer

from farthing.llm.pace import Pace
from farthing.llm.scheduler import RANK_AGE_NS, Limits
from farthing.llm.stepper import Stepper
from farthing.telemetry.clock import ManualClock
from farthing.types.errors import DeadlineExceeded
from farthing.types.generation import Delta, Finished, GenerateRequest, SamplingParameters, StopConditions

MS = 1_000_000


class Street:
    """A model on which a row takes 0.1 ms and a step 1 ms, and everyone's times."""

    def __init__(self, *, blocks: int = 4000, weights: dict[str, float] | None = None, **limits: Any) -> None:
        self.clock = ManualClock(1)
        runner = FakeRunner(
            FakeModel(),
            blocks=blocks,
            context_tokens=100_000,
            clock=self.clock,
            cost_ns=lambda rows: MS + rows * MS // 10,
        )
        self.stepper = Stepper(
            runner, FakeTokenizer(), limits=Limits(**limits), weights=weights, clock=self.clock, speculates=False
        )
        self.first_ms: dict[str, float] = {}
        self.end_ms: dict[str, float] = {}
        self.errors: dict[str, Exception] = {}
        self.tokens: dict[str, int] = {}

    def arrive(self, name: str, prompt: int, tokens: int, **given: Any) -> None:
        arrived = self.clock.now_ns()

        def on_event(event: Any) -> None:
            waited_ms = (self.clock.now_ns() - arrived) / MS
            if isinstance(event, Delta):
                self.first_ms.setdefault(name, waited_ms)
                self.tokens[name] = self.tokens.get(name, 0) + len(event.token_ids)
            elif isinstance(event, Finished):
                self.end_ms[name] = waited_ms
            elif isinstance(event, Exception):
                self.errors[name] = event

        request = GenerateRequest(
            id=name,
            model="m",
            prompt_ids=tuple(3 + (7 * at + len(self.first_ms)) % 37 for at in range(prompt)),
            sampling=SamplingParameters(temperature=0.0),
            ends=StopConditions(tokens_max=tokens, ignores_eos=True),
            arrival_ns=arrived,
            **given,
        )
        self.stepper.roster.add(request, on_event, tokens, arrived)

    def run(self, steps: float = math.inf) -> None:
        done = 0
        while done < steps and self.stepper.step():
            done += 1


def test_a_short_prompt_behind_a_long_one_waits_for_a_step_or_two() -> None:
    street = Street(step_tokens=64, sequences_max=8)
    street.arrive("long", 4000, 2)
    street.run(3)
    street.arrive("short", 20, 2)
    street.run()
    assert street.first_ms["short"] < 2 * 7.5
    assert street.first_ms["long"] > 400


def test_a_long_prompt_among_endless_short_ones_gets_its_share() -> None:
    street = Street(step_tokens=64, sequences_max=16)
    street.arrive("long", 1600, 1)
    for number in range(600):
        street.arrive(str(number), 60, 1)
        street.run(1)
        if "long" in street.end_ms:
            break
    alone_ms = 1600 / 64 * 7.4
    assert street.end_ms["long"] < 2.2 * alone_ms


def test_a_modest_tenant_does_not_wait_for_a_flood() -> None:
    street = Street(step_tokens=64, sequences_max=4)
    for number in range(300):
        street.arrive(f"flood{number}", 40, 20, tenant="flood")
    street.run(20)
    street.arrive("modest", 40, 20, tenant="modest")
    street.run()
    one_ms = street.end_ms["flood0"]
    assert street.end_ms["modest"] < 3 * one_ms
    assert street.end_ms["flood299"] > 20 * one_ms


def test_on_a_slow_model_steps_are_made_short() -> None:
    street = Street(step_tokens=512, sequences_max=16)
    street.arrive("decodes", 10, 200)
    street.arrive("long", 8_000, 1)
    street.run(1)
    lasted = []
    for _ in range(30):
        before = street.clock.now_ns()
        street.run(1)
        lasted.append((street.clock.now_ns() - before) / MS)
    assert 30 < max(lasted[1:]) < 45
    slow = Pace(Limits(step_tokens=512, sequences_max=16))
    slow.observe(512, 10_000 * MS)
    assert slow.limits.step_tokens == 80, "prompts are read all the same"
    slow.observe(4, 10_000 * MS)
    for _ in range(100):
        slow.observe(80, MS)
    assert slow.limits.step_tokens == 512


def test_steps_are_longer_as_long_as_most_wait_for_their_first_token() -> None:
    pace = Pace(Limits(step_tokens=512, sequences_max=16))
    pace.observe(128, 128 * MS // 4)
    assert pace.limits_for(decoding=8, reading=8).step_tokens == 160
    assert pace.limits_for(decoding=8, reading=9).step_tokens == 320
    assert pace.limits_for(decoding=0, reading=1).step_tokens == 320
    pace.observe(512, 10_000 * MS)
    assert pace.limits_for(decoding=0, reading=9).step_tokens == 80, "however slow it is, there are rows for prompts"
    for _ in range(200):
        pace.observe(512, MS)
    assert pace.limits_for(decoding=0, reading=9).step_tokens == 512
    slow = Pace(Limits(step_tokens=512, sequences_max=16))
    slow.observe(128, 128 * MS * 7 // 16)
    assert slow.limits_for(decoding=0, reading=9).step_tokens == 160
    for _ in range(200):
        slow.observe(128, 128 * MS * 4)
    assert slow.limits_for(decoding=0, reading=9).step_tokens == 80, (
        "though steps while most decode are as short as ever"
    )


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_tenants_are_served_by_weight(weight: float) -> None:
    street = Street(step_tokens=64, sequences_max=4, weights={"b": weight})
    for number in range(200):
        street.arrive(f"a{number}", 30, 10, tenant="a")
        street.arrive(f"b{number}", 30, 10, tenant="b")
    street.run(300)
    of_a, of_b = (sum(count for name, count in street.tokens.items() if name[0] == who) for who in "ab")
    assert of_b / of_a == pytest.approx(weight, rel=0.15)


def test_urgent_requests_overtake_and_patient_ones_are_served_in_the_end() -> None:
    street = Street(step_tokens=64, sequences_max=1)
    street.arrive("running", 30, 400, priority=1)
    street.run(3)
    street.arrive("patient", 30, 5, priority=5)
    street.arrive("urgent", 30, 5, priority=0)
    street.run(12)
    assert "urgent" in street.end_ms, "it took the place of the one that ran"
    street.run(2)
    number = 0
    while "patient" not in street.end_ms:
        number += 1
        street.arrive(f"urgent{number}", 30, 20, priority=0)
        street.run(10)
        street.clock.advance(s=1)
        assert number < 500, "it waits for ever"
    assert 4 * RANK_AGE_NS < street.first_ms["patient"] * MS < 15 * RANK_AGE_NS


def test_a_deadline_that_passes_ends_a_request_that_waits_and_one_that_runs() -> None:
    street = Street(step_tokens=64, sequences_max=1)
    street.arrive("runs", 30, 10_000, deadline_ns=200 * MS)
    street.arrive("waits", 30, 10, deadline_ns=100 * MS)
    street.arrive("later", 30, 10)
    street.run()
    assert isinstance(street.errors["runs"], DeadlineExceeded)
    assert isinstance(street.errors["waits"], DeadlineExceeded)
    assert "waits" not in street.first_ms
    assert 0 < street.tokens["runs"] < 200
    assert street.tokens["later"] == 10
    assert street.stepper.roster.pool.free == 4000


def test_deadlines_of_those_who_ended_are_not_kept() -> None:
    street = Street(step_tokens=64, sequences_max=8)
    for number in range(500):
        street.arrive(str(number), 4, 1, deadline_ns=10**15)
        street.run()
    assert len(street.stepper.roster._deadlines) < 100
