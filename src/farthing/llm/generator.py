"""One loaded language model: requests in from any thread, events out, a thread that steps while there is work.

Bounds and their answers are here, steps in `stepper`. Without work the thread sleeps on a condition and costs nothing.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from farthing.llm.generation import OnEvent, RequestState
from farthing.llm.runners.runner import Runner
from farthing.llm.scheduler import Limits, fits
from farthing.llm.statistics import Counters, GeneratorStatistics
from farthing.llm.stepper import Stepper
from farthing.llm.wording import Vocabulary
from farthing.telemetry.clock import Clock, MonotonicClock
from farthing.types.errors import EngineFailed, InvalidField, InvalidInput, Overloaded, Unavailable
from farthing.types.generation import GenerateRequest

RETRY_AFTER_S_MAX: Final = 60.0
"""Clients give up rather than wait longer (OpenAI's own at 120 s)."""

TOO_LONG: Final = "context_length_exceeded"
"""OpenAI's code for a prompt that does not fit."""

log = logging.getLogger(__name__)


class _Order:
    """A request on its way to the loop, and its cancellation."""

    __slots__ = ("is_cancelled", "on_event", "request", "state", "tokens_max")

    def __init__(self, request: GenerateRequest, on_event: OnEvent, tokens_max: int) -> None:
        self.request = request
        self.on_event = on_event
        self.tokens_max = tokens_max
        self.state: RequestState | None = None
        self.is_cancelled = False


class Generator:
    """Continues prompts. `submit` and `stats` may be called from any thread."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Vocabulary,
        *,
        limits: Limits | None = None,
        queue_max: int = 1024,
        speculates: bool = True,
        identity: str = "",
        weights: Mapping[str, float] | None = None,
        clock: Clock | None = None,
        name: str = "generator",
    ) -> None:
        """`queue_max` bounds the choices that wait; `identity` names the weights in the prefix cache."""
        clock = clock or MonotonicClock()
        self._now_ns = clock.now_ns
        self._runner = runner
        self._queue_max = queue_max
        self._stepper = Stepper(
            runner,
            tokenizer,
            limits=limits or Limits(),
            speculates=speculates,
            identity=identity,
            weights=weights,
            clock=clock,
        )
        self.pool_tokens = runner.blocks * runner.block_tokens
        self.tokens_max = min(runner.spec.context_tokens, self.pool_tokens)
        """Prompt and output of one choice together."""
        self._wake = threading.Condition()
        self._inbox: deque[_Order] = deque()
        self._cancelled: deque[_Order] = deque()
        self._arriving = 0  # choices in the inbox
        self._is_closing = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest, on_event: OnEvent) -> Callable[[], None]:
        """Takes a request in and answers how to cancel it; refuses at once what can never run or finds no place.

        `on_event` is called from the generator's thread, in order, and must not block.
        """
        order = _Order(request, on_event, self._room(request))
        with self._wake:
            if self._is_closing:
                raise Unavailable("the model is being unloaded", retry_after_s=1)
            waiting = self._stepper.roster.waiting.count + self._arriving
            if waiting and waiting + request.n > self._queue_max:
                self._stepper.roster.counters.requests_refused += 1
                raise Overloaded(
                    f"{waiting} generations wait already; at most {self._queue_max} may",
                    hint="come back later, or serve the model on more machines",
                    retry_after_s=self._retry_after_s(waiting),
                )
            self._inbox.append(order)
            self._arriving += request.n
            self._wake.notify()
        return partial(self._cancel, order)

    def _room(self, request: GenerateRequest) -> int:
        """Tokens of output that the request can have; raises if its prompt leaves none."""
        prompt = len(request.prompt_ids)
        if not prompt:
            raise InvalidInput("the prompt is empty", hint="send at least one token")
        vocabulary = self._runner.spec.vocabulary
        for ids, what in ((request.prompt_ids, "the prompt"), (request.sampling.logit_bias, "the logit bias")):
            if ids and not (min(ids) >= 0 and max(ids) < vocabulary):
                raise InvalidInput(f"{what} has a token outside of the vocabulary of {vocabulary} tokens")
        least = min(request.ends.tokens_max, 1)
        context = self._runner.spec.context_tokens
        if prompt + least > context:
            raise InvalidField(
                f"the prompt has {prompt} tokens, and the model's context is {context} tokens, prompt and output "
                "together",
                code=TOO_LONG,
                hint="shorten the prompt",
            )
        if not fits(prompt + least, self._runner.blocks, self._runner.block_tokens):
            raise InvalidField(
                f"the prompt has {prompt} tokens, and the KV pool holds {self.pool_tokens} tokens "
                f"({self._runner.blocks} blocks of {self._runner.block_tokens})",
                code=TOO_LONG,
                hint="shorten the prompt, or start the server with a larger KV pool",
            )
        return min(request.ends.tokens_max, self.tokens_max - prompt)

    def _retry_after_s(self, waiting: int) -> float:
        counters = self._stepper.roster.counters
        busy_s = (counters.run_ns + counters.other_ns) / 1e9
        each_s = busy_s / counters.requests_finished if counters.requests_finished else 1.0
        return min(max(1.0, waiting * each_s), RETRY_AFTER_S_MAX)

    def _cancel(self, order: _Order) -> None:
        with self._wake:
            if not order.is_cancelled:
                order.is_cancelled = True
                self._cancelled.append(order)
                self._wake.notify()

    def stats(self) -> GeneratorStatistics:
        """The figures of this moment."""
        roster = self._stepper.roster
        counters = roster.counters
        pool = roster.pool
        free = pool.free
        return GeneratorStatistics(
            running=len(roster.running),
            waiting=roster.waiting.count + self._arriving,
            kv_blocks=pool.blocks,
            kv_blocks_used=pool.blocks - free,
            kv_blocks_cached=pool.cached,
            kv_blocks_free=free,
            kv_block_tokens=pool.block_tokens,
            first_token=counters.first_token.snapshot(),
            between_tokens=counters.between_tokens.snapshot(),
            **{name: value for name, value in vars(counters).items() if name not in _HISTOGRAMS},
        )

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        stepper = self._stepper
        while True:
            with self._wake:
                while (
                    not self._inbox
                    and not self._cancelled
                    and not stepper.roster.running
                    and not stepper.roster.waiting.count
                    and not self._is_closing
                ):
                    self._wake.wait()
                arrived, self._inbox = self._inbox, deque()
                cancelled, self._cancelled = self._cancelled, deque()
            try:
                is_busy = self._turn(arrived, cancelled)
            except Exception as error:
                log.exception("the generator made a mistake; everybody under way is answered with an error")
                stepper.reset(EngineFailed(f"the generator failed: {error!r}", hint="this is a bug; please report it"))
                with self._wake:
                    self._inbox.extendleft(reversed(arrived))
                continue
            if self._is_closing and not is_busy:
                with self._wake:
                    if not self._inbox:
                        return

    def _turn(self, arrived: deque[_Order], cancelled: deque[_Order]) -> bool:
        roster = self._stepper.roster
        while arrived:
            order = arrived.popleft()
            self._arriving -= order.request.n
            try:
                order.state = roster.add(order.request, order.on_event, order.tokens_max, self._now_ns())
            except Exception as error:
                log.exception("request `%s` could not be taken in", order.request.id)
                order.on_event(EngineFailed(f"the request could not be taken in: {error!r}"))
        for order in cancelled:
            if order.state is not None:
                roster.cancel(order.state)
        if self._is_stopping:
            for state in roster.states():
                roster.fail(state, Unavailable("the model was unloaded before the answer was complete"))
        return self._stepper.step()

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, timeout_s: float = 30.0) -> bool:
        """Takes no more requests, lets those under way end for so long, ends the others, frees the runner.

        False when the thread is still inside the runner a moment later: then nothing is freed.
        """
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            with self._wake:
                self._is_stopping = True
                self._wake.notify()
            self._thread.join(5.0)
            if self._thread.is_alive():
                return False
        self._runner.close()
        return True


_HISTOGRAMS = frozenset(name for name, value in vars(Counters()).items() if name in ("first_token", "between_tokens"))
