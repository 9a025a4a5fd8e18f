"""What an engine must do to be one.

An `Engine` knows which files it reads and turns one into an `Executable`; an executable runs batches. Engines know
nothing of queues, requests' deadlines or the network. Choosing batch sizes belongs to `batching`, finding files to
`repository`, and deciding which engine loads a file to `engines.registry`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from socket import socket
from typing import Any, Protocol, runtime_checkable

import msgspec

from farthing.types.errors import FarthingError
from farthing.types.requests import InferRequest, InferResponse, Parameter, StreamedResponse
from farthing.types.tensors import Tensor, TensorSpec


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one model on disk, and what its configuration says about loading it."""

    name: str
    version: int
    path: Path
    """The model file (or, for formats that are folders, the folder)."""
    folder: Path
    """The model's own folder; nothing outside it may be read on the model's behalf."""
    instances: int = 1
    """How many batches may run at the same time."""
    threads: int = 0
    """Threads one instance may use; 0 lets the engine share out the cores this process may run on."""
    inputs: tuple[TensorSpec, ...] = ()
    """Inputs as configured (shape with batch dimension); empty: the file knows."""
    outputs: tuple[TensorSpec, ...] = ()
    batch_rows_max: int | None = None
    """As configured; None: not said."""
    parameters: Mapping[str, str] = {}
    """The configuration's `parameters`, as the engine's own knobs."""
    config: Mapping[str, Any] = {}
    """The whole model configuration in Triton's field names, for engines that hand it to user code."""
    subrequests: "Subrequests | None" = None
    """How the model may ask other models while it runs; None: it may not."""


class Member(msgspec.Struct, frozen=True, gc=False):
    """One request inside a batch: how many rows are its own, and what the model may know about it."""

    rows: int
    id: str = ""
    parameters: Mapping[str, Parameter] = {}


class Parent(Protocol):
    """A request as it waits and runs: what those that are made on its behalf inherit from."""

    request: InferRequest
    arrival_ns: int


class Batch(msgspec.Struct, frozen=True):
    """Requests that run together. `inputs` hold the members' rows one after the other."""

    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    """Names of the outputs that somebody wants; never empty."""
    members: tuple[Member, ...]
    parents: Sequence[Parent | None] = ()
    """The members' requests, for models that ask others on their behalf; None: padding. Empty: a trial."""


class Sender(msgspec.Struct, frozen=True):
    """The instance of a model that sends subrequests; it waits for their answers."""

    model: object
    """Its executable."""
    instance: int
    instances: Callable[[], int]
    """How many the model has now."""


