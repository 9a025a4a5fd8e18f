"""The generator from outside: requests in from another thread, events out."""

import queue
import random
import threading
import time
from typing import Any

import pytest
from tests.llm.fakes import EOS, FakeModel, FakeRunner, FakeTokenizer

from farthing.llm.generator import Generator
from farthing.llm.sampler import Sampling, pick
from farthing.llm.scheduler import Limits
from farthing.types.errors import FarthingError, InvalidInput, Overloaded, Unavailable
from farthing.types.generation import (
    Delta,
    Finished,
    FinishReason,
    GenerateRequest,
    PromptDone,
    SamplingParameters,
    StopConditions,
)

PROMPT = (9, 10, 11, 12, 13, 14, 15)


def request(prompt: tuple[int, ...] = PROMPT, *, n: int = 1, sampling: Any = None, **ends: Any) -> GenerateRequest:
    return GenerateRequest(
        id="r",
        model="m",
        prompt_ids=prompt,
        n=n,
        sampling=sampling or SamplingParameters(temperature=0.0),
        ends=StopConditions(**({"tokens_max": 12} | ends)),
    )


class Reader:
    """Collects the events of a request until the last one."""

    def __init__(self) -> None:
        self._events: queue.Queue[Any] = queue.Queue()
        self.thread = ""

    def __call__(self, event: Any) -> None:
        self.thread = threading.current_thread().name
        self._events.put(event)

    def all(self) -> list[Any]:
        events = []
        while not events or not isinstance(events[-1], (Finished, FarthingError)):
            events.append(self._events.get(timeout=20))
        return events

    def one(self) -> Any:
        return self._events.get(timeout=20)


def make(blocks: int = 64, **given: Any) -> Generator:
    model = FakeModel()
    limits = given.pop("limits", Limits(step_tokens=16, sequences_max=4))
    return Generator(FakeRunner(model, blocks=blocks), FakeTokenizer(), limits=limits, **given)


def alone(prompt: tuple[int, ...], tokens: int, **parameters: Any) -> list[int]:
    sampling = Sampling(SamplingParameters(**parameters), seed=parameters.get("seed") or 0, choice=0, prompt_ids=prompt)
    ids = list(prompt)
    model = FakeModel()
    while len(ids) < len(prompt) + tokens:
        token = pick(model.logits(ids), sampling, len(ids))
        ids.append(token)
        if token == EOS:
            break
    return ids[len(prompt) :]


