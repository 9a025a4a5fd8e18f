"""Everyone under way: who waits, who runs, and how each of them ends.

A request is let in with all its choices; the first reads the prompt, the others begin there on its blocks. Each choice
ends by itself, the request with its last. Which of them runs when is decided by `scheduler` and carried out here;
running the model belongs to `stepper`.
"""

import logging
import secrets
from bisect import insort
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from typing import Final

from farthing.llm.block_tables import BlockTables
from farthing.llm.choice_text import ChoiceText
from farthing.llm.detokenizer import Detokenizer
from farthing.llm.generation import Generation, OnEvent, RequestState
from farthing.llm.kv_blocks import BlockPool
from farthing.llm.runners.runner import Runner
from farthing.llm.sampler import Sampling
from farthing.llm.scheduler import Plan
from farthing.llm.speculation import Drafter
from farthing.llm.statistics import Counters
from farthing.llm.stop import StopStrings
from farthing.llm.tenants import Tenants
from farthing.llm.waiting import Waiting
from farthing.llm.wording import Vocabulary
from farthing.types.errors import DeadlineExceeded, FarthingError
from farthing.types.generation import Finished, FinishReason, GenerateRequest, GenerationEvent, Usage

TIDY_LEFT: Final = 64
"""Deadlines of requests that have ended are kept until there are so many; tidying then costs little each."""

log = logging.getLogger(__name__)


