"""Subrequests: what models ask of other models goes the way of any request, on behalf of those that run.

Each is checked, queued and batched with everybody else's, whoever sent them. It has its parents' tenant and trace, and
at least their priority and their deadline. One that would wait for ever is refused at once (`subrequest_waits`). All
of this happens on the event loop; models' processes are heard of through `engines.contract.Subrequests`.
"""

import asyncio
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from socket import socket
from typing import Final, Protocol

from farthing.batching.stream_loop import HearResponse
from farthing.engines.contract import Parent, Sender, Subrequest
from farthing.runtime.ensemble import Ensemble
from farthing.runtime.language_model import LanguageModel
from farthing.runtime.served import Done, Served, ServedVersion
from farthing.runtime.served_streams import Stream, check_any, stream_of
from farthing.runtime.subrequest_waits import Wait, stuck
from farthing.runtime.text_answers import TextStream
from farthing.telemetry.clock import Clock
from farthing.types.errors import DeadlineExceeded, EngineFailed, FarthingError
from farthing.types.requests import InferRequest, InferResponse, RequestedOutput, StreamedResponse

ENSEMBLE_DEPTH_MAX: Final = 16
"""Ensembles within ensembles that are looked into; those loaded lead nowhere in circles, those being replaced might."""


DEPTH_MAX: Final = 32
"""Models that may ask each other in a row. Half of the subrequests a process may have under way, so that one that asks
itself without end is told so before it has taken all of them."""


class Resolve(Protocol):
    """Finds a model by name and version; one that is `near`, in the namespace of whoever asks, before others."""

    def __call__(self, name: str, version: str, *, near: str | None = None) -> Served: ...


