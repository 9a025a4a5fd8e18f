"""The driver in Python: for TLS, and where the native loop was not built. It does what that does, more slowly.

One task a connection; httptools reads heads, server-sent events are read as the native loop reads them. The report says
when it was the bottleneck, as of any generator.
"""

import asyncio
import contextlib
import re
import ssl
import time
from collections import deque
from typing import Any, Final

import httptools
import numpy as np

from farthing.bench import records as noted
from farthing.bench.endpoint import Endpoint
from farthing.bench.load import EVENTS_MAX, Load, Message, Progress, Work
from farthing.bench.records import Records
from farthing.protocols.sse import Reader
from farthing.types.errors import TooLarge

READ_BYTES: Final = 1 << 16
SAMPLE_BYTES: Final = 1_024
RECONNECT_AFTER_S: Final = 0.02
_TEXT: Final = re.compile(rb'"(?:content|text|reasoning_content|arguments)"[ :]*"[^"]')
_USAGE: Final = {
    name: re.compile(rb'"%s"[ :]*(\d{1,9})' % name.encode())
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens")
}
_ERROR: Final = re.compile(rb'"error" *: *(?!null)[^ ]')


class PythonDriver:
    """One load against one address."""

    def __init__(self, endpoint: Endpoint, work: Work, load: Load) -> None:
        self._endpoint, self._work, self._load = endpoint, work, load
        self._tls = ssl.create_default_context() if endpoint.is_tls else None
        self._first = np.cumsum([0, *(len(chain) for chain in work.chains)]).tolist()
        self._rows: list[dict[str, Any]] = []
        self._events: list[tuple[int, int]] = []
        self._samples: dict[int, bytes] = {}
        self._chains_started = self._in_flight = self._tokens = self._failed = self._done = self._lost = 0
        self._opened = self._waited = self._start_ns = 0
        self._is_stopping = False

    def run(self) -> Records:
        cpu_s, self._start_ns = time.thread_time(), time.monotonic_ns()
        asyncio.run(self._carry_out())
        wall_s = (time.monotonic_ns() - self._start_ns) / 1e9

        def column(name: str, dtype: Any) -> Any:
            return np.array([row[name] for row in self._rows], dtype)

        return Records(
            **{name: column(name, np.int64) for name in ("intended_ns", "sent_ns", "first_ns", "end_ns")},
            **{name: column(name, np.int32) for name in ("request", "status", "tokens", *_USAGE)},
            lag_s=column("lag_s", np.float32),
            held_s=np.zeros(len(self._rows), np.float32),
            event_record=np.array([row for row, _ in self._events], np.uint32),
            event_ns=np.array([at for _, at in self._events], np.int64),
            samples=self._samples,
            started_ns=self._start_ns,
            wall_s=wall_s,
            cpu_s=time.thread_time() - cpu_s,
            starved_s=0.0,
            connections_opened=self._opened,
            waited_for_connection=self._waited,
            events_lost=self._lost,
        )

    def stop(self) -> None:
        self._is_stopping = True

    def progress(self) -> Progress:
        return Progress(
            sent=len(self._rows), done=self._done, failed=self._failed, tokens=self._tokens, in_flight=self._in_flight
        )

    async def _carry_out(self) -> None:
        due: deque[tuple[int, int]] = deque()
        wake = asyncio.Condition()
        is_over = asyncio.Event()
        clients = min(self._load.connections, 256) if self._load.arrivals_s is not None else self._load.connections

        async def client() -> None:
            connection = _Connection(self._endpoint, self._tls)
            try:
                while True:
                    if self._load.arrivals_s is None:
                        if not self._may_begin():
                            return
                        intended, chain = time.monotonic_ns(), self._next_chain()
                    else:
                        async with wake:
                            while not due:
                                if is_over.is_set():
                                    return
                                await wake.wait()
                            intended, chain = due.popleft()
                    await self._talk(connection, intended, chain)
            finally:
                connection.close()

        tasks = [asyncio.create_task(client()) for _ in range(clients)]
        if self._load.arrivals_s is not None:
            for at_s in self._load.arrivals_s.tolist():
                # All that were due within the load's time, however far behind this loop is.
                is_past = at_s >= self._load.duration_s or self._chains_started >= self._load.requests_max
                if is_past or self._is_stopping:
                    break
                intended = self._start_ns + int(at_s * 1e9)
                if (wait_s := (intended - time.monotonic_ns()) / 1e9) > 0:
                    await asyncio.sleep(wait_s)
                async with wake:
                    self._waited += self._in_flight >= clients
                    due.append((intended, self._next_chain()))
                    wake.notify()
            is_over.set()
            async with wake:
                wake.notify_all()
        stopper = asyncio.create_task(self._until_stopped(tasks))
        await asyncio.gather(*tasks, return_exceptions=True)
        stopper.cancel()

    async def _until_stopped(self, tasks: list["asyncio.Task[None]"]) -> None:
        while not self._is_stopping:  # noqa: ASYNC110  set by another thread, which knows nothing of this loop
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()

    def _may_begin(self) -> bool:
        is_time = time.monotonic_ns() - self._start_ns < self._load.duration_s * 1e9
        return is_time and not self._is_stopping and len(self._rows) < self._load.requests_max

    def _next_chain(self) -> int:
        chain = self._work.order[self._chains_started % len(self._work.order)]
        self._chains_started += 1
        return chain

    async def _talk(self, connection: "_Connection", intended_ns: int, chain: int) -> None:
        for turn, message in enumerate(self._work.chains[chain]):
            if turn:
                await asyncio.sleep(self._load.pause_s)
                if not self._may_begin():
                    return
                intended_ns = time.monotonic_ns()
            status = await self._ask(connection, intended_ns, self._first[chain] + turn, message)
            if not 200 <= status < 300:
                if status < 0:
                    await asyncio.sleep(RECONNECT_AFTER_S)
                return

    async def _ask(self, connection: "_Connection", intended_ns: int, request: int, message: Message) -> int:
        now = time.monotonic_ns()
        number = len(self._rows)
        row: dict[str, Any] = {
            "intended_ns": intended_ns, "sent_ns": now, "first_ns": 0, "end_ns": 0, "request": request, "status": 0,
            "tokens": 0, "prompt_tokens": -1, "completion_tokens": -1, "cached_tokens": -1, "lag_s": 0.0,
        }  # fmt: skip
        self._rows.append(row)
        self._in_flight += 1
        reading = _Reading(self, number, row, is_stream=self._work.wire == "stream")
        status = noted.ABANDONED
        try:
            left_s = self._load.timeout_s - (now - intended_ns) / 1e9  # waiting for a connection is part of it
            async with asyncio.timeout(max(left_s, 0.0)):
                self._opened += await connection.ensure()
                row["sent_ns"] = time.monotonic_ns()
                await connection.exchange(message.data, reading)
            status = reading.status
        except TimeoutError:
            status = noted.TIMEOUT
        except ConnectionRefusedError:
            status = noted.CONNECT
        except ConnectionResetError:
            status = noted.RESET
        except EOFError:
            status = noted.CLOSED
        except (httptools.HttpParserError, TooLarge):
            status = noted.MALFORMED
        except OSError:
            status = noted.CONNECT
        finally:
            row["end_ns"], row["status"] = time.monotonic_ns(), status
            self._in_flight -= 1
            if 200 <= status < 300:
                self._done += 1
            else:
                self._failed += 1
                self._samples.setdefault(status, bytes(reading.body[:SAMPLE_BYTES]))
                connection.close()
        return status

    def token(self, number: int, at_ns: int) -> None:
        self._tokens += 1
        if len(self._events) < EVENTS_MAX:
            self._events.append((number, at_ns))
        else:
            self._lost += 1


