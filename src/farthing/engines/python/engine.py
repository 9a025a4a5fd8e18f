"""The engine for models written in Python.

Loading starts the model's processes and learns from them what it takes and gives; executing hands a batch to one of
them and judges what comes back, since a user's code may say anything. How a process lives is in `process`.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec

from farthing.engines.contract import Answer, Batch, MemberAnswer, ModelSource, Sender
from farthing.engines.python import backoff, messages
from farthing.engines.python.channel import Place
from farthing.engines.python.process import Life
from farthing.engines.python.stream_messages import Rescheduled, Response
from farthing.engines.python.supervisor import Limits, Supervisor
from farthing.engines.streaming import Hear, Part, StreamedBatch, run_to_the_end
from farthing.types.errors import EngineFailed, FarthingError, LoadFailed
from farthing.types.tensors import DATATYPES, Tensor, TensorSpec, shape_fits

LOAD_S: Final = 600.0
"""How long importing and loading may take if `load_timeout_seconds` does not say: weights may come from far."""

UNLOAD_S: Final = 10.0
"""How long unloading may take before the process is stopped, if `unload_timeout_seconds` does not say."""

THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What numerical libraries read at import for how many threads to start."""


class Python:
    """Reads `.py` files: classes with `infer`, or Triton's `TritonPythonModel`."""

    name = "python"
    aliases: ClassVar[tuple[str, ...]] = ()
    default_filenames: ClassVar[tuple[str, ...]] = ("model.py",)
    suffixes: ClassVar[tuple[str, ...]] = (".py",)

    def recognises(self, path: Path) -> bool:
        """By name alone: nothing of a user's file is read in the server."""
        return path.suffix == ".py" and path.is_file()

    def load(self, source: ModelSource) -> "PythonModel":
        """Starts the model's processes. Raises `LoadFailed` with file, line and what the user's code said."""
        return PythonModel(source)


