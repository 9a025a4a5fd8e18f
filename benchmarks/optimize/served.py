"""What a request costs when the model is served: one at a time by a handler as people write it, and as planned.

Both servers are up together and on all cores, and so is the load (the native loop of `farthing bench`); they are loaded
in turn, round after round, so that a bad minute of the machine meets both. What the load itself takes of the machine
counts against whoever is faster.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import load
from models import Model
from peers.contract import Launch, Peer, python
from server import Server

ROUNDS: Final = 5
SECONDS: Final = 3
STUDENT: Final = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Two-sided 95 % quantiles, by the number of rounds."""


Turn = tuple[load.Load, float]
"""What the clients saw, and the CPU seconds of the server meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Of one server, all rounds together."""

    name: str
    rate: float
    p99_ms: float | None
    """None: no turn had requests enough to say."""
    cpu_us: float
    """Of the server's processes, for each request."""
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Both servers, and how many times cheaper the second is, by neighbouring turns, with its 95 % interval."""

    at_a_time: Served
    planned: Served
    times: float
    low: float
    high: float


def _peer(name: str, launch: Any, environment: str = "") -> Peer:
    return Peer(name=name, about="", launch=launch, environment=environment, wires=("binary",))


def _all_cores() -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(os.cpu_count())}


def _at_a_time(model: Model, port: int, _folder: Path) -> Launch:
    script = Path(__file__).parents[1] / "peers" / "inside" / "fastapi_app.py"
    return Launch(command=[python("fastapi"), str(script), str(model.file), str(port)], environment=_all_cores())


def _planned(model: Model, port: int, _folder: Path) -> Launch:
    command = [sys.executable, "-c", "from farthing.cli.main import main; main()", "serve", str(model.file)]
    return Launch(command=[*command, "--http", f"127.0.0.1:{port}", "--no-grpc"], environment=_all_cores())


def compare(
    file: Path,
    row: dict[str, NDArray[Any]],
    default: dict[str, NDArray[Any]],
    planned: dict[str, NDArray[Any]],
    *,
    connections: int,
    rounds: int = ROUNDS,
) -> Compared:
    """Loads both in turn. `row` is a request's inputs; the answers are what each has to give, or it is not measured."""
    cores = f"0-{(os.cpu_count() or 1) - 1}"
    models = [
        Model(name=file.stem, file=file, row=row, answer=answer, tolerance=_tolerance(answer))
        for answer in (default, planned)
    ]
    peers = [_peer("fastapi", _at_a_time, "fastapi"), _peer("farthing-plan", _planned)]
    for peer in peers:
        peer.install()
    seen: tuple[list[Turn], list[Turn]] = ([], [])
    with Server(peers[0], models[0], core=cores) as first, Server(peers[1], models[1], core=cores) as second:
        for round_ in range(rounds + 1):  # the first warms up
            for at, server in enumerate((first, second)):
                request = server.check("binary")
                before = server.cpu_s()
                found = load.run(server.port, request, connections=connections, seconds=SECONDS, core=None)
                if round_:
                    seen[at].append((found, server.cpu_s() - before))
    return compared(*seen)


def compared(at_a_time: Sequence[Turn], planned: Sequence[Turn]) -> Compared:
    """What the turns of both say, the n-th of each neighbours in time."""
    logs = [math.log(b.rate / a.rate) for (a, _), (b, _) in zip(at_a_time, planned, strict=True)]
    half = STUDENT.get(len(logs), 2.3) * stdev(logs) / math.sqrt(len(logs))
    mean = fmean(logs)
    return Compared(
        at_a_time=_served("fastapi", at_a_time),
        planned=_served("farthing-plan", planned),
        times=math.exp(mean),
        low=math.exp(mean - half),
        high=math.exp(mean + half),
    )


def _served(name: str, turns: Sequence[Turn]) -> Served:
    requests = sum(found.requests for found, _ in turns)
    slowest = [found.p99_ms for found, _ in turns if found.p99_ms is not None]
    return Served(
        name=name,
        rate=math.exp(fmean(math.log(found.rate) for found, _ in turns)),
        p99_ms=median(slowest) if slowest else None,
        cpu_us=sum(cpu for _, cpu in turns) / max(requests, 1) * 1e6,
        errors=sum(found.errors for found, _ in turns),
    )


def _tolerance(answer: dict[str, NDArray[Any]]) -> float:
    """As far as a batch of another size may move an answer of the same recipe, bf16 included."""
    return 0.03 * max(float(np.abs(array).max()) for array in answer.values())