def test_a_prompt_is_continued_event_by_event() -> None:
    generator = make()
    reader = Reader()
    generator.submit(request(), reader)
    events = reader.all()
    expected = alone(PROMPT, 12, temperature=0.0)
    assert isinstance(events[0], PromptDone)
    assert isinstance(events[-1], Finished)
    deltas = events[1:-1]
    assert all(isinstance(one, Delta) for one in deltas)
    assert [token for one in deltas for token in one.token_ids] == expected
    visible = expected[:-1] if expected[-1] == EOS else expected
    assert "".join(one.text for one in deltas) == FakeTokenizer().text(visible)
    assert [one.finish for one in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish is (FinishReason.STOP if expected[-1] == EOS else FinishReason.LENGTH)
    assert events[-1].usage.prompt_tokens == len(PROMPT)
    assert events[-1].usage.completion_tokens == len(expected)
    assert reader.thread == "generator"
    assert generator.close()


def test_a_cancelled_request_frees_its_blocks_and_says_no_more() -> None:
    generator = make(blocks=16)
    reader = Reader()
    cancel = generator.submit(request(tokens_max=40, ignores_eos=True), reader)
    assert isinstance(reader.one(), PromptDone)
    cancel()
    cancel()
    other = Reader()
    generator.submit(request(), other)
    assert isinstance(other.all()[-1], Finished)
    stats = generator.stats()
    assert stats.kv_blocks_used == 0
    assert stats.running == stats.waiting == 0
    assert stats.requests_cancelled + stats.requests_finished == 2
    assert generator.close()


def test_what_can_never_fit_is_refused_at_once_with_the_numbers() -> None:
    generator = make(blocks=8)
    with pytest.raises(InvalidInput, match=r"32 tokens, and the KV pool holds 32 tokens \(8 blocks of 4\)"):
        generator.submit(request(tuple([9] * 32)), Reader())
    generator.submit(request(tuple([9] * 31), tokens_max=100), reader := Reader())
    assert reader.all()[-1].usage.completion_tokens == 1
    assert generator.close()
    generator = make(blocks=999)
    with pytest.raises(InvalidInput, match=r"256 tokens, and the model's context is 256 tokens"):
        generator.submit(request(tuple([9] * 256)), Reader())
    assert generator.close()


def test_tokens_outside_of_the_vocabulary_are_refused_before_the_model_sees_them() -> None:
    generator = make()
    for bad in (request((5, 40)), request((-1, 5)), request(sampling=SamplingParameters(logit_bias={40: 1.0}))):
        with pytest.raises(InvalidInput, match="outside of the vocabulary of 40 tokens"):
            generator.submit(bad, Reader())
    assert generator.close()


def test_a_full_queue_is_answered_with_when_to_come_back() -> None:
    generator = make(queue_max=2, limits=Limits(step_tokens=16, sequences_max=1))
    gate = threading.Event()
    generator.submit(request(tokens_max=1), lambda event: gate.wait(20) and None)
    while generator.stats().running == 0 and generator.stats().waiting:
        time.sleep(0.001)
    readers = [Reader() for _ in range(2)]
    for one in readers:
        generator.submit(request(), one)
    with pytest.raises(Overloaded) as refused:
        generator.submit(request(), Reader())
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 1
    gate.set()
    assert all(isinstance(one.all()[-1], Finished) for one in readers)
    assert generator.stats().requests_refused == 1
    assert generator.close()


def test_a_step_that_fails_ends_who_took_part_and_nobody_else() -> None:
    generator = make()
    generator._runner.fails_at = {3}  # type: ignore[attr-defined]
    generator.submit(request(), reader := Reader())
    failed = reader.all()[-1]
    assert isinstance(failed, FarthingError)
    assert "on fire" in failed.message
    generator.submit(request(), reader := Reader())
    tokens = [token for one in reader.all()[1:-1] for token in one.token_ids]
    assert tokens == alone(PROMPT, 12, temperature=0.0)
    assert generator.stats().requests_failed == 1
    assert generator.close()


def test_a_mistake_of_the_loop_ends_everybody_under_way_and_the_loop_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make()
    roster = generator._stepper.roster

    def mistake(*_: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(roster, "carry_out", mistake)
    readers = [Reader() for _ in range(3)]
    for one in readers:
        generator.submit(request(), one)
    assert all(isinstance(one.all()[-1], (FarthingError, Finished)) for one in readers)
    assert generator.stats().requests_failed >= 1
    generator.submit(request(), reader := Reader())
    assert isinstance(reader.all()[-1], Finished)
    assert generator.stats().kv_blocks_used == 0
    assert generator.close()


def test_a_request_that_cannot_be_taken_in_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make()
    monkeypatch.setattr(generator._stepper.roster, "_new_choice", lambda *_: 1 / 0)
    generator.submit(request(), reader := Reader())
    assert isinstance(reader.all()[-1], FarthingError)
    monkeypatch.undo()
    generator.submit(request(), reader := Reader())
    assert isinstance(reader.all()[-1], Finished)
    assert generator.close()


def test_many_threads_may_submit_and_leave_at_once() -> None:
    generator = make(blocks=40, limits=Limits(step_tokens=16, sequences_max=4))
    expected = {tokens: alone(PROMPT, tokens, temperature=0.0) for tokens in range(1, 9)}
    wrong: list[Any] = []

    def client(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            tokens = chance.randint(1, 8)
            reader = Reader()
            cancel = generator.submit(request(tokens_max=tokens, n=chance.choice([1, 1, 3])), reader)
            if chance.random() < 0.3:
                cancel()
                continue
            got = [token for one in reader.all() if isinstance(one, Delta) and not one.index for token in one.token_ids]
            if got != expected[tokens]:
                wrong.append((tokens, got))
            generator.stats()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert generator.close()
    stats = generator.stats()
    assert not wrong
    assert stats.requests == 320
    assert stats.requests_finished + stats.requests_cancelled == 320
    assert stats.requests_cancelled > 0
    assert stats.kv_blocks_used == stats.running == stats.waiting == 0
    assert stats.kv_blocks_cached <= stats.kv_blocks_free == 40


def test_closing_lets_those_under_way_end_and_takes_no_more() -> None:
    generator = make()
    generator.submit(request(), reader := Reader())
    assert generator.close()
    assert isinstance(reader.all()[-1], Finished)
    with pytest.raises(Unavailable):
        generator.submit(request(), Reader())


def test_closing_does_not_wait_for_ever() -> None:
    generator = make(blocks=64)
    slow = threading.Event()
    run = generator._runner.run
    generator._runner.run = lambda step: (slow.wait(0.01), run(step))[1]  # type: ignore[method-assign]
    generator.submit(request(tokens_max=200, ignores_eos=True), reader := Reader())
    reader.one()
    assert generator.close(timeout_s=0.05)
    assert isinstance(reader.all()[-1], Unavailable)


def test_without_work_the_thread_sleeps() -> None:
    generator = make()
    generator.submit(request(), reader := Reader())
    reader.all()
    steps = generator.stats().steps
    before = time.process_time()
    threading.Event().wait(0.3)
    assert time.process_time() - before < 0.1
    assert generator.stats().steps == steps
    assert generator.close()