class PythonModel:
    """A Python model and its processes, one an instance."""

    platform = "python"
    is_pure = False
    can_run_on_event_loop = False

    def __init__(self, source: ModelSource, clock: Callable[[], float] = time.monotonic) -> None:
        _refuse_what_is_not_offered(source)
        self._name = source.name
        limits = Limits(
            load_s=_seconds(source, "load_timeout_seconds", LOAD_S),
            execute_s=_seconds(source, "execution_timeout_seconds", 0.0) or None,
            unload_s=_seconds(source, "unload_timeout_seconds", UNLOAD_S),
        )
        policy = backoff.Policy(first_delay_s=_seconds(source, "restart_delay_seconds", backoff.DEFAULT.first_delay_s))
        environment = _environment(source)

        def supervise(instance: int) -> Supervisor:
            return Supervisor(
                _start(source, instance),
                environment,
                limits,
                policy,
                clock,
                Sender(self, instance, self._count),
                source.subrequests,
            )

        self._supervise = supervise
        self._processes: list[Supervisor] = []
        self._processes += [supervise(instance) for instance in range(max(1, source.instances))]
        try:
            # All must be up; they run the same file, so what the first says holds for each.
            self._ready, *_ = [process.loaded() for process in self._processes]
            self.inputs = _agreed(source, "input", source.inputs, self._ready.inputs)
            self.outputs = _agreed(source, "output", source.outputs, self._ready.outputs)
        except LoadFailed:
            self.close()
            raise
        rows_max = source.batch_rows_max
        self._batches = bool(self._ready.batch_axis if rows_max is None else rows_max)
        self._outputs = {spec.name: spec for spec in self.outputs}

    @property
    def batch_axis(self) -> bool | None:
        """What the model declared; None if it did not say."""
        return self._ready.batch_axis

    @property
    def batch_rows_max(self) -> int | None:
        """The `max_batch_size` that the model declared; None if it did not say."""
        return self._ready.batch_rows_max

    @property
    def pids(self) -> tuple[int | None, ...]:
        """The processes' ids, None for one that is not up."""
        return tuple(process.pid for process in self._processes)

    def execute(self, batch: Batch, instance: int) -> Answer:
        """Runs a batch in the instance's process; blocks until it answered, died or took too long."""
        if self.is_decoupled:
            return run_to_the_end(self, batch, instance)
        return self._processes[instance].run(batch, lambda reply, life: self._judged(reply, batch, life))

    @property
    def is_decoupled(self) -> bool:
        """Whether it answers a request as often as it likes."""
        return self._ready.is_decoupled

    def begin(self, batch: Batch, instance: int, hears: Sequence[Hear]) -> StreamedBatch:
        """Begins a batch of a decoupled model in the instance's process."""
        return self._processes[instance].begin(batch, [partial(self._heard, hear) for hear in hears])

    @property
    def returns_at_once(self) -> bool:
        """Whether a batch has returned as soon as it is begun: that of a class that streams has."""
        return self._ready.returns_at_once

    def _heard(self, hear: Hear, said: Response | Rescheduled | FarthingError, tensors: Mapping[str, Tensor]) -> None:
        if isinstance(said, FarthingError):
            hear(Part(said, is_last=True))
        elif isinstance(said, Rescheduled):
            hear(Part(None, is_last=False, is_rescheduled=True))
        elif said.error_kind:
            kind = messages.ERRORS.get(said.error_kind, EngineFailed)
            hear(Part(kind(f"model `{self._name}`: {said.error}"), said.is_last))
        elif said.is_empty:
            hear(Part(None, said.is_last))
        else:
            hear(Part(self._response(said, tensors), said.is_last))

    def _response(self, said: Response, tensors: Mapping[str, Tensor]) -> MemberAnswer | FarthingError:
        """One response, if its tensors are what the model promised. It may leave outputs out."""
        outputs = {name: tensors[name] for name in self._outputs if name in tensors}
        for name, tensor in outputs.items():
            spec = self._outputs[name]
            if tensor.dtype != spec.dtype:
                return self._lie(name, DATATYPES[tensor.dtype], spec.datatype)
            if not shape_fits(tensor.shape, spec.shape):
                return self._lie(name, f"shape {list(tensor.shape)}", f"{list(spec.shape)}")
        return MemberAnswer(outputs, said.parameters)

    def _judged(self, reply: messages.Outputs | messages.Replies | messages.Raised, batch: Batch, life: Life) -> Answer:
        if isinstance(reply, messages.Raised):
            kind = messages.ERRORS.get(reply.error_kind, EngineFailed)
            raise kind(f"model `{self._name}`: {reply.error}")
        if isinstance(reply, messages.Outputs):
            rows = sum(member.rows for member in batch.members)
            return self._checked(reply.places, batch, rows, life)
        if len(reply.members) != len(batch.members):
            raise EngineFailed(
                f"model `{self._name}` answered {len(reply.members)} requests; expected: {len(batch.members)}"
            )
        return [
            self._member(answer, batch, member.rows, life)
            for answer, member in zip(reply.members, batch.members, strict=True)
        ]

    def _member(self, reply: messages.MemberReply, batch: Batch, rows: int, life: Life) -> MemberAnswer | FarthingError:
        if reply.error_kind:
            return messages.ERRORS.get(reply.error_kind, EngineFailed)(f"model `{self._name}`: {reply.error}")
        try:
            outputs = self._checked(reply.places, batch, rows, life, are_complete=not reply.is_rescheduled)
            return MemberAnswer(outputs, reply.parameters, reply.is_rescheduled)
        except EngineFailed as problem:
            return problem

    def _checked(
        self, places: Sequence[Place], batch: Batch, rows: int, life: Life, *, are_complete: bool = True
    ) -> Mapping[str, Tensor]:
        """The outputs, if they are what the model promised."""
        found = {place.name: place for place in places}
        wanted = batch.outputs if are_complete else [name for name in batch.outputs if name in found]
        for name in wanted:
            spec = self._outputs[name]
            place = found.get(name)
            if place is None:
                raise self._lie(name, "nothing", f"{spec.datatype} {list(spec.shape)}")
            if place.datatype != spec.datatype:
                raise self._lie(name, place.datatype, spec.datatype)
            if not shape_fits(place.shape, spec.shape):
                raise self._lie(name, f"shape {list(place.shape)}", f"{list(spec.shape)}")
            if (self._batches or len(batch.members) > 1) and place.shape[:1] != (rows,):
                raise self._lie(name, f"shape {list(place.shape)}", f"{rows} rows, as many as the inputs have")
        try:
            return life.take([found[name] for name in wanted])
        except ValueError as problem:
            raise EngineFailed(f"model `{self._name}` answered with a tensor that cannot be: {problem}") from problem

    def _lie(self, output: str, found: str, expected: str) -> EngineFailed:
        return EngineFailed(
            f"model `{self._name}` broke its promise: output `{output}` is {found}; expected: {expected}",
            hint="mend the model, or what it declares",
        )

    def health(self) -> str:
        """What is wrong with processes that are not up, if any."""
        return "; ".join(filter(None, (process.health() for process in self._processes)))

    def resize(self, instances: int) -> None:
        """Starts processes, or has the last ones unload and exit."""
        new = [self._supervise(instance) for instance in range(len(self._processes), instances)]
        try:
            for process in new:
                process.loaded()
        except LoadFailed:
            _close(new)
            raise
        gone = self._processes[instances:]
        self._processes = [*self._processes[:instances], *new]
        _close(gone)

    def _count(self) -> int:
        return len(self._processes)

    def close(self) -> None:
        """Has all processes unload and exit, together; kills those that do not."""
        _close(self._processes)


