"""The system under test as LoadGen sees it: takes queries, asks, and reports each sample when it is answered. What
LoadGen does with that belongs to `mlperf`; over sockets it is `sut_native` that asks, or where that cannot
`sut_threads`; here stand what they share, and the one that asks a model in process.

Each notes its own times of everything, so that two clocks can be held against each other.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from farthing.bench import records as noted
from farthing.bench.in_process import Answer, InProcess
from farthing.bench.load import Message, Progress
from farthing.bench.records import Records
from farthing.protocols.kserve.encode import tensor_bytes
from farthing.types.errors import FarthingError
from farthing.types.tensors import Tensor

SAMPLE_BYTES: Final = 1_024

Complete = Callable[[int, bytes], None]
"""Called once for every sample, with its id and, where answers are kept, the bytes of its outputs."""


@dataclass(slots=True, kw_only=True)
class Sample:
    """One sample under way. `number` is the query's it came with."""

    id: int
    index: int
    number: int
    issued_ns: int
    is_waiting: bool
    """All connections were busy when it came."""
    sent_ns: int = 0
    end_ns: int = 0
    status: int = 0


class Sut(Protocol):
    """Takes queries on LoadGen's threads. `close` comes when all are answered, `records` after it."""

    def issue(self, ids: Sequence[int], indices: Sequence[int]) -> None: ...
    def close(self) -> None: ...
    def progress(self) -> Progress: ...
    def records(self, *, is_by_query: bool) -> Records: ...


@dataclass(slots=True)
class Notes:
    """Of all samples that were issued and answered. Its lists are appended to by many threads at once."""

    started_ns: int = field(default_factory=time.monotonic_ns)
    started_cpu_s: float = field(default_factory=time.process_time)
    queries: int = 0
    issued: int = 0
    failed: int = 0
    ended: list[Sample] = field(default_factory=list)
    said: dict[int, bytes] = field(default_factory=dict)

    def samples(self, ids: Sequence[int], indices: Sequence[int], connections: int) -> list[Sample]:
        """Of one query that came now."""
        now, busy = time.monotonic_ns(), self.issued - len(self.ended)
        self.queries += 1
        self.issued += len(ids)
        return [
            Sample(id=one, index=index, number=self.queries - 1, issued_ns=now, is_waiting=busy + at >= connections)
            for at, (one, index) in enumerate(zip(ids, indices, strict=True))
        ]

    def end(self, sample: Sample, status: int, said: bytes = b"") -> None:
        """Notes how a sample ended."""
        sample.end_ns, sample.status = time.monotonic_ns(), status
        if not 200 <= status < 300:
            self.failed += 1
            self.said.setdefault(status, said[:SAMPLE_BYTES])
        self.ended.append(sample)

    def progress(self) -> Progress:
        """While it is under way."""
        done = len(self.ended)
        return Progress(
            sent=self.issued, done=done - self.failed, failed=self.failed, tokens=0, in_flight=self.issued - done
        )

    def records(self, *, is_by_query: bool, has_own_core: bool) -> Records:
        """A row a sample; or a row a query, from when it came to its last sample's answer, failed if any was.

        `has_own_core`: this process does nothing but generate, so that its CPU time is the generator's.
        """
        wall_s = (time.monotonic_ns() - self.started_ns) / 1e9
        cpu_s = time.process_time() - self.started_cpu_s if has_own_core else 0.0
        ordered = sorted(self.ended, key=lambda sample: (sample.number, sample.end_ns))
        if is_by_query:
            ordered = _last_of_queries(ordered)
        count = len(ordered)

        def column(name: str, dtype: Any) -> Any:
            return np.array([getattr(sample, name) for sample in ordered], dtype)

        end, status = column("end_ns", np.int64), column("status", np.int32)
        waiting = column("is_waiting", np.bool_)
        issued, sent = column("issued_ns", np.int64), column("sent_ns", np.int64)
        unknown = np.full(count, -1, np.int32)
        return Records(
            intended_ns=issued,
            sent_ns=sent,
            first_ns=np.where(status > 0, end, 0),
            end_ns=end,
            request=column("index", np.int32),
            status=status,
            tokens=np.zeros(count, np.int32),
            prompt_tokens=unknown,
            completion_tokens=unknown,
            cached_tokens=unknown,
            lag_s=np.where(waiting, 0, (sent - issued) / 1e9).astype(np.float32),
            held_s=np.zeros(count, np.float32),
            event_record=np.zeros(0, np.uint32),
            event_ns=np.zeros(0, np.int64),
            samples=self.said,
            started_ns=int(issued.min()) if count else self.started_ns,
            wall_s=float(end.max() - issued.min()) / 1e9 if count else wall_s,
            cpu_s=cpu_s,
            starved_s=0.0,
            connections_opened=0,
            waited_for_connection=int(waiting.sum()),
            events_lost=0,
        )


