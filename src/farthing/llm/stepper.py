"""One step after another: plan, allocate, run, pick, tell. Single-threaded; nothing here waits or decides.

What a step computes is decided by `scheduler` and `speculation`, which token comes by `picker`, what a reader sees of
it by `choice_text`; who is under way is kept by `roster`. Threads, bounds and closing belong to `generator`.
Simulations and the planner drive this class directly.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from farthing.llm.generation import Generation, RequestState
from farthing.llm.pace import Pace
from farthing.llm.picker import Draw, Likeliest, Picked, likelihoods, pick_all
from farthing.llm.roster import Roster
from farthing.llm.runners.runner import GreedyRunner, Runner, Step, StepSequence
from farthing.llm.scheduler import Limits, Memory, Plan, Progress, plan_step
from farthing.llm.speculation import DRAFT_TOKENS_MAX, StepTimes, chance_needed
from farthing.llm.statistics import StepShape
from farthing.llm.wording import Vocabulary, word
from farthing.telemetry.clock import Clock, MonotonicClock
from farthing.types.errors import EngineFailed, FarthingError
from farthing.types.generation import FinishReason, PromptDone

log = logging.getLogger(__name__)


class _Work(NamedTuple):
    """A generation's rows in a step, and where their logits are."""

    generation: Generation
    rows: int
    """Without drafted ones."""
    draft: Sequence[int]
    first_logits: int
    logits: int


class _Taker(NamedTuple):
    """A generation and its draws: one, and one more for each drafted token."""

    generation: Generation
    first_draw: int
    draft: Sequence[int]


