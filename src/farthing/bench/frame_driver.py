"""The driver for streams of frames: a WebSocket each, frames sent when they are due, however late answers are.

Two threads a stream, one that sends and one that reads what the server says became of each frame. What streams of
frames are is told in docs/reference/frame-streams.md; what the counts mean, by `frames`.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from farthing.bench import records as noted
from farthing.bench.endpoint import Endpoint
from farthing.bench.in_process_driver import starved_now_s
from farthing.bench.load import Load, Progress, Work
from farthing.bench.records import Records
from farthing.client.frames import Frames
from farthing.types.errors import FarthingError

STATUSES: Final = {
    "superseded": noted.SUPERSEDED,
    "late": noted.TOO_LATE,
    "overload": noted.OVERLOAD,
}
CLOSE_WAIT_S: Final = 5.0
SAMPLE_BYTES: Final = 1_024


@dataclass(slots=True)
class _Stream:
    """One camera: what it sent when, and what it heard of each frame. Lists are as long as frames were due."""

    frames: Frames
    due_ns: Sequence[int]
    which: Sequence[int]
    sent_ns: list[int] = field(default_factory=list)
    end_ns: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    on_time: list[bool] = field(default_factory=list)
    said: str = ""
    cpu_s: float = 0.0
    starved_s: float = 0.0


class FrameDriver:
    """One load: `load.connections` streams, each with a frame at every one of `load.arrivals_s`."""

    def __init__(self, endpoint: Endpoint, work: Work, load: Load) -> None:
        self._endpoint, self._work, self._load = endpoint, work, load
        self._frames = [message.data for chain in work.chains for message in chain]
        self._streams: list[_Stream] = []
        self._is_stopping = threading.Event()
        self._start_ns = 0

    def run(self) -> Records:
        load, plan = self._load, self._load.frames
        assert load.arrivals_s is not None
        assert plan is not None
        due = load.arrivals_s[load.arrivals_s < load.duration_s][: load.requests_max]
        opened = [self._opened() for _ in range(load.connections)]
        self._start_ns = time.monotonic_ns() + 1_000_000
        order = self._work.order
        for number, frames in enumerate(opened):
            # Cameras are not in step: each has its own place within a frame's time.
            offset_s = number / load.connections / plan.rate
            times = ((due + offset_s) * 1e9).astype(np.int64) + self._start_ns
            which = [order[(number + at) % len(order)] for at in range(len(due))]
            self._streams.append(_Stream(frames, times.tolist(), which))
        threads = [
            threading.Thread(target=what, args=(stream,), name="frames", daemon=True)
            for stream in self._streams
            for what in (self._send, self._read)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for stream in self._streams:
            stream.frames.close()
        return self._records()

    def stop(self) -> None:
        self._is_stopping.set()

    def progress(self) -> Progress:
        sent = sum(len(stream.sent_ns) for stream in self._streams)
        heard = sum(len(stream.status) for stream in self._streams)
        done = sum(stream.status.count(noted.ANSWERED) for stream in self._streams)
        return Progress(sent=sent, done=done, failed=heard - done, tokens=0, in_flight=sent - heard)

    def _opened(self) -> Frames:
        plan = self._load.frames
        assert plan is not None
        return open_frames(self._endpoint, plan.model, plan.policy, plan.deadline_s, self._load.timeout_s)

    def _send(self, stream: _Stream) -> None:
        cpu_s, starved_s = time.thread_time(), starved_now_s()
        try:
            for due_ns, which in zip(stream.due_ns, stream.which, strict=True):
                wait_s = (due_ns - time.monotonic_ns()) / 1e9
                if self._is_stopping.wait(wait_s) if wait_s > 0 else self._is_stopping.is_set():
                    break
                stream.sent_ns.append(time.monotonic_ns())
                stream.frames.send_encoded(self._frames[which])
            stream.frames.end()
        except FarthingError as error:
            stream.said = str(error)
        stream.cpu_s += time.thread_time() - cpu_s
        stream.starved_s += starved_now_s() - starved_s

    def _read(self, stream: _Stream) -> None:
        cpu_s = time.thread_time()
        try:
            for result in stream.frames:
                stream.end_ns.append(time.monotonic_ns())
                is_answered = result.status == "ok"
                status = noted.ANSWERED if is_answered else STATUSES.get(result.reason, noted.FRAME_FAILED)
                if status == noted.FRAME_FAILED and not stream.said:
                    stream.said = result.reason
                stream.status.append(status)
                stream.on_time.append(is_answered and result.is_on_time)
        except FarthingError as error:
            stream.said = stream.said or str(error)
        stream.cpu_s += time.thread_time() - cpu_s

    def _records(self) -> Records:
        """Frames without an answer were lost with their connection."""
        now = time.monotonic_ns()
        columns: dict[str, list[Any]] = {name: [] for name in ("intended", "sent", "end", "which", "status", "on_time")}
        for stream in self._streams:
            count, heard = len(stream.sent_ns), len(stream.status)
            columns["intended"] += stream.due_ns[:count]
            columns["sent"] += stream.sent_ns
            columns["end"] += stream.end_ns + [now] * (count - heard)
            columns["which"] += stream.which[:count]
            columns["status"] += stream.status + [noted.CLOSED] * (count - heard)
            columns["on_time"] += stream.on_time + [False] * (count - heard)
        order = np.argsort(np.array(columns["intended"], np.int64), kind="stable")

        def column(name: str, dtype: Any) -> Any:
            return np.array(columns[name], dtype)[order]

        intended, sent = column("intended", np.int64), column("sent", np.int64)
        status, end = column("status", np.int32), column("end", np.int64)
        unknown = np.full(len(order), -1, np.int32)
        said = next((stream.said for stream in self._streams if stream.said), "")
        return Records(
            intended_ns=intended,
            sent_ns=sent,
            first_ns=np.where(status == noted.ANSWERED, end, 0),
            end_ns=end,
            request=column("which", np.int32),
            status=status,
            tokens=np.zeros(len(order), np.int32),
            prompt_tokens=unknown,
            completion_tokens=unknown,
            cached_tokens=unknown,
            lag_s=((sent - intended) / 1e9).astype(np.float32),
            held_s=np.zeros(len(order), np.float32),
            event_record=np.zeros(0, np.uint32),
            event_ns=np.zeros(0, np.int64),
            samples={noted.FRAME_FAILED: said.encode()[:SAMPLE_BYTES], noted.CLOSED: said.encode()[:SAMPLE_BYTES]},
            started_ns=self._start_ns,
            wall_s=(now - self._start_ns) / 1e9,
            cpu_s=sum(stream.cpu_s for stream in self._streams),
            starved_s=max((stream.starved_s for stream in self._streams), default=0.0),
            connections_opened=len(self._streams),
            waited_for_connection=0,
            events_lost=0,
            on_time=column("on_time", np.bool_),
            summaries=[stream.frames.summary for stream in self._streams],
        )


def open_frames(endpoint: Endpoint, model: str, policy: str, deadline_s: float, timeout_s: float) -> Frames:
    """A stream of an endpoint. Raises what it refuses it with, or `Unavailable`."""
    return Frames(
        endpoint.url,
        model,
        policy=policy,
        deadline_ms=deadline_s * 1e3,
        headers=endpoint.headers,
        timeout_s=timeout_s,
    )