class RuntimeSubrequests:
    """Takes subrequests to the models of a runtime."""

    def __init__(self, resolve: Resolve, clock: Clock) -> None:
        self._resolve = resolve
        self._now_ns = clock.now_ns
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waits: dict[Subrequest, Wait] = {}
        """Those that somebody waits for in the middle of a batch."""
        self._withdraws: dict[Subrequest, Callable[[], None]] = {}
        self._takes: dict[Subrequest, Callable[[], None]] = {}
        """Of those that may be answered many times."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """They are carried out on this event loop."""
        self._loop = loop

    def near(self, namespace: str) -> "RuntimeSubrequests":
        """The same, for models of this namespace: the names they say mean their neighbours first."""
        theirs = copy(self)
        theirs._resolve = partial(self._resolve, near=namespace)
        return theirs

    # -- on any thread -----------------------------------------------------------------------------------------------

    def watch(self, sock: socket, on_readable: Callable[[], None]) -> None:
        """Has this called on the event loop whenever the socket can be read."""
        self._soon(self._watch, sock, on_readable)

    def unwatch(self, sock: socket, then: Callable[[], None]) -> None:
        """No more; `then` is called on the event loop, or at once if it is closed."""
        if not self._soon(self._unwatch, sock, then):
            then()

    def detach(self, subrequest: Subrequest) -> None:
        """Its batch has ended without waiting for it; the answer is still wanted."""
        self._soon(self._waits.pop, subrequest, None)

    def on_loop(self, call: Callable[[], None]) -> None:
        """Has this called on the event loop, soon."""
        self._soon(call)

    def _soon(self, call: Callable[..., object], *arguments: object) -> bool:
        try:
            if self._loop is None:
                return False
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # it is closed
            return False
        return True

    # -- on the event loop ---------------------------------------------------------------------------------------------

    def _watch(self, sock: socket, on_readable: Callable[[], None]) -> None:
        assert self._loop is not None
        self._loop.add_reader(sock.fileno(), on_readable)

    def _unwatch(self, sock: socket, then: Callable[[], None]) -> None:
        assert self._loop is not None
        self._loop.remove_reader(sock.fileno())
        then()

    def soon(self, call: Callable[[], None]) -> None:
        """Has this called in the next turn of the event loop."""
        assert self._loop is not None
        self._loop.call_soon(call)

    def submit(self, subrequest: Subrequest, done: Done) -> None:
        """`done` is called once with the answer, at once or later, unless it is withdrawn."""
        now_ns = self._now_ns()
        try:
            request, served = self._resolved(subrequest, now_ns)
            ended = partial(self._done, subrequest, request, now_ns, done)
            if isinstance(served, LanguageModel):
                hears = partial(_hear_once, ended)
                withdraw = self._begin_text(subrequest, request, served, now_ns, hears, is_whole=True).withdraw
            else:
                checked = served.check(request)
                self._begin(subrequest, served)
                withdraw = served.submit(request, *checked, now_ns, ended)
        except FarthingError as error:
            self._over(subrequest)
            done(error)
            return
        if subrequest in self._withdraws:  # an ensemble may answer at once
            self._withdraws[subrequest] = withdraw

    def stream(self, subrequest: Subrequest, hear: HearResponse) -> None:
        """`hear` gets each answer, at once or later, until the last one or a withdrawal."""
        now_ns = self._now_ns()
        try:
            request, served = self._resolved(subrequest, now_ns)
            hears = partial(self._heard, subrequest, request, now_ns, hear)
            stream: Stream
            if isinstance(served, LanguageModel):
                stream = self._begin_text(subrequest, request, served, now_ns, hears, is_whole=False)
            else:
                checked = check_any(served, request)
                self._begin(subrequest, served)
                stream = stream_of(served, request, *checked, now_ns, hears)
        except FarthingError as error:
            self._over(subrequest)
            hear(StreamedResponse(error, is_last=True))
            return
        if subrequest in self._withdraws:
            self._withdraws[subrequest], self._takes[subrequest] = stream.withdraw, stream.taken

    def taken(self, subrequest: Subrequest) -> None:
        """One more of its answers has been dealt with."""
        self._takes.get(subrequest, _nothing)()

    def _resolved(self, subrequest: Subrequest, now_ns: int) -> tuple[InferRequest, Served]:
        if len(subrequest.lineage) > DEPTH_MAX:
            raise EngineFailed(
                f"a request to model `{subrequest.model_name}` is one too many in a row: {DEPTH_MAX} models have asked "
                "each other until it came to this",
                hint="a model that asks itself, or one that asks it, must come to an end before",
            )
        request = self._request(subrequest, now_ns)
        return request, self._resolve(request.model_name, request.model_version)

    def _begin(self, subrequest: Subrequest, served: Served) -> None:
        if subrequest.sender is not None:
            self._begin_wait(subrequest, subrequest.sender, served)
        self._withdraws[subrequest] = _nothing

    def _begin_text(
        self,
        subrequest: Subrequest,
        request: InferRequest,
        model: LanguageModel,
        now_ns: int,
        hear: HearResponse,
        *,
        is_whole: bool,
    ) -> TextStream:
        stream = TextStream(model, request, now_ns, hear, is_whole=is_whole)
        self._begin(subrequest, model)
        stream.start()
        return stream

    def _heard(
        self, subrequest: Subrequest, request: InferRequest, start_ns: int, hear: HearResponse, said: StreamedResponse
    ) -> None:
        if said.is_last:
            self._ended(subrequest, request, start_ns, said.answer)
        hear(said)

    def _done(
        self,
        subrequest: Subrequest,
        request: InferRequest,
        start_ns: int,
        done: Done,
        answer: InferResponse | FarthingError,
    ) -> None:
        self._ended(subrequest, request, start_ns, answer)
        done(answer)

    def _ended(
        self,
        subrequest: Subrequest,
        request: InferRequest,
        start_ns: int,
        answer: InferResponse | FarthingError | None,
    ) -> None:
        self._over(subrequest)
        if request.trace is not None:
            request.trace.note(
                f"subrequest {request.model_name}",
                start_ns,
                self._now_ns(),
                context=request.trace.context,
                error=type(answer).__name__ if isinstance(answer, FarthingError) else "",
            )

    def _over(self, subrequest: Subrequest) -> Callable[[], None]:
        self._waits.pop(subrequest, None)
        self._takes.pop(subrequest, None)
        return self._withdraws.pop(subrequest, _nothing)

    def withdraw(self, subrequest: Subrequest) -> None:
        """Nobody wants the answer any more."""
        self._over(subrequest)()

    def _request(self, subrequest: Subrequest, now_ns: int) -> InferRequest:
        """The request it is: what it does not say itself comes from its parents."""
        parents = [parent for parent in subrequest.parents if parent is not None]
        requests = [parent.request for parent in parents]
        tenants = {request.tenant for request in requests}
        trace = requests[0].trace if len(requests) == 1 else None
        return InferRequest(
            model_name=subrequest.model_name,
            model_version=subrequest.model_version,
            id=subrequest.id,
            inputs=subrequest.inputs,
            outputs=tuple(RequestedOutput(name) for name in subrequest.outputs),
            parameters=subrequest.parameters,
            priority=subrequest.priority or min((request.priority for request in requests), default=0),
            timeout_us=_timeout_us(subrequest, parents, now_ns),
            tenant=tenants.pop() if len(tenants) == 1 else "",
            trace=trace.below() if trace is not None else None,
            due_ns=min((request.due_ns for request in requests if request.due_ns), default=0),
            origin=subrequest,
        )

    def _begin_wait(self, subrequest: Subrequest, sender: Sender, served: Served) -> None:
        """Notes who waits for whom. Raises `EngineFailed` if nobody could ever go on."""
        waits = self._waits
        # What the sender runs itself comes from others that wait, as the sender does from now on.
        for parent in subrequest.batch:
            origin = None if parent is None else parent.request.origin
            if isinstance(origin, Subrequest) and (theirs := waits.get(origin)) and sender not in theirs.runs_on:
                waits[origin] = replace(theirs, runs_on=theirs.runs_on | {sender})
        waits[subrequest] = Wait(sender, frozenset(self._models(served)))
        if len(waits) > 1 or sender.model in waits[subrequest].targets:
            targets = waits[subrequest].targets
            if any(wait.sender.model in targets for wait in waits.values()) and sender in stuck(waits.values()):
                del waits[subrequest]
                raise EngineFailed(
                    f"a request to model `{subrequest.model_name}` would wait for ever: its instances wait, directly "
                    "or through others, for this model's",
                    hint="models that ask each other in a circle need an instance for each turn of it, and for each "
                    "request at one time; or ask without a circle",
                )

    def _models(self, served: Served, depth: int = 0) -> set[object]:
        """What runs requests to it."""
        if isinstance(served, ServedVersion):
            return {served.executable}
        found: set[object] = set()
        if isinstance(served, Ensemble) and depth < ENSEMBLE_DEPTH_MAX:
            for step in served.graph.steps:
                found |= self._models(served.resolve(step.model, step.version, step.namespace), depth + 1)
        return found


def _timeout_us(subrequest: Subrequest, parents: Sequence[Parent], now_ns: int) -> int:
    """How long it may wait: its own timeout, or what is left of its parents', whichever is shorter; 0: any time.

    For several parents that is the longest of theirs: as long as one has time, the answer is of use.
    """
    own_us = subrequest.timeout_us
    if not parents or not all(parent.request.timeout_us for parent in parents):
        return own_us
    left_us = max(parent.request.timeout_us - (now_ns - parent.arrival_ns) // 1000 for parent in parents)
    if left_us <= 0:
        raise DeadlineExceeded(f"the request's time ran out before model `{subrequest.model_name}` was asked")
    return min(own_us, left_us) if own_us else left_us


def _hear_once(done: Done, said: StreamedResponse) -> None:
    assert said.answer is not None  # nobody says nothing to who wants the whole
    done(said.answer)


def _nothing() -> None:
    """The request has not been taken yet, or has ended."""
