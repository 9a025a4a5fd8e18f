"""Keeps a Python model's process going: one life after the other.

A thread of its own starts each process, waits for its death and asks `backoff` when to start the next. A batch is
answered by the process that is there, or refused at once. A single life is in `process`.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from farthing.engines.contract import Batch, Sender, Subrequests
from farthing.engines.python import backoff, messages
from farthing.engines.python.process import EXIT_WAIT_S, Answer, Life
from farthing.engines.python.stream_process import HearResponse, RunningStreams
from farthing.types.errors import FarthingError, LoadFailed, Unavailable

T = TypeVar("T")

_LOG: Final = logging.getLogger("farthing.engines.python")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long things may take."""

    load_s: float
    execute_s: float | None
    """None: as long as it takes; the server's own liveness check then speaks up."""
    unload_s: float


class Supervisor:
    """Keeps one process of a model going, and runs batches in it."""

    def __init__(
        self,
        start: messages.Start,
        environment: Mapping[str, str],
        limits: Limits,
        policy: backoff.Policy,
        clock: Callable[[], float],
        sender: Sender,
        subrequests: Subrequests | None = None,
    ) -> None:
        self._start = start
        self._sender = sender
        self._subrequests = subrequests
        self._environment = environment
        self._limits = limits
        self._policy = policy
        self._clock = clock
        self._is_closing = threading.Event()
        self._closing_at_s = 0.0
        self._first_load_done = threading.Event()
        self._first_failure: FarthingError | None = None
        self._ready: messages.Ready | None = None
        self._in_use = threading.Lock()
        """Held while a batch runs: a life is not taken apart under it."""
        self._life: Life | None = None
        """The process that answers; None while there is none."""
        self._newest: Life | None = None
        """The process that was started last, loaded or not."""
        self._trouble = ""
        self._load_s = 0.0
        """How long the model took to load, the last time it did."""
        self._restart = backoff.Restart(deaths=0, at_s=0.0)
        self._thread = threading.Thread(
            target=self._supervise, name=f"python-{start.name}-{start.instance}", daemon=True
        )
        self._thread.start()

    def loaded(self) -> messages.Ready:
        """Waits for the first process to have loaded the model. Raises `LoadFailed`."""
        self._first_load_done.wait()
        if self._first_failure is not None:
            raise self._first_failure
        assert self._ready is not None
        return self._ready

    @property
    def pid(self) -> int | None:
        """The process that answers now, if there is one."""
        life = self._answering()
        return life.pid if life is not None else None

    def run(self, batch: Batch, judge: Callable[[Answer, Life], T]) -> T:
        """Has a batch run, and returns what `judge` makes of the answer and of the life to `take` tensors from.

        Raises `Unavailable` at once while no process is up, `EngineFailed` when it dies of the batch.
        """
        with self._in_use:
            life = self._answering()
            if life is None:
                raise self._unavailable()
            return judge(life.run(batch, self._limits.execute_s), life)

    def begin(self, batch: Batch, hears: Sequence[HearResponse]) -> RunningStreams:
        """Has a batch of a model begun that answers as often as it likes. Raises as `run` does."""
        with self._in_use:
            life = self._answering()
            if life is None:
                raise self._unavailable()
            return life.begin(batch, hears, self._limits.execute_s)

    def health(self) -> str:
        """Empty while a process is up."""
        if self._answering() is not None:
            return ""
        wait_s = max(0.0, self._restart.at_s - self._clock())
        times = f"{self._restart.deaths} times in a row" if self._restart.deaths > 1 else "once"
        when = f"next start in {wait_s:.1f} s" if wait_s else "it is starting"
        return (
            f"process {self._start.instance} of model `{self._start.name}` has died {times}, last: "
            f"{self._why()}; {when}"
        )

    def close_begin(self) -> None:
        """Asks the process to go, without waiting: several can go at the same time."""
        self._closing_at_s = self._clock()
        self._is_closing.set()
        if (newest := self._newest) is not None:
            newest.stop()

    def close_end(self) -> None:
        """Returns when the process is gone: by itself, or killed after the time it is given since `close_begin`."""
        if (newest := self._newest) is not None:
            newest.end(max(0.0, self._closing_at_s + self._limits.unload_s - self._clock()))
        self._thread.join(EXIT_WAIT_S)

    def _answering(self) -> Life | None:
        """The process that can take a batch, if there is one. The supervisor may not have seen its end yet."""
        life = self._life
        return None if life is None or life.is_over else life

    def _why(self) -> str:
        life = self._life
        return self._trouble if life is None else life.ending()

    def _unavailable(self) -> Unavailable:
        wait_s = max(0.0, self._restart.at_s - self._clock())
        return Unavailable(
            f"model `{self._start.name}`: its process {self._why()} and is being started again",
            hint="try again; the server's log has what the process printed",
            retry_after_s=wait_s + self._load_s,
        )

    def _supervise(self) -> None:
        try:
            self._live()
        finally:
            if not self._first_load_done.is_set():  # our own mistake must not leave `loaded` waiting
                self._failed(LoadFailed(f"{self._start.path}: its process could not be looked after; see the log"))

    def _live(self) -> None:
        while not self._is_closing.is_set():
            started_s = self._clock()
            trouble = self._one_life()
            if self._first_failure is not None or self._is_closing.is_set():
                return
            self._restart = backoff.after_death(
                self._restart.deaths, started_s=started_s, died_s=self._clock(), policy=self._policy
            )
            self._trouble = trouble
            _LOG.warning("%s", self.health())
            self._is_closing.wait(max(0.0, self._restart.at_s - self._clock()))

    def _one_life(self) -> str:
        """Starts a process and returns when it is gone, with how it went."""
        started_s = self._clock()
        try:
            life = Life(self._start, self._environment, self._clock, self._sender, self._subrequests)
        except OSError as problem:
            return self._failed(LoadFailed(f"{self._start.path}: no process can be started: {problem}"))
        self._newest = life
        if self._is_closing.is_set():  # close_begin may have looked too early to see it
            life.kill()
        try:
            self._ready = life.load(self._start, self._limits.load_s, self._clock)
            if self._ready.is_decoupled:
                life.open_streams()
            self._life = life
            self._load_s = self._clock() - started_s
            self._first_load_done.set()
            life.wait()
            return life.ending()
        except LoadFailed as problem:
            return self._failed(problem)
        finally:
            life.kill()
            life.wait()
            self._trouble = life.ending()
            with self._in_use:
                self._life = None
                life.free()

    def _failed(self, problem: FarthingError) -> str:
        if not self._first_load_done.is_set():
            self._first_failure = problem
            self._first_load_done.set()
        return f"could not be loaded: {problem.message}"