def _close(processes: Sequence[Supervisor]) -> None:
    for process in processes:
        process.close_begin()
    for process in processes:
        process.close_end()


def _start(source: ModelSource, instance: int) -> messages.Start:
    return messages.Start(
        name=source.name,
        version=source.version,
        path=str(source.path.absolute()),
        folder=str(source.folder.absolute()),
        instance=instance,
        inputs=source.inputs,
        outputs=source.outputs,
        batch_rows_max=source.batch_rows_max,
        parameters=dict(source.parameters),
        config=msgspec.json.encode(source.config).decode(),
        can_ask=source.subrequests is not None,
    )


def _environment(source: ModelSource) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = source.threads or max(1, cores // max(1, source.instances))
    return {**dict.fromkeys(THREAD_VARIABLES, str(threads)), **os.environ, "PYTHONUNBUFFERED": "1"}


def _refuse_what_is_not_offered(source: ModelSource) -> None:
    if "EXECUTION_ENV_PATH" in source.parameters:
        raise LoadFailed(
            f"{source.path}: model `{source.name}` asks for EXECUTION_ENV_PATH, which is not offered",
            hint="install what it needs beside farthing, and remove the parameter",
        )


def _seconds(source: ModelSource, parameter: str, default: float) -> float:
    text = source.parameters.get(parameter)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e6:  # also turns away nan
        raise LoadFailed(
            f"model `{source.name}`: parameter `{parameter}` is {text!r}; allowed: seconds, from 0 to a million"
        )
    return value


def _agreed(
    source: ModelSource, kind: str, configured: tuple[TensorSpec, ...], declared: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    """What the configuration says, if it says anything and the model does not say otherwise."""
    if not configured:
        return declared
    own = {spec.name: spec for spec in declared}
    for spec in configured:
        mate = own.get(spec.name)
        if mate is None:
            raise LoadFailed(
                f"{source.path}: {kind} `{spec.name}` is configured, and the model has none of that name",
                hint=f"the model declares: {', '.join(own)}",
            )
        if mate.datatype != spec.datatype or not _shapes_agree(mate.shape, spec.shape):
            raise LoadFailed(
                f"{source.path}: {kind} `{spec.name}` is configured as {_show(spec)}, the model declares {_show(mate)}"
            )
    if missing := [name for name in own if name not in {spec.name for spec in configured}]:
        raise LoadFailed(f"{source.path}: the model's {kind} `{missing[0]}` is not in the configuration")
    return configured


def _shapes_agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _show(spec: TensorSpec) -> Any:
    return f"{spec.datatype} {list(spec.shape)}"