class Subrequest(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A request that a model sends to another model while it runs."""

    model_name: str
    model_version: str
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    """Empty: all outputs."""
    id: str
    parameters: dict[str, Parameter]
    priority: int
    """0: as its parents say."""
    timeout_us: int
    """0: as its parents say."""
    parents: Sequence[Parent | None]
    """On whose behalf it is sent; empty: on nobody's."""
    sender: Sender | None
    """None: no batch waits for its answer."""
    batch: Sequence[Parent | None]
    """All requests in the sender's batch."""
    lineage: tuple[object, ...] = ()
    """The models (`Sender.model`) that asked each other until it came to this: the outermost first, then the one that
    sends it."""


def lineage(parents: Sequence[Parent | None]) -> tuple[object, ...]:
    """The longest of those of requests that models sent; empty for clients' own."""
    origins = [parent.request.origin for parent in parents if parent is not None]
    return max((origin.lineage for origin in origins if isinstance(origin, Subrequest)), key=len, default=())


class Subrequests(Protocol):
    """Takes subrequests to their models, on an event loop."""

    def watch(self, sock: socket, on_readable: Callable[[], None]) -> None:
        """Has this called on the event loop whenever the socket can be read. May be called on any thread."""

    def unwatch(self, sock: socket, then: Callable[[], None]) -> None:
        """No more; `then` is called on the event loop, or here and now if there is none left. On any thread."""

    def soon(self, call: Callable[[], None]) -> None:
        """Has this called in the next turn of the event loop. On the event loop."""

    def on_loop(self, call: Callable[[], None]) -> None:
        """Has this called on the event loop, soon; not if it is closed. On any thread."""

    def submit(self, subrequest: Subrequest, done: Callable[[InferResponse | FarthingError], None]) -> None:
        """`done` is called once with the answer, at once or later, unless it is withdrawn. On the event loop."""

    def stream(self, subrequest: Subrequest, hear: Callable[[StreamedResponse], None]) -> None:
        """`hear` gets each answer, at once or later, until the last one or a withdrawal. On the event loop."""

    def taken(self, subrequest: Subrequest) -> None:
        """One more of its answers has been dealt with; so many are made ahead. On the event loop."""

    def withdraw(self, subrequest: Subrequest) -> None:
        """Nobody wants the answer any more. On the event loop."""

    def detach(self, subrequest: Subrequest) -> None:
        """Its batch has ended without waiting for it; the answer is still wanted. On any thread."""


class MemberAnswer(msgspec.Struct, frozen=True):
    """One member's own outputs, for engines that answer member by member."""

    outputs: Mapping[str, Tensor]
    parameters: Mapping[str, Parameter] = {}
    is_rescheduled: bool = False
    """No answer yet: the request is to run again. `outputs` may hold states of its sequence."""


Answer = Mapping[str, Tensor] | Sequence[MemberAnswer | FarthingError]
"""Either outputs of the whole batch, rows in the members' order, or exactly one answer or error a member."""


class Executable(Protocol):
    """A model loaded by an engine."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs with datatype and shape as the file says, first dimension included."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def batch_axis(self) -> bool | None:
        """What the file itself says about dimension 0 being a batch of rows.

        True: every input and output leads with the same free dimension. False: it cannot be (a tensor has no
        first dimension or a fixed one, or two are named apart). None: the file does not say.
        """

    @property
    def batch_rows_max(self) -> int | None:
        """Rows the model itself allows in a run; None if it does not say."""

    @property
    def platform(self) -> str:
        """The platform name of the model metadata, such as `onnxruntime_onnx`."""

    @property
    def is_pure(self) -> bool:
        """Whether it may be run on made-up inputs (to measure it, to see whether rows are independent)."""

    @property
    def can_run_on_event_loop(self) -> bool:
        """Whether a call that is short may be made on the server's own thread (never for other processes)."""

    def execute(self, batch: Batch, instance: int) -> Answer:
        """Runs a batch and blocks until it is done; called from one thread at a time per instance.

        Raises `FarthingError` (usually `EngineFailed`) when the batch as a whole failed.
        """

    def health(self) -> str:
        """Empty while all is well, else what is wrong (a process that keeps dying, for example)."""

    def close(self) -> None:
        """Frees all it holds; no call is running and none follows. Called once."""


@runtime_checkable
class Resizable(Executable, Protocol):
    """An executable whose number of instances can change while it runs."""

    def resize(self, instances: int) -> None:
        """Makes more instances, or lets go of the last ones, which run nothing. Blocks; the others run on.

        Raises `LoadFailed` if one more cannot be made; then there are as many as before.
        """


class Engine(Protocol):
    """One runtime."""

    name: str
    """As users write it in `backend` of a configuration."""
    aliases: tuple[str, ...]
    """Other names it answers to (Triton's `backend` and `platform` names)."""
    default_filenames: tuple[str, ...]
    """File names looked for in a version folder, best first."""
    suffixes: tuple[str, ...]
    """File endings this engine may be able to read."""

    def recognises(self, path: Path) -> bool:
        """Whether this file, by name and first bytes, is one of this engine's. Never raises for bad content."""

    def load(self, source: ModelSource) -> Executable:
        """Reads the model. Raises `LoadFailed` naming the file and the reason; never executes pickled data."""