class Roster:
    """Requests and their choices. One owner, one thread."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Vocabulary,
        bytes_of: Callable[[int], bytes],
        *,
        sequences_max: int,
        speculates: bool,
        identity: str,
        weights: Mapping[str, float] | None,
        secret: bytes | None,
    ) -> None:
        """`bytes_of` is the tokenizer's `token_bytes`, remembered."""
        self.running: list[Generation] = []
        """In order of (rank, admission). To be read only."""
        self.waiting = Waiting()
        self.tenants = Tenants(weights)
        self.pool = BlockPool(runner.blocks, runner.block_tokens, identity=identity, secret=secret)
        self.tables = BlockTables(self.pool, runner)
        self.counters = Counters()
        self._tokenizer = tokenizer
        self._bytes_of = bytes_of
        self._sequences_max = sequences_max
        self._speculates = speculates
        self._numbers = 0
        self._admissions = 0
        self._deadlines: list[tuple[int, int, RequestState]] = []

    # -- coming ------------------------------------------------------------------------------------------------------

    def add(self, request: GenerateRequest, on_event: OnEvent, tokens_max: int, now_ns: int) -> RequestState:
        """Lets a request wait for its turn. It must fit (`scheduler.fits`) with `tokens_max` tokens of output."""
        ends = request.ends
        stop_ids = frozenset(ends.stop_token_ids)
        if not ends.ignores_eos:
            stop_ids |= self._tokenizer.eos_ids
        seed = request.sampling.seed
        state = RequestState(
            request,
            on_event,
            arrival_ns=request.arrival_ns or now_ns,
            seed=secrets.randbits(64) if seed is None else seed,
            stop_ids=stop_ids,
            eos_ids=self._tokenizer.eos_ids,
            tokens_max=tokens_max,
            root=self.pool.root(request.tenant, request.cache_salt),
        )
        first, *others = [self._new_choice(state, index) for index in range(request.n)]
        state.choices.append(first)
        state.unforked = others
        self.tenants.came(request.tenant)
        self.waiting.add(first)
        self.counters.requests += 1
        if request.deadline_ns:
            self._tidy_deadlines()
            heappush(self._deadlines, (request.deadline_ns, first.number, state))
        return state

    def _new_choice(self, state: RequestState, index: int) -> Generation:
        request, ends = state.request, state.request.ends
        tokenizer = self._tokenizer
        self._numbers += 1
        skipped: frozenset[int] = tokenizer.special_ids if request.skips_special_tokens else frozenset()
        if request.shown_special_ids:
            skipped -= request.shown_special_ids
        grammar = None if request.grammar is None else request.grammar.start()
        stops = StopStrings(ends.stop, includes=ends.includes_stop_text) if ends.stop else None
        sampling = Sampling(
            request.sampling,
            seed=state.seed,
            choice=index,
            prompt_ids=request.prompt_ids,
            is_constrained=grammar is not None,
        )
        return Generation(
            state,
            index=index,
            number=self._numbers,
            text=ChoiceText(index, Detokenizer(self._bytes_of, skipped), stops),
            sampling=sampling,
            drafter=Drafter() if self._speculates and not sampling.has_penalties else None,
            grammar=grammar,
        )

    # -- turns -------------------------------------------------------------------------------------------------------

    def carry_out(self, plan: Plan, now_ns: int) -> None:
        """Preempts and admits as planned."""
        for one in plan.preempted:
            assert isinstance(one, Generation)
            self.counters.preemptions += 1
            self.running.remove(one)
            self._stop_running(one)
            one.queued_ns = now_ns
            self.waiting.add_admitted(one)
        for one, found, rank, cost in plan.admitted:
            assert isinstance(one, Generation)
            self.waiting.remove(one)
            self.tables.begin(one, found)
            state = one.state
            if one.is_charged:
                self.counters.recomputed_tokens += one.known - one.computed
            else:
                one.is_charged = True
                self.tenants.charge(one.tenant, cost)
                state.admitted_ns = now_ns
                state.cached_tokens = one.computed
                self.counters.cached_tokens += one.computed
                self.counters.prompt_tokens += one.known
            one.rank = rank
            self._run(one)

    def fork(self, one: Generation, now_ns: int) -> list[Generation]:
        """The other choices of its request begin where this one is; answers those for which there is a place now."""
        state = one.state
        forked = []
        for other in state.unforked:
            other.is_charged = True
            other.rank = one.rank
            state.choices.append(other)
            if len(self.running) < self._sequences_max:
                self.tables.fork(one, other)
                self._run(other)
                forked.append(other)
            else:
                self._admissions += 1
                other.admission = self._admissions
                other.queued_ns = now_ns
                self.waiting.add_admitted(other)
        state.unforked = []
        return forked

    def _run(self, one: Generation) -> None:
        if not one.admission:
            self._admissions += 1
            one.admission = self._admissions
        one.is_running = True
        insort(self.running, one, key=_order)

    def _stop_running(self, one: Generation) -> None:
        one.is_running = False
        self.tables.let_go(one)

    # -- endings -----------------------------------------------------------------------------------------------------

    def expire(self, now_ns: int) -> None:
        """Ends and answers requests whose deadline has passed."""
        deadlines = self._deadlines
        while deadlines and (deadlines[0][0] <= now_ns or deadlines[0][2].is_ended):
            due_ns, _, state = heappop(deadlines)
            if not state.is_ended:
                self.fail(
                    state,
                    DeadlineExceeded(
                        f"the request's deadline passed {(now_ns - due_ns) / 1e9:.3f} s ago, "
                        f"{(now_ns - state.arrival_ns) / 1e9:.3f} s after it came, with {state.completion_tokens} "
                        "tokens generated",
                        hint="allow more time, or ask for fewer tokens",
                    ),
                )

    def _tidy_deadlines(self) -> None:
        """Forgets those that ended long before they were due."""
        counters = self.counters
        ended = counters.requests_finished + counters.requests_failed + counters.requests_cancelled
        if len(self._deadlines) > TIDY_LEFT + 2 * (counters.requests - ended):
            self._deadlines = [entry for entry in self._deadlines if not entry[2].is_ended]
            heapify(self._deadlines)

    def cancel(self, state: RequestState) -> None:
        """The reader is gone: blocks are free at once, nothing more is told."""
        if not state.is_ended:
            self.counters.requests_cancelled += 1
            self._drop(state)

    def fail(self, state: RequestState, error: FarthingError) -> None:
        """Ends a request with an error."""
        if not state.is_ended:
            self.counters.requests_failed += 1
            self._drop(state)
            self.tell(state, error)

    def end_choice(self, one: Generation) -> None:
        """It has its last token. Its reader is told by the caller, then asked for `finish_if_over`."""
        one.is_ended = True
        if one.is_running:
            self.running.remove(one)
            self._stop_running(one)
        else:
            self.waiting.remove(one)
        one.state.choices.remove(one)

    def end_without_tokens(self, state: RequestState, now_ns: int) -> None:
        """A request that only wanted its prompt read."""
        ended = [*state.choices, *state.unforked]
        state.unforked = []
        for one in list(state.choices):
            self.end_choice(one)
        for one in ended:
            if not state.is_ended:
                self.tell(state, one.text.abandon(FinishReason.LENGTH))
        self.finish_if_over(state, now_ns)

    def finish_if_over(self, state: RequestState, now_ns: int) -> None:
        """Tells the reader that all choices have ended, if they have."""
        if state.is_ended or state.choices or state.unforked:
            return
        state.is_ended = True
        self.tenants.left(state.request.tenant)
        self.counters.requests_finished += 1
        usage = Usage(
            prompt_tokens=len(state.request.prompt_ids),
            completion_tokens=state.completion_tokens,
            cached_tokens=state.cached_tokens,
        )
        self.tell(
            state,
            Finished(
                usage=usage,
                queue_ns=state.admitted_ns - state.arrival_ns,
                prefill_ns=state.prompt_done_ns - state.admitted_ns,
                decode_ns=now_ns - state.prompt_done_ns,
            ),
        )

    def tell(self, state: RequestState, event: GenerationEvent | FarthingError) -> None:
        """A reader that fails has left."""
        try:
            state.on_event(event)
        except Exception:
            log.exception("the reader of request `%s` failed; the request ends", state.request.id)
            self.cancel(state)

    def _drop(self, state: RequestState) -> None:
        state.is_ended = True
        state.unforked = []
        for one in list(state.choices):
            self.end_choice(one)
        self.tenants.left(state.request.tenant)

    def states(self) -> list[RequestState]:
        """All requests under way."""
        found = {id(one.state): one.state for one in self.running}
        for line in self.waiting.lines.values():
            for one in line:
                assert isinstance(one, Generation)
                found[id(one.state)] = one.state
        return list(found.values())

    def check_integrity(self) -> None:
        """Asserts that blocks, lists and states agree (for tests and simulations)."""
        self.pool.check_integrity(one.blocks for one in self.running)
        order = [_order(one) for one in self.running]
        assert order == sorted(set(order))
        assert len(self.running) <= self._sequences_max
        waiting = self.waiting.check_integrity()
        for one in self.running:
            assert one.is_running
            assert one.table[: len(one.blocks)].tolist() == one.blocks
            assert one.computed <= len(one.blocks) * self.pool.block_tokens
        for one in waiting:
            assert not one.blocks
            assert not one.computed
            assert not one.is_running
        for one in [*self.running, *waiting]:
            assert not one.is_ended
            assert not one.state.is_ended
            assert one in one.state.choices
            assert one.known == len(one.ids)
            assert one.computed < one.known


def _order(one: Generation) -> tuple[int, int]:
    return one.rank, one.admission
