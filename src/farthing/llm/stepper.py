"""One step after another: plan, allocate, run, pick, tell. Single-threaded; nothing here waits or decides.

What a step computes is decided by `scheduler`, which token comes by `sampler`, what a reader sees of it by
`choice_text`. Threads, bounds and closing belong to `generator`. Simulations drive this class directly.
"""

import logging
import secrets
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Final, Protocol

import numpy as np

from farthing.llm.choice_text import ChoiceText
from farthing.llm.detokenizer import Detokenizer, token_text
from farthing.llm.generation import Generation, OnEvent, RequestState
from farthing.llm.kv_blocks import BlockPool
from farthing.llm.runners.runner import Runner, Step, StepSequence
from farthing.llm.sampler import Likelihood, Sampling, likelihoods, pick
from farthing.llm.scheduler import Limits, Memory, Plan, Progress, Rows, plan_step
from farthing.llm.statistics import Counters, StepShape
from farthing.llm.stop import StopStrings
from farthing.llm.tenants import Tenants
from farthing.llm.waiting import Waiting
from farthing.telemetry.clock import Clock, MonotonicClock
from farthing.types.errors import DeadlineExceeded, EngineFailed, FarthingError
from farthing.types.generation import (
    Delta,
    Finished,
    FinishReason,
    GenerateRequest,
    GenerationEvent,
    PromptDone,
    TokenLogprob,
    Usage,
)

TABLE_GROWTH: Final = 8
"""Blocks a table grows by at once."""

log = logging.getLogger(__name__)


class Vocabulary(Protocol):
    """What is asked of a tokenizer here."""

    @property
    def eos_ids(self) -> frozenset[int]: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token: int, /) -> bytes: ...


class _Work:
    """A generation's rows in a step, and where its logits are."""

    __slots__ = ("first_logits", "generation", "logits", "rows")

    def __init__(self, generation: Generation, rows: int, first_logits: int, logits: int) -> None:
        self.generation = generation
        self.rows = rows
        """Without drafted ones."""
        self.first_logits = first_logits
        self.logits = logits


