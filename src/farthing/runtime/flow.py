"""One request's way through a graph around a step that answers more than once.

Each response of the step goes on through what is behind it, and the answers come in the order of the responses,
whatever overtakes what there. So many responses are under way at once as `max_inflight_requests` says; the step's model
is told that one has been taken when all that came of it has been, so a slow client or a slow later step holds back the
model, and nothing piles up. The legs that answer once are `passage`s. All of this lives on the event loop.
"""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from farthing.config.pipeline import names_of
from farthing.runtime.graph import Graph
from farthing.runtime.passage import Passage, Resolve, told
from farthing.runtime.served_streams import Stream, check_any, stream_of
from farthing.runtime.stream_graph import Leg, StreamGraph
from farthing.telemetry.statistics import FailureReason, ModelStatistics
from farthing.types.errors import DeadlineExceeded, EngineFailed, FarthingError
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse, RequestedOutput, StreamedResponse
from farthing.types.tensors import Tensor, TensorSpec

Tensors = Mapping[str, Tensor]


class Owner(Protocol):
    """The ensemble that a request passes through."""

    spec: ModelSpec
    version: str
    graph: Graph
    resolve: Resolve
    now_ns: Callable[[], int]


class Whole(Protocol):
    """The request whose way this is."""

    request: InferRequest
    queue_ns: int
    compute_ns: int

    @property
    def ensemble(self) -> Owner:
        """Whose graph it is."""

    def fail(self, error: FarthingError, reason: str = FailureReason.OTHER) -> None:
        """Ends it with an error; what is under way is withdrawn."""


class Flow:
    """A request's way through a graph around one step: a branch for each response of the step, in order."""

    def __init__(
        self,
        whole: Whole,
        graph: StreamGraph,
        say: Callable[[Tensors, Callable[[], None]], None],
        end: Callable[[], None],
    ) -> None:
        """`say` gets each answer's tensors, in order, and whom to tell that it was taken; `end` follows the last."""
        self._whole = whole
        self._graph = graph
        self._say = say
        self._end = end
        self._tensors: Tensors = {}
        self._withdraw: Callable[[], None] | None = None
        self._source: Stream | None = None
        self._untold = 0
        """Responses that were taken before the step's model had said whom to tell."""
        self._branches: deque[Branch] = deque()
        """Of responses whose answers have not all been given, in their order."""
        self._is_giving = False
        self._is_last_heard = False
        self._is_over = False

    def start(self, tensors: Tensors, since_ns: int) -> None:
        """Runs what is before the step, and then the step."""
        self._tensors = tensors
        if self._graph.before is None:
            self._ask(since_ns)
        else:
            self._withdraw = run_leg(self._whole, self._graph.before, tensors, since_ns, self._before_done)

    def withdraw(self) -> None:
        """Nothing more is wanted."""
        self._is_over = True
        if self._withdraw is not None:
            self._withdraw()
        if self._source is not None and not self._is_last_heard:
            self._source.withdraw()
        for branch in self._branches:
            branch.withdraw()
        self._branches.clear()

    def _before_done(self, made: Tensors) -> None:
        self._withdraw = None
        self._tensors = {**self._tensors, **made}
        self._ask(self._whole.ensemble.now_ns())

    def _ask(self, since_ns: int) -> None:
        whole, step = self._whole, self._graph.step
        ensemble, request = whole.ensemble, whole.request
        try:
            served = ensemble.resolve(step.model, str(step.version or ""), step.namespace)
            asked = InferRequest(
                model_name=step.model,
                model_version=str(step.version or ""),
                id=request.id,
                inputs={name: self._tensors[tensor] for name, tensor in step.inputs.items() if tensor in self._tensors},
                outputs=tuple(RequestedOutput(name) for name in step.outputs),
                parameters=request.parameters,
                priority=request.priority,
                timeout_us=_left_us(request, since_ns, ensemble.now_ns()),
                tenant=request.tenant,
                trace=None if request.trace is None else request.trace.below(),
                origin=request.origin,
            )
            rows, signature = check_any(served, asked)
            source = stream_of(served, asked, rows, signature, ensemble.now_ns(), self._heard)
        except FarthingError as error:
            whole.fail(told(error, step), FailureReason.REJECTED)
            return
        self._source = source
        for _ in range(self._untold):
            source.taken()
        if self._is_over and not self._is_last_heard:
            source.withdraw()

    def _heard(self, said: StreamedResponse) -> None:
        if self._is_over:
            return
        self._is_last_heard = said.is_last
        step, answer = self._graph.step, said.answer
        if isinstance(answer, FarthingError):
            self._whole.fail(told(answer, step), FailureReason.BACKEND)
            return
        if isinstance(answer, InferResponse) and answer.outputs:
            timing = answer.timing
            self._whole.queue_ns = self._whole.queue_ns or timing.queue_ns
            made: dict[str, Tensor] = {}
            for name, tensor in step.outputs.items():
                if name not in answer.outputs:
                    missing = EngineFailed(f"model `{step.model}` gave no output `{name}`")
                    self._whole.fail(missing, FailureReason.BACKEND)
                    return
                made[names_of(tensor)[0]] = answer.outputs[name]
            self._branches.append(Branch(self, self._whole, self._graph.after, {**self._tensors, **made}))
        elif isinstance(answer, InferResponse) and not said.is_last:
            self.taken()  # a response without tensors leads nowhere
        self.go_on()

    def taken(self) -> None:
        """All that came of a response has been taken."""
        if self._source is None:
            self._untold += 1
        else:
            self._source.taken()

    def go_on(self) -> None:
        """Begins branches, as many as may be under way, and hands on what the first of them has said."""
        inflight_max = self._whole.ensemble.graph.inflight_max
        for branch in list(self._branches)[:inflight_max]:
            if self._is_over:
                return
            branch.begin()
        if self._is_giving:
            return  # whoever was told something made something else happen: the outer call goes on
        self._is_giving = True
        while self._branches and not self._is_over:
            first = self._branches[0]
            while first.answers and not self._is_over:
                self._say(*first.answers.popleft())
            if self._is_over or not first.is_done:
                break
            self._branches.popleft()
            first.given()
            if len(self._branches) >= inflight_max:
                self._branches[inflight_max - 1].begin()
        self._is_giving = False
        if self._is_last_heard and not self._branches and not self._is_over:
            self._is_over = True
            self._end()