class _Reading:
    """One answer: httptools calls this with its parts."""

    def __init__(self, driver: PythonDriver, number: int, row: dict[str, Any], *, is_stream: bool) -> None:
        self._driver, self._number, self._row, self._is_stream = driver, number, row, is_stream
        self._events = Reader()
        self._has_ended = self._has_failed = False
        self.parser: Any = httptools.HttpResponseParser(self)
        self.is_done = False
        self.body = bytearray()

    @property
    def status(self) -> int:
        code = int(self.parser.get_status_code())
        if not self._is_stream or code != 200:
            return code
        return noted.STREAM_ERROR if self._has_failed else code if self._has_ended else noted.STREAM_CUT

    def on_body(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self.parser.get_status_code() != 200:
            self.body += data[: SAMPLE_BYTES - len(self.body)]
        elif not self._is_stream:
            self._row["first_ns"] = self._row["first_ns"] or now
        else:
            for event in self._events.feed(data):
                self._event(event, now)

    def _event(self, event: bytes, now: int) -> None:
        if event == b"[DONE]":
            self._has_ended = True
            return
        if _TEXT.search(event):
            self._row["first_ns"] = self._row["first_ns"] or now
            self._row["tokens"] += 1
            self._driver.token(self._number, now)
        if b'"usage"' in event:
            for name, pattern in _USAGE.items():
                if found := pattern.search(event):
                    self._row[name] = int(found[1])
        self._has_failed |= _ERROR.search(event) is not None

    def on_message_complete(self) -> None:
        self.is_done = True


class _Connection:
    """Opened when needed, kept while the server keeps it."""

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None) -> None:
        self._endpoint, self._tls = endpoint, tls
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ensure(self) -> bool:
        """Whether it had to be opened."""
        if self._streams is not None and not self._streams[0].at_eof():
            return False
        self.close()
        self._streams = await asyncio.open_connection(self._endpoint.host, self._endpoint.port, ssl=self._tls)
        return True

    async def exchange(self, data: bytes, reading: _Reading) -> None:
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(data)
        await writer.drain()
        while not reading.is_done:
            part = await reader.read(READ_BYTES)
            if not part:
                raise EOFError
            reading.parser.feed_data(part)
        if not reading.parser.should_keep_alive():
            self.close()

    def close(self) -> None:
        if self._streams is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._streams[1].close()
            self._streams = None
