"""One load against one endpoint, carried out and judged: what every mode of `farthing bench` is made of."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from farthing.bench.endpoint import Measurable
from farthing.bench.figures import Figures, figures
from farthing.bench.in_process import InProcess
from farthing.bench.load import Driver, Load, Progress, Work
from farthing.bench.records import Records, kind_of
from farthing.bench.server_process import ServerProcess, find_server, own_process
from farthing.bench.targets import Target
from farthing.types.errors import EngineFailed, Unavailable, Unsupported

PROGRESS_EVERY_S = 0.25
STOP_WAIT_S = 10.0

OnProgress = Callable[[float, Progress], None]
"""Called with the seconds since the start while a load is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCost:
    """What the server's processes spent, where they are on this machine."""

    cpu_s: float
    cpu_us_per_request: float
    cores: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One load's outcome."""

    label: str
    """Of the load, for people: `8 connections`, `200/s`."""
    load: float
    """Concurrency or rate: where it stands on a plot's axis."""
    figures: Figures
    server: ServerCost | None
    notes: tuple[str, ...]
    is_interrupted: bool


def measure(
    endpoint: Measurable,
    work: Work,
    load: Load,
    *,
    label: str,
    at: float,
    warm_up_s: float | None,
    targets: Sequence[Target] = (),
    on_progress: OnProgress = lambda _seconds, _progress: None,
) -> Measured:
    """Blocks until the load is done, or Ctrl-C, which ends it early and keeps what was measured."""
    driver = driver_for(endpoint, work, load)
    server = find_local(endpoint)
    cpu_s = server.cpu_s() if server else 0.0
    records, is_interrupted = _carried_out(driver, on_progress)
    return measured(
        work,
        load,
        records,
        label=label,
        at=at,
        warm_up_s=warm_up_s,
        server=server,
        cpu_before_s=cpu_s,
        targets=targets,
        is_interrupted=is_interrupted,
    )


def measured(
    work: Work,
    load: Load,
    records: Records,
    *,
    label: str,
    at: float,
    warm_up_s: float | None,
    server: ServerProcess | None,
    cpu_before_s: float,
    targets: Sequence[Target] = (),
    is_interrupted: bool = False,
) -> Measured:
    """What the records of a load say, with the server's cost since `cpu_before_s`; whoever carried it out."""
    cost = _cost(server, cpu_before_s, records) if server else None
    found = figures(
        records,
        duration_s=load.duration_s,
        warm_up_s=warm_up_s,
        targets=tuple(targets),
        is_stream=work.wire == "stream",
        frames=load.frames,
    )
    return Measured(
        label=label,
        load=at,
        figures=found,
        server=cost,
        notes=_notes(work, load, records),
        is_interrupted=is_interrupted,
    )


def check_answers(endpoint: Measurable, work: Work, *, timeout_s: float) -> None:
    """Sends the first request alone. Raises what came instead of an answer: a load of refusals measures nothing."""
    alone = replace(work, chains=[work.chains[work.order[0]][:1]], order=[0])
    load = Load(connections=1, duration_s=timeout_s, timeout_s=timeout_s, requests_max=1)
    records, _ = _carried_out(driver_for(endpoint, alone, load), lambda _seconds, _progress: None)
    if not len(records):
        return  # Ctrl-C
    status = int(records.status[0])
    if not records.is_answered[0]:
        said = records.samples.get(status, b"").decode("utf-8", "replace").strip()
        message = f"{endpoint.url} does not answer a first request: {kind_of(status)}{': ' if said else ''}{said}"
        if status in {-1, -2, -3}:
            raise Unavailable(message, hint="is the server running, and is this its address?")
        raise EngineFailed(message, hint="look at --kind, --model and --input")


def driver_for(endpoint: Measurable, work: Work, load: Load) -> Driver:
    """The native loop where it can; the one in Python for TLS and where there is no epoll; none of them in process."""
    if isinstance(endpoint, InProcess):
        from farthing.bench.in_process_driver import InProcessDriver

        return InProcessDriver(endpoint, work, load)
    if work.wire == "frames":
        from farthing.bench.frame_driver import FrameDriver

        return FrameDriver(endpoint, work, load)
    if not endpoint.is_tls:
        try:
            from farthing.bench.native_driver import NativeDriver
        except ImportError:
            pass
        else:
            return NativeDriver(endpoint.host, endpoint.port, work, load)
    if work.wire == "grpc":
        raise Unsupported("gRPC is measured by the native loop, which was not built here", hint="measure over HTTP")
    from farthing.bench.python_driver import PythonDriver

    return PythonDriver(endpoint, work, load)


def find_local(endpoint: Measurable) -> ServerProcess | None:
    """The server's process, if it is on this machine; in process our own."""
    if isinstance(endpoint, InProcess):
        return own_process()
    return find_server("127.0.0.1", endpoint.port) if endpoint.host in {"127.0.0.1", "localhost", "::1"} else None


def _carried_out(driver: Driver, on_progress: OnProgress) -> tuple[Records, bool]:
    found: list[Records] = []
    failed: list[BaseException] = []
    is_done = threading.Event()  # not Thread.join: Ctrl-C within it leaves the thread looking finished (CPython 3.11)

    def run() -> None:
        try:
            found.append(driver.run())
        except BaseException as error:  # told to whoever waits
            failed.append(error)
        finally:
            is_done.set()

    thread = threading.Thread(target=run, name="load", daemon=True)
    is_interrupted = False
    waited_s = 0.0
    thread.start()
    while not is_done.is_set():
        try:
            is_done.wait(PROGRESS_EVERY_S)
            waited_s += PROGRESS_EVERY_S
            on_progress(waited_s, driver.progress())
        except KeyboardInterrupt:
            is_interrupted = True
            driver.stop()
            is_done.wait(STOP_WAIT_S)
            break
    if failed:
        raise failed[0]
    if not found:
        raise EngineFailed("the load could not be stopped")
    return found[0], is_interrupted


def _cost(server: ServerProcess, cpu_before_s: float, records: Records) -> ServerCost:
    cpu_s = max(server.cpu_s() - cpu_before_s, 0.0)
    return ServerCost(
        cpu_s=cpu_s,
        cpu_us_per_request=cpu_s / max(int(records.is_answered.sum()), 1) * 1e6,
        cores=cpu_s / max(records.wall_s, 1e-9),
        memory_bytes=server.memory_bytes(),
    )


def _notes(work: Work, load: Load, records: Records) -> tuple[str, ...]:
    notes = []
    if load.frames and not load.frames.is_told:
        notes.append("the server has no streams of frames: they were plain requests, and on time is by our clock")
    messages = sum(len(chain) for chain in work.chains)
    if work.wire == "stream" and len(records) > messages:
        notes.append(
            f"{messages:,} different prompts were sent {len(records):,} times: caches of prompts may have helped"
        )
    if records.waited_for_connection:
        notes.append(
            f"{records.waited_for_connection:,} requests waited for one of {load.connections:,} connections;"
            " their wait is in the latency"
        )
    if len(records) >= load.requests_max and load.requests_max > 1:
        notes.append(f"the load ended early, after {load.requests_max:,} requests")
    return tuple(notes)