class Stepper:
    """The model, and everyone under way on it."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Vocabulary,
        *,
        limits: Limits,
        speculates: bool = True,
        identity: str = "",
        weights: Mapping[str, float] | None = None,
        clock: Clock | None = None,
        secret: bytes | None = None,
    ) -> None:
        """`identity` names the weights in the prefix cache, `weights` are the tenants'."""
        assert 0 < limits.sequences_max < limits.step_tokens, "each generation must get its row in each step"
        self._bytes_of = cache(tokenizer.token_bytes)  # bounded by the vocabulary; a look-up afresh takes 30 us
        self._make_roster = partial(
            Roster,
            runner,
            tokenizer,
            self._bytes_of,
            sequences_max=limits.sequences_max,
            speculates=speculates,
            identity=identity,
            weights=weights,
            secret=secret,
        )
        self.roster = self._make_roster()
        self.times = StepTimes()
        self._runner = runner
        self._greedy = runner if isinstance(runner, GreedyRunner) else None
        self._limits = limits
        self.pace = Pace(limits)
        self._block_tokens = runner.block_tokens
        self._speculates = speculates
        self._now_ns = (clock or MonotonicClock()).now_ns

    def reset(self, error: FarthingError) -> None:
        """Ends everybody with an error and begins anew: after a mistake of ours no count can be trusted."""
        old, self.roster = self.roster, self._make_roster()
        self.roster.counters = old.counters
        for state in old.states():
            state.is_ended = True
            old.counters.requests_failed += 1
            old.tell(state, error)

    def step(self) -> bool:
        """Runs the model once, if anybody wants it; False when nobody is under way."""
        began_ns = self._now_ns()
        roster = self.roster
        roster.expire(began_ns)
        if not roster.running and not roster.waiting.count:
            return False
        pool = roster.pool
        memory = Memory(self._block_tokens, pool.free, pool.refs, self._find)
        limits = self._limits_now()
        plan = plan_step(roster.running, roster.waiting.lines, memory, limits, roster.tenants.accounts, began_ns)
        roster.carry_out(plan, began_ns)
        work, step = self._build(plan)
        run_ns = self._now_ns()
        try:
            logits, likeliest = self._run(step, work)
            if len(logits) != len(step.logits_rows):
                raise EngineFailed(f"the runner gave {len(logits)} rows of logits for {len(step.logits_rows)}")
        except Exception as error:
            log.exception("a step of %d rows failed; %d generations end", len(step.tokens), len(work))
            self._fail(work, error)
            return True
        ran_ns = self._now_ns()
        if len(logits) == len(step.tokens):
            self.times.observe(len(logits), ran_ns - run_ns)
        self.pace.observe(len(step.tokens), ran_ns - run_ns)
        self._take_in(work, logits, likeliest, ran_ns)
        counters = roster.counters
        counters.steps += 1
        counters.run_ns += ran_ns - run_ns
        other_ns = self._now_ns() - ran_ns + run_ns - began_ns
        counters.other_ns += other_ns
        counters.last_step = StepShape(len(work), len(step.tokens), len(logits), ran_ns - run_ns, other_ns)
        return True

    def _limits_now(self) -> Limits:
        running, waiting = self.roster.running, self.roster.waiting.count
        if len(running) + waiting == 1:
            return self._limits
        decoding = sum(one.known - one.computed == 1 for one in running)
        return self.pace.limits_for(decoding=decoding, reading=len(running) - decoding + waiting)

    def _find(self, one: Progress) -> list[int]:
        assert isinstance(one, Generation)
        return self.roster.tables.found(one)

    def _run(self, step: Step, work: Sequence[_Work]) -> tuple[np.ndarray, Likeliest | None]:
        """Logits; or rows without any and the likeliest tokens, where everybody takes those as they stand."""
        if self._greedy is None or not all(item.generation.takes_likeliest for item in work):
            return self._runner.run(step), None
        likeliest = Likeliest(*self._greedy.run_likeliest(step))
        return np.empty((len(likeliest.tokens), 0), np.float32), likeliest

    # -- before the run ----------------------------------------------------------------------------------------------

    def _build(self, plan: Plan) -> tuple[list[_Work], Step]:
        drafts = self._drafts(plan) if self._speculates else {}
        grow = self.roster.tables.grow
        size = self._block_tokens
        tokens: list[int] = []
        sequences: list[StepSequence] = []
        wanted: list[int] = []
        work: list[_Work] = []
        for one, rows in plan.rows:
            assert isinstance(one, Generation)
            start = one.computed
            end = start + rows
            first = len(tokens)
            if rows == 1:
                tokens.append(one.ids[start])
            else:
                tokens += one.ids[start:end]
            draft: Sequence[int] = ()
            if drafts and (draft := drafts.get(one.number, ())):
                tokens += draft
                end += len(draft)
            if one.shares_tail or len(one.blocks) * size < end:
                grow(one, end)
            sequences.append(StepSequence(end - start, start, one.table))
            if not one.wants_prompt_logits:
                gives_token = start + rows == one.known and one.state.tokens_max > 0
                first = first + rows - 1 if gives_token else len(tokens)
            work.append(_Work(one, rows, draft, len(wanted), len(tokens) - first))
            wanted.extend(range(first, len(tokens)))
        step = Step(np.array(tokens, np.int32), tuple(sequences), np.array(wanted, np.int32))
        return work, step

    def _drafts(self, plan: Plan) -> dict[int, list[int]]:
        """Drafts by generation number, if nobody reads a prompt in this step and rows are to spare."""
        sequences = rows = len(plan.rows)
        spare_blocks = plan.spare_blocks - sequences  # those who run are to grow before a guess does
        rows_max = min(rows + plan.spare_rows, max(rows, self.times.rows_max) + DRAFT_TOKENS_MAX)
        if rows_max <= rows or spare_blocks <= 0 or any(one_rows != 1 for _, one_rows in plan.rows):
            return {}
        drafts: dict[int, list[int]] = {}
        needed = chance_needed(rows, sequences, self.times)
        for one, _ in plan.rows:
            assert isinstance(one, Generation)
            drafter = one.drafter
            if drafter is None:
                continue
            forced = one.grammar.forced() if one.grammar is not None else ()
            if drafter.chance < needed and not forced:
                drafter.rest(one.known)
                continue
            state = one.state
            generated = one.generated
            tokens_max = min(state.tokens_max - generated - 1, rows_max - rows)
            if tokens_max <= 0 or one.shares_tail or one.computed + 1 != one.known:
                continue
            if generated < state.request.ends.tokens_min:
                continue
            if forced:
                draft = drafter.sure(forced, tokens_max, rows, sequences, self.times)
            else:
                draft = drafter.draft(one.ids, tokens_max, rows, sequences, self.times)
            if draft and one.grammar is not None:
                draft = draft[: one.grammar.allowed(draft)]
            if draft:
                more = -(-(one.known + len(draft)) // self._block_tokens) - len(one.blocks)
                if more > spare_blocks:
                    continue
                spare_blocks -= max(more, 0)
                rows += len(draft)
                drafts[one.number] = draft
        return drafts

    # -- after the run -----------------------------------------------------------------------------------------------

    def _fail(self, work: Sequence[_Work], error: Exception) -> None:
        """Nobody knows what was written: those who took part end. What was named in earlier steps stays."""
        failed = error if isinstance(error, FarthingError) else EngineFailed(f"a step of the model failed: {error}")
        for item in work:
            self.roster.fail(item.generation.state, failed)

    def _take_in(self, work: Sequence[_Work], logits: np.ndarray, likeliest: Likeliest | None, now_ns: int) -> None:
        name = self.roster.tables.name
        size = self._block_tokens
        draws: list[Draw] = []
        takers: list[_Taker] = []
        for one, rows, draft, first_logits, count in work:
            state = one.state
            if state.is_ended:
                continue  # its reader left while another choice's prompt was told
            one.computed += rows
            if one.wants_prompt_logits:
                self._read_prompt(one, rows, logits, first_logits)
            if one.computed // size > one.named:
                name(one)
            if one.computed != one.known:
                continue
            if not state.is_prompt_done:
                self._prompt_done(state, now_ns)
                if state.is_ended:
                    continue
                if not state.tokens_max:
                    self.roster.end_without_tokens(state, now_ns)
                    continue
            row = first_logits + count - 1 - len(draft)
            masks = None
            if one.grammar is not None:
                try:
                    masks = one.grammar.masks(draft, one.unwanted())
                except FarthingError as error:
                    self.roster.fail(state, error)
                    continue
            takers.append(_Taker(one, len(draws), draft))
            draws += _draws(one, row, len(draft), masks)
            if state.unforked:
                for other in self.roster.fork(one, now_ns):
                    takers.append(_Taker(other, len(draws), ()))
                    draws += _draws(other, row, 0, masks)  # it stands where `one` does, in its grammar too
        if not draws:
            return
        tokens, are_finite = likeliest.pick(draws) if likeliest else self._pick(logits, takers, draws)
        for one, first, draft in takers:
            stood = 0
            for at in range(first, first + len(draft) + 1):
                if one.is_ended:
                    break  # by itself, or with its request
                token = tokens[at]
                if are_finite is not None and not are_finite[at]:
                    nan = EngineFailed("the model's logits are not numbers", hint="are its weights damaged?")
                    self.roster.fail(one.state, nan)
                    break
                self._accept(one, token, logits, draws[at], now_ns)
                if at - first == len(draft) or token != draft[at - first]:
                    break
                stood += 1
                one.computed += not one.is_ended
            if draft:
                self._drafted(one, len(draft), stood)

    def _pick(self, logits: np.ndarray, takers: Sequence[_Taker], draws: Sequence[Draw]) -> Picked:
        """All tokens at once; should that fail, one by one, so that it fails for those alone who are the reason."""
        try:
            return pick_all(logits, draws)
        except Exception:
            log.exception("%d tokens could not be picked together", len(draws))
        tokens: list[int] = []
        are_finite: list[bool] = []
        for one, first, draft in takers:
            mine = draws[first : first + len(draft) + 1]
            picked = Picked([0] * len(mine), None)
            try:
                picked = pick_all(logits, mine)
            except Exception as error:
                self.roster.fail(one.state, EngineFailed(f"the next token could not be picked: {error}"))
            tokens += picked.tokens
            are_finite += picked.are_finite or [True] * len(mine)
        return Picked(tokens, are_finite)

    def _drafted(self, one: Generation, drafted: int, stood: int) -> None:
        self.roster.counters.drafted_tokens += drafted
        self.roster.counters.accepted_tokens += stood
        if one.drafter is not None:
            one.drafter.fared(drafted, stood)
        if not one.is_ended:
            self.roster.tables.name(one)

    def _accept(self, one: Generation, token: int, logits: np.ndarray, draw: Draw, now_ns: int) -> None:
        """A new token of a choice: remembered, counted, told."""
        roster = self.roster
        counters = roster.counters
        state = one.state
        ends = state.request.ends
        one.ids.append(token)
        one.known += 1
        state.completion_tokens += 1
        counters.completion_tokens += 1
        roster.tenants.charge_generated(one.tenant)
        one.sampling.saw(token)
        if one.last_ns:
            counters.between_tokens.add(now_ns - one.last_ns)
        elif state.completion_tokens == 1:
            counters.first_token.add(now_ns - state.arrival_ns)
        one.last_ns = now_ns
        wording = None
        if (top := draw.sampling.logprobs) is not None:
            (thought,) = likelihoods(logits, (draw.row,), (token,), top)
            wording = partial(word, token, thought, self._bytes_of)
        if token in state.stop_ids:
            delta = one.text.stop_at(token, wording, is_named=token in ends.stop_token_ids)
        else:
            generated = one.known - state.prompt_tokens
            end = FinishReason.LENGTH if generated >= state.tokens_max else None
            if one.grammar is not None:
                try:
                    one.grammar.accept(token)
                except FarthingError as error:
                    roster.fail(state, error)
                    return
                if one.grammar.is_complete:
                    end = FinishReason.STOP
            added = one.text.add(token, wording, may_stop=generated >= ends.tokens_min, end=end)
            if added is None:
                return
            delta = added
        if delta.finish is None:
            roster.tell(state, delta)
            return
        roster.end_choice(one)
        roster.tell(state, delta)
        roster.finish_if_over(state, now_ns)

    def _read_prompt(self, one: Generation, rows: int, logits: np.ndarray, first: int) -> None:
        """The row of one prompt token tells what the model thought of the next."""
        state = one.state
        request = state.request
        prompt = request.prompt_ids
        bytes_of = self._bytes_of
        start = one.computed - rows
        if not start:
            state.prompt_logprobs = [word(prompt[0], None, bytes_of, bytes_of(prompt[0]))]
        targets = prompt[start + 1 : one.computed + 1]
        at = range(first, first + len(targets))
        for token, thought in zip(targets, likelihoods(logits, at, targets, request.prompt_logprobs or 0), strict=True):
            state.prompt_logprobs.append(word(token, thought, bytes_of, bytes_of(token)))
        if one.computed >= len(prompt):
            one.wants_prompt_logits = False

    def _prompt_done(self, state: RequestState, now_ns: int) -> None:
        state.is_prompt_done = True
        state.prompt_done_ns = now_ns
        logprobs, state.prompt_logprobs = tuple(state.prompt_logprobs), []
        self.roster.tell(state, PromptDone(cached_tokens=state.cached_tokens, logprobs=logprobs))


def _draws(one: Generation, row: int, drafted: int, masks: np.ndarray | None) -> list[Draw]:
    """Its next token, and those after its draft."""
    if masks is None:
        banned = one.banned()
        return [Draw(row + at, one.sampling, one.known + at, banned) for at in range(drafted + 1)]
    return [Draw(row + at, one.sampling, one.known + at, (), masks[at]) for at in range(drafted + 1)]