class Stepper:
    """Everything under way on one model."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Vocabulary,
        *,
        limits: Limits,
        identity: str = "",
        weights: Mapping[str, float] | None = None,
        clock: Clock | None = None,
        secret: bytes | None = None,
    ) -> None:
        assert 0 < limits.sequences_max < limits.step_tokens, "each generation must get its row in each step"
        self.runner = runner
        self.limits = limits
        self.counters = Counters()
        self.running: list[Generation] = []
        """In order of (rank, admission)."""
        self.waiting = Waiting()
        self.pool = BlockPool(runner.blocks, runner.block_tokens, identity=identity, secret=secret)
        self.tenants = Tenants(weights)
        self._identity = identity
        self._tokenizer = tokenizer
        self._now_ns = (clock or MonotonicClock()).now_ns
        self._block_tokens = runner.block_tokens
        self._numbers = 0
        self._admissions = 0
        self._deadlines: list[tuple[int, int, RequestState]] = []

    # -- requests ----------------------------------------------------------------------------------------------------

    def add(self, request: GenerateRequest, on_event: OnEvent, tokens_max: int) -> RequestState:
        """Lets a request wait for its turn. It must fit (`scheduler.fits`) with `tokens_max` tokens of output."""
        ends = request.ends
        stop_ids = frozenset(ends.stop_token_ids)
        if not ends.ignores_eos:
            stop_ids |= self._tokenizer.eos_ids
        seed = request.sampling.seed
        state = RequestState(
            request,
            on_event,
            seed=secrets.randbits(64) if seed is None else seed,
            stop_ids=stop_ids,
            tokens_max=tokens_max,
        )
        state.arrival_ns = request.arrival_ns or self._now_ns()
        state.root = self.pool.root(request.tenant, request.cache_salt)
        first = self._new_choice(state, 0)
        state.choices.append(first)
        state.unforked = [self._new_choice(state, index) for index in range(1, request.n)]
        self.tenants.came(request.tenant)
        self.waiting.add(first)
        self.counters.requests += 1
        if request.deadline_ns:
            heappush(self._deadlines, (request.deadline_ns, first.number, state))
        return state

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
            self._tell(state, error)

    def reset(self, error: FarthingError) -> None:
        """Ends everybody with an error and begins anew: for a mistake of ours, after which no count can be trusted."""
        states = self.states()
        self.running.clear()
        self.waiting = Waiting()
        self.tenants = Tenants(self.tenants.weights)
        self.pool = BlockPool(self.pool.blocks, self._block_tokens, identity=self._identity)
        self._deadlines.clear()
        for state in states:
            state.is_ended = True
            self.counters.requests_failed += 1
            self._tell(state, error)

    def states(self) -> list[RequestState]:
        """All requests under way."""
        found: dict[int, RequestState] = {id(one.state): one.state for one in self.running}
        for line in self.waiting.lines.values():
            for one in line:
                assert isinstance(one, Generation)
                found[id(one.state)] = one.state
        return list(found.values())

    def _new_choice(self, state: RequestState, index: int) -> Generation:
        request = state.request
        tokenizer = self._tokenizer
        self._numbers += 1
        skipped: frozenset[int] = tokenizer.special_ids if request.skips_special_tokens else frozenset()
        ends = request.ends
        stops = StopStrings(ends.stop, includes=ends.includes_stop_text) if ends.stop else None
        return Generation(
            state,
            index=index,
            number=self._numbers,
            text=ChoiceText(index, Detokenizer(tokenizer.token_bytes, skipped), stops),
            sampling=Sampling(request.sampling, seed=state.seed, choice=index, prompt_ids=request.prompt_ids),
            wants_prompt_logits=request.prompt_logprobs is not None and index == 0,
        )

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Runs the model once, if anybody wants it; False when nobody is under way."""
        began_ns = self._now_ns()
        if self._deadlines:
            self._expire(began_ns)
        if not self.running and not self.waiting.count:
            return False
        pool = self.pool
        plan = plan_step(
            self.running,
            self.waiting.lines,
            Memory(self._block_tokens, pool.free, pool.refs, self._find),
            self.limits,
            self.tenants.accounts,
            began_ns,
        )
        self._make_room(plan, began_ns)
        step, work = self._build(plan.rows)
        run_ns = self._now_ns()
        try:
            logits = self.runner.run(step)
            if len(logits) != len(step.logits_rows):
                raise EngineFailed(f"the runner gave {len(logits)} rows of logits, {len(step.logits_rows)} were wanted")
        except Exception as error:
            log.exception("a step of %d rows failed", len(step.tokens))
            self._fail_step(work, error)
            return True
        ran_ns = self._now_ns()
        self._take_in(work, logits, ran_ns)
        done_ns = self._now_ns()
        counters = self.counters
        counters.steps += 1
        counters.run_ns += ran_ns - run_ns
        counters.other_ns += done_ns - ran_ns + run_ns - began_ns
        counters.last_step = StepShape(
            sequences=len(work),
            rows=len(step.tokens),
            logits_rows=len(step.logits_rows),
            draft_rows=0,
            run_ns=ran_ns - run_ns,
            other_ns=done_ns - ran_ns + run_ns - began_ns,
        )
        return True

    def _expire(self, now_ns: int) -> None:
        deadlines = self._deadlines
        while deadlines and (deadlines[0][0] <= now_ns or deadlines[0][2].is_ended):
            due_ns, _, state = heappop(deadlines)
            if state.is_ended:
                continue
            waited_s = (now_ns - state.arrival_ns) / 1e9
            late_s = (now_ns - due_ns) / 1e9
            self.fail(
                state,
                DeadlineExceeded(
                    f"the request's deadline passed {late_s:.3f} s ago, {waited_s:.3f} s after it came, with "
                    f"{state.completion_tokens} tokens generated",
                    hint="allow more time, or ask for fewer tokens",
                ),
            )

    def _find(self, one: Progress) -> Sequence[int]:
        """Cached blocks a waiting generation can begin with; its last token must be computed to have its logits."""
        assert isinstance(one, Generation)
        if one.wants_prompt_logits:
            return ()
        tokens = one.known - 1
        if len(one.keys) < tokens // self._block_tokens:
            self.pool.extend_keys(one.keys, one.state.root, one.ids, tokens)
        return self.pool.find(one.keys[: tokens // self._block_tokens])

    def _make_room(self, plan: Plan, now_ns: int) -> None:
        for one in plan.preempted:
            assert isinstance(one, Generation)
            self._preempt(one, now_ns)
        for one, found, rank, cost in plan.admitted:
            assert isinstance(one, Generation)
            self.waiting.remove(one)
            one.rank = rank
            self.pool.pin(found)
            one.blocks = list(found)
            one.named = len(found)
            one.computed = len(found) * self._block_tokens
            one.table = np.array([*found, *([0] * TABLE_GROWTH)], np.int32)
            state = one.state
            if not one.is_charged:
                one.is_charged = True
                self.tenants.charge(one.tenant, cost)
                if not state.admitted_ns:
                    state.admitted_ns = now_ns
                    state.cached_tokens = one.computed
                    self.counters.cached_tokens += one.computed
                    self.counters.prompt_tokens += one.known
            else:
                self.counters.recomputed_tokens += one.known - one.computed
            self._run(one, one.admission)

    def _run(self, one: Generation, admission: int) -> None:
        if not admission:
            self._admissions += 1
            admission = self._admissions
        one.admission = admission
        one.is_running = True
        running = self.running
        if running and (running[-1].rank, running[-1].admission) > (one.rank, admission):
            insort(running, one, key=_order)
        else:
            running.append(one)

    def _preempt(self, one: Generation, now_ns: int) -> None:
        self.counters.preemptions += 1
        self.running.remove(one)
        self._let_go(one)
        one.queued_ns = now_ns
        self.waiting.add_admitted(one)

    def _let_go(self, one: Generation) -> None:
        self.pool.release(one.blocks)
        one.blocks = []
        one.computed = one.named = 0
        one.shares_tail = False
        one.is_running = False

    def _build(self, planned: Sequence[Rows]) -> tuple[Step, list[_Work]]:
        tokens: list[int] = []
        sequences: list[StepSequence] = []
        wanted: list[int] = []
        work: list[_Work] = []
        for one, rows in planned:
            assert isinstance(one, Generation)
            start = one.computed
            end = start + rows
            if one.shares_tail or len(one.blocks) * self._block_tokens < end:
                self._grow(one, end)
            if one.wants_prompt_logits:
                first = len(tokens)
            elif end == one.known and one.state.tokens_max:
                first = len(tokens) + rows - 1
            else:
                first = len(tokens) + rows
            if rows == 1:
                tokens.append(one.ids[start])
            else:
                tokens += one.ids[start:end]
            work.append(_Work(one, rows, len(wanted), len(tokens) - first))
            wanted.extend(range(first, len(tokens)))
            sequences.append(StepSequence(rows, start, one.table))
        step = Step(np.array(tokens, np.int32), tuple(sequences), np.array(wanted, np.int32))
        return step, work

    def _grow(self, one: Generation, tokens: int) -> None:
        """Blocks for so many tokens, the one written next for itself alone."""
        pool = self.pool
        blocks = one.blocks
        if one.shares_tail:
            one.shares_tail = False
            at = one.computed // self._block_tokens
            shared = blocks[at]
            if pool.refs[shared] > 1:
                own = pool.take()
                self.runner.copy_block(shared, own)
                pool.release((shared,))
                blocks[at] = own
                one.table[at] = own
        while len(blocks) * self._block_tokens < tokens:
            block = pool.take()
            if len(blocks) == len(one.table):
                one.table = np.concatenate((one.table, np.zeros(max(TABLE_GROWTH, len(blocks) // 2), np.int32)))
            one.table[len(blocks)] = block
            blocks.append(block)

    # -- what came of it ---------------------------------------------------------------------------------------------

    def _take_in(self, work: Sequence[_Work], logits: np.ndarray, now_ns: int) -> None:
        drawing: list[Generation] = []
        rows: list[int] = []
        for item in work:
            one = item.generation
            one.computed += item.rows
            if one.wants_prompt_logits:
                self._read_prompt_logprobs(one, item, logits)
            if one.computed // self._block_tokens > one.named:
                self._name_blocks(one)
            if one.computed != one.known:
                continue
            state = one.state
            row = item.first_logits + item.logits - 1
            if not state.is_prompt_done:
                self._prompt_done(one, now_ns)
            if not state.tokens_max:
                self._end_without_tokens(state)
                continue
            drawing.append(one)
            rows.append(row)
            if state.unforked:
                for other in self._fork(one, now_ns):
                    drawing.append(other)
                    rows.append(row)
        if not drawing:
            return
        picked = self._pick(logits, drawing, rows)
        for at, one in enumerate(drawing):
            if one.is_ended:
                continue  # another choice's reader has just ended the request
            token = picked[at]
            if not np.isfinite(logits[rows[at], token]):
                self.fail(
                    one.state, EngineFailed("the model's logits are not numbers", hint="are its weights damaged?")
                )
                continue
            wanted = one.sampling.logprobs
            likelihood = None
            if wanted is not None:
                likelihood = likelihoods(logits[rows[at] : rows[at] + 1], (token,), wanted)[0]
            self._accept(one, token, likelihood, now_ns)

    def _pick(self, logits: np.ndarray, drawing: Sequence[Generation], rows: Sequence[int]) -> list[int]:
        return [
            pick(logits[row], one.sampling, one.known, self._banned(one))
            for one, row in zip(drawing, rows, strict=True)
        ]

    def _banned(self, one: Generation) -> Sequence[int]:
        """Tokens that may not come yet."""
        tokens_min = one.state.request.ends.tokens_min
        return sorted(one.state.stop_ids) if tokens_min and one.generated < tokens_min else ()

    def _accept(self, one: Generation, token: int, likelihood: Likelihood | None, now_ns: int) -> None:
        """A new token of a choice."""
        state = one.state
        ends = state.request.ends
        one.ids.append(token)
        one.known += 1
        state.completion_tokens += 1
        self.counters.completion_tokens += 1
        self.tenants.charge(one.tenant, self.tenants.generated_cost(one.tenant))
        one.sampling.saw(token)
        if one.last_ns:
            self.counters.between_tokens.add(now_ns - one.last_ns)
        elif not state.first_token_ns:
            state.first_token_ns = now_ns
            self.counters.first_token.add(now_ns - state.arrival_ns)
        one.last_ns = now_ns
        wording: Callable[[bytes], TokenLogprob] | None = None
        if likelihood is not None:
            wording = self._wording(token, likelihood)
        if token in state.stop_ids:
            delta: Delta | None = one.text.stop_at(token, wording, is_named=token in ends.stop_token_ids)
        else:
            generated = one.generated
            delta = one.text.add(
                token, wording, may_stop=generated >= ends.tokens_min, is_last=generated >= state.tokens_max
            )
        if delta is None:
            return
        if delta.finish is not None:
            self._end_choice(one)
        self._tell(state, delta)
        if delta.finish is not None and not state.choices and not state.unforked and not state.is_ended:
            self._finish(state, now_ns)

    def _wording(self, token: int, likelihood: Likelihood) -> Callable[[bytes], TokenLogprob]:
        label, top = token_text(self._label(token)), self._top(likelihood)

        def word(data: bytes) -> TokenLogprob:
            return TokenLogprob(id=token, text=label, bytes_=data, logprob=likelihood.logprob, top=top)

        return word

    def _top(self, likelihood: Likelihood) -> tuple[tuple[int, str, bytes, float], ...]:
        return tuple(
            (token, token_text(self._label(token)), self._tokenizer.token_bytes(token), logprob)
            for token, logprob in zip(likelihood.top_ids, likelihood.top_logprobs, strict=True)
        )

    def _label(self, token: int) -> bytes:
        return self._tokenizer.token_bytes(token)

    def _read_prompt_logprobs(self, one: Generation, item: _Work, logits: np.ndarray) -> None:
        state = one.state
        request = state.request
        top = request.prompt_logprobs or 0
        prompt = request.prompt_ids
        bytes_of = self._tokenizer.token_bytes
        start = one.computed - item.rows
        if start == 0:
            first = prompt[0]
            state.prompt_logprobs = [
                TokenLogprob(id=first, text=token_text(self._label(first)), bytes_=bytes_of(first), logprob=None)
            ]
        targets = prompt[start + 1 : one.computed + 1]
        rows = logits[item.first_logits : item.first_logits + len(targets)]
        for token, likelihood in zip(targets, likelihoods(rows, targets, top), strict=True):
            state.prompt_logprobs.append(self._wording(token, likelihood)(bytes_of(token)))
        if one.computed >= len(prompt):
            one.wants_prompt_logits = False

    def _name_blocks(self, one: Generation) -> None:
        """Lets others find the blocks that have become full."""
        pool = self.pool
        pool.extend_keys(one.keys, one.state.root, one.ids, one.computed)
        for at in range(one.named, one.computed // self._block_tokens):
            block = pool.name(one.blocks[at], one.keys[at])
            if block != one.blocks[at]:
                one.blocks[at] = block
                one.table[at] = block
        one.named = one.computed // self._block_tokens

    def _prompt_done(self, one: Generation, now_ns: int) -> None:
        state = one.state
        state.is_prompt_done = True
        state.prompt_done_ns = now_ns
        self._tell(state, PromptDone(cached_tokens=state.cached_tokens, logprobs=tuple(state.prompt_logprobs)))
        state.prompt_logprobs = []

    def _fork(self, one: Generation, now_ns: int) -> list[Generation]:
        """The other choices begin where the first has read the prompt, on its blocks; answers those that run now."""
        state = one.state
        forked = []
        is_partial = bool(one.computed % self._block_tokens)
        for other in state.unforked:
            other.is_charged = True
            other.keys = list(one.keys)
            state.choices.append(other)
            self._admissions += 1
            other.admission = self._admissions
            other.rank = one.rank
            if len(self.running) >= self.limits.sequences_max:
                other.queued_ns = now_ns
                self.waiting.add_admitted(other)
                continue
            other.blocks = one.blocks[: -(-one.computed // self._block_tokens)]
            self.pool.pin(other.blocks)
            other.table = one.table.copy()
            other.named = one.named
            other.computed = one.computed
            other.shares_tail = is_partial
            one.shares_tail = is_partial
            self._run(other, other.admission)
            forked.append(other)
        state.unforked = []
        return forked

    # -- endings -----------------------------------------------------------------------------------------------------

    def _end_without_tokens(self, state: RequestState) -> None:
        for one in [*state.choices, *state.unforked]:
            delta = one.text.abandon(FinishReason.LENGTH)
            self._tell(state, delta)
            if state.is_ended:
                return
        for one in list(state.choices):
            self._end_choice(one)
        state.unforked = []
        self._finish(state, state.prompt_done_ns)

    def _end_choice(self, one: Generation) -> None:
        one.is_ended = True
        if one.is_running:
            self.running.remove(one)
            self._let_go(one)
        else:
            self.waiting.remove(one)
        one.state.choices.remove(one)

    def _finish(self, state: RequestState, now_ns: int) -> None:
        state.is_ended = True
        self.tenants.left(state.request.tenant)
        self.counters.requests_finished += 1
        usage = Usage(
            prompt_tokens=len(state.request.prompt_ids),
            completion_tokens=state.completion_tokens,
            cached_tokens=state.cached_tokens,
        )
        self._tell(
            state,
            Finished(
                usage=usage,
                queue_ns=state.admitted_ns - state.arrival_ns,
                prefill_ns=state.prompt_done_ns - state.admitted_ns,
                decode_ns=now_ns - state.prompt_done_ns,
            ),
        )

    def _drop(self, state: RequestState) -> None:
        for one in list(state.choices):
            self._end_choice(one)
        state.unforked = []
        state.is_ended = True
        self.tenants.left(state.request.tenant)

    def _fail_step(self, work: Sequence[_Work], error: Exception) -> None:
        """Nobody knows what was written: those who took part end, what was named in earlier steps stays."""
        failed = error if isinstance(error, FarthingError) else EngineFailed(f"a step of the model failed: {error}")
        for item in work:
            self.fail(item.generation.state, failed)

    def _tell(self, state: RequestState, event: GenerationEvent | FarthingError) -> None:
        try:
            state.on_event(event)
        except Exception:
            log.exception("the reader of request `%s` failed; the request ends", state.request.id)
            self.cancel(state)

    def check_integrity(self) -> None:
        """Asserts that blocks, lists and states agree (for tests and simulations)."""
        self.pool.check_integrity(one.blocks for one in self.running)
        assert [_order(one) for one in self.running] == sorted(_order(one) for one in self.running)
        assert len(self.running) <= self.limits.sequences_max
        waiting = [one for line in self.waiting.lines.values() for one in line]
        assert all(self.waiting.lines.values()), "no line is empty"
        assert len(waiting) == self.waiting.count
        for one in waiting:
            assert isinstance(one, Generation)
            assert not one.blocks
            assert not one.computed
            assert not one.is_running
        for one in [*self.running, *waiting]:
            assert isinstance(one, Generation)
            assert not one.is_ended
            assert one in one.state.choices
            assert one.known == len(one.ids)
            assert one.computed < one.known
            assert one.table[: len(one.blocks)].tolist() == one.blocks or not one.is_running
            assert one.computed <= len(one.blocks) * self._block_tokens


def _order(one: Generation) -> tuple[int, int]:
    return one.rank, one.admission
