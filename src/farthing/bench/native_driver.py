"""The driver for plain sockets: the native loop (native/bench), one thread, no interpreter while it runs."""

import socket

import numpy as np

from farthing._bench import Run
from farthing.bench.load import EVENTS_MAX, Load, Progress, Work, chain_starts
from farthing.bench.records import Records, records_of
from farthing.types.errors import Unavailable


class NativeDriver:
    """One load against one address."""

    def __init__(self, host: str, port: int, work: Work, load: Load) -> None:
        self._run = native_run(host, port, work, load)

    def run(self) -> Records:
        self._run.run()
        return records_of(self._run.take())

    def stop(self) -> None:
        self._run.stop()

    def progress(self) -> Progress:
        return Progress(**self._run.progress())


def native_run(host: str, port: int, work: Work, load: Load, *, is_fed: bool = False) -> Run:
    """The loop, ready to run. `is_fed`: requests are handed over while it runs, and the load says only how."""
    messages = [message for chain in work.chains for message in chain]
    arrivals = np.empty(0) if load.arrivals_s is None else load.arrivals_s
    return Run(
        address=numeric(host, port),
        port=port,
        wire=work.wire,
        requests=tuple(message.data for message in messages),
        heads=tuple(message.head for message in messages) if work.wire == "grpc" else (),
        chain_starts=chain_starts(work.chains),
        order=np.asarray(work.order, np.int32),
        arrivals_ns=np.asarray(arrivals * 1e9, np.int64),
        pause_ns=int(load.pause_s * 1e9),
        duration_ns=int(load.duration_s * 1e9),
        timeout_ns=int(load.timeout_s * 1e9),
        requests_max=load.requests_max,
        events_max=EVENTS_MAX,
        connections=load.connections,
        is_fed=is_fed,
    )


def numeric(host: str, port: int) -> str:
    """The first address of a name. Raises `Unavailable` if it has none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(f"`{host}` has no address: {error}", hint="write http://HOST:PORT") from error
    return str(found[0][4][0])