def _last_of_queries(ordered: list[Sample]) -> list[Sample]:
    last: dict[int, Sample] = {}
    for sample in ordered:
        before = last.get(sample.number)
        last[sample.number] = sample
        if before is not None and not 200 <= before.status < 300:
            sample.status = before.status
    return list(last.values())


class InProcessSut:
    """A runtime in this process, with as many requests under way as a server would have connections."""

    def __init__(
        self,
        host: InProcess,
        messages: Sequence[Message],
        complete: Complete,
        *,
        connections: int,
        timeout_s: float,
        is_kept: bool,
    ) -> None:
        self.notes = Notes()
        self._host, self._messages, self._complete = host, messages, complete
        self._connections, self._timeout_s, self._is_kept = connections, timeout_s, is_kept
        self._waiting: deque[Sample] = deque()
        self._under_way = 0

    def issue(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        samples = self.notes.samples(ids, indices, self._connections)
        self._host.loop.call_soon_threadsafe(self._take, samples)

    def progress(self) -> Progress:
        return self.notes.progress()

    def records(self, *, is_by_query: bool) -> Records:
        return self.notes.records(is_by_query=is_by_query, has_own_core=False)

    def close(self) -> None:
        """Nothing is under way any more: LoadGen has been told of every sample."""

    def _take(self, samples: list[Sample]) -> None:
        self._waiting += samples
        while self._waiting and self._under_way < self._connections:
            self._ask(self._waiting.popleft())

    def _ask(self, sample: Sample) -> None:
        self._under_way += 1
        request = self._messages[sample.index].request
        assert request is not None
        sample.sent_ns = time.monotonic_ns()
        withdraw = self._host.submit(request, lambda answer: self._answered(sample, answer, late))
        late = self._host.loop.call_later(self._timeout_s, self._too_late, sample, withdraw)

    def _too_late(self, sample: Sample, withdraw: Callable[[], None]) -> None:
        withdraw()
        self._end(sample, noted.TIMEOUT, b"", b"")

    def _answered(self, sample: Sample, answer: Answer, late: asyncio.TimerHandle) -> None:
        late.cancel()
        if isinstance(answer, FarthingError):
            self._end(sample, answer.http_status, answer.message.encode(), b"")
        else:
            self._end(sample, 200, b"", outputs_bytes(answer.outputs) if self._is_kept else b"")

    def _end(self, sample: Sample, status: int, said: bytes, outputs: bytes) -> None:
        self._under_way -= 1
        self.notes.end(sample, status, said)
        self._complete(sample.id, outputs)
        if self._waiting:
            self._host.loop.call_soon(self._take, [])


def outputs_bytes(outputs: Mapping[str, Tensor]) -> bytes:
    """All outputs of an answer, one after the other in its order, as the binary protocol writes them."""
    return b"".join(tensor_bytes(name, tensor) for name, tensor in outputs.items())