class Branch:
    """What comes of one response: one answer, or as many as a later step gives."""

    def __init__(self, flow: Flow, whole: Whole, after: StreamGraph | Leg | None, tensors: Tensors) -> None:
        self._flow = flow
        self._whole = whole
        self._after = after
        self._tensors = tensors
        self.answers: deque[tuple[Tensors, Callable[[], None]]] = deque()
        self.is_done = False
        """There are no more answers to come."""
        self._is_begun = False
        self._is_given = False
        self._untaken = 0
        self._withdraw: Callable[[], None] = _nothing

    def begin(self) -> None:
        """Runs what is behind the step, once."""
        if self._is_begun:
            return
        self._is_begun = True
        now_ns = self._whole.ensemble.now_ns()
        if self._after is None:
            self._answer(self._tensors, _nothing)
            self.is_done = True
        elif isinstance(self._after, Leg):
            withdraw = run_leg(self._whole, self._after, self._tensors, now_ns, self._ran)
            self._withdraw = _nothing if self.is_done else withdraw
        else:
            flow = Flow(self._whole, self._after, self._said, self._ended)
            self._withdraw = flow.withdraw
            flow.start(self._tensors, now_ns)

    def withdraw(self) -> None:
        self._withdraw()

    def given(self) -> None:
        """All its answers have been handed on."""
        self._is_given = True
        self._maybe_taken()

    def _ran(self, made: Tensors) -> None:
        self._withdraw = _nothing
        self.is_done = True
        self._answer({**self._tensors, **made}, _nothing)
        self._flow.go_on()

    def _said(self, tensors: Tensors, taken: Callable[[], None]) -> None:
        self._answer(tensors, taken)
        self._flow.go_on()

    def _ended(self) -> None:
        self.is_done = True
        self._withdraw = _nothing
        self._flow.go_on()

    def _answer(self, tensors: Tensors, taken: Callable[[], None]) -> None:
        self._untaken += 1
        self.answers.append((tensors, partial(self._taken, taken)))

    def _taken(self, taken: Callable[[], None]) -> None:
        taken()
        self._untaken -= 1
        self._maybe_taken()

    def _maybe_taken(self) -> None:
        if self._is_given and not self._untaken:
            self._is_given = False
            self._flow.taken()


class _LegOwner:
    """A part of the graph, as `passage` sees an ensemble. What it counts is nobody's: the whole is counted instead."""

    def __init__(self, ensemble: Owner, leg: Leg) -> None:
        spec = ensemble.spec
        self.spec = ModelSpec(
            name=spec.name,
            version=spec.version,
            platform=spec.platform,
            inputs=(),
            # Only their names count.
            outputs=tuple(TensorSpec(name=name, datatype="", shape=()) for name in leg.outputs),
            batch_rows_max=0,
            namespace=spec.namespace,
        )
        self.version = ensemble.version
        self.graph: Graph = leg.graph
        self.statistics = ModelStatistics()
        self.resolve: Resolve = ensemble.resolve
        self.now_ns = ensemble.now_ns

    def ended(self, under_way: object) -> None:
        """The request knows."""


def run_leg(
    whole: Whole, leg: Leg, tensors: Tensors, since_ns: int, done: Callable[[Tensors], None]
) -> Callable[[], None]:
    """Runs a part that answers once; its failure is the whole request's. Answers how to withdraw it."""
    request = whole.request
    asked = InferRequest(
        model_name=whole.ensemble.spec.name,
        id=request.id,
        inputs={name: tensors[name] for name in leg.inputs if name in tensors},
        parameters=request.parameters,
        priority=request.priority,
        timeout_us=request.timeout_us,
        tenant=request.tenant,
        trace=request.trace,
        origin=request.origin,
    )

    def answered(answer: InferResponse | FarthingError) -> None:
        if isinstance(answer, FarthingError):
            whole.fail(answer, FailureReason.BACKEND)
            return
        timing = answer.timing
        whole.compute_ns += timing.compute_ns
        done(answer.outputs)

    passage = Passage(_LegOwner(whole.ensemble, leg), asked, 0, since_ns, answered)
    passage.start()
    return passage.withdraw


def _left_us(request: InferRequest, since_ns: int, now_ns: int) -> int:
    """What a request has left of its time in queues, of which steps before have used some; 0: any."""
    if not request.timeout_us:
        return 0
    left = request.timeout_us - (now_ns - since_ns) // 1000
    if left <= 0:
        raise DeadlineExceeded("the request's time ran out before it")
    return left


def _nothing() -> None:
    """Nobody is to be told, or nothing is under way."""
