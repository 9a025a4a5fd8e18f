"""The load: the native loop of `farthing bench`, closed, on its own core; one fixed request over N connections.

What the server spent meanwhile is read by `machine`; this reports what a client sees, and how busy the loop itself was.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import machine
from farthing.bench.figures import figures
from farthing.bench.load import Load as Asked
from farthing.bench.load import Work
from farthing.bench.wire import http_message
from wire import Request

TIMEOUT_S: Final = 20
"""An answer later than this counts as an error."""


class ToolMissing(Exception):
    """Something that this benchmark needs is not there."""


class LoadFailed(Exception):
    """Nothing was answered; the message says what came instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the clients saw."""

    requests: int
    seconds: float
    p50_ms: float | None
    p99_ms: float | None
    """None where there are too few requests to say: 662 support a p99."""
    errors: int
    generator_share: float
    """Part of its core that the loop used; near 1 the generator, not the server, is what was measured."""
    generator_cpu_s: float
    """Of this very process."""

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def check_installed() -> None:
    """Raises `ToolMissing` with what to do."""
    try:
        from farthing.bench import native_driver  # noqa: F401
    except ImportError as missing:
        raise ToolMissing("the native loop was not built; on Linux, with a C++20 compiler: pip install .") from missing


def run(port: int, request: Request, *, connections: int, seconds: float, core: int | None) -> Load:
    """Repeats `request` over `connections` for `seconds`; `core` None: wherever the system likes."""
    from farthing.bench.native_driver import NativeDriver

    message = http_message("POST", request.path, f"127.0.0.1:{port}", request.headers, request.body)
    work = Work(wire="http", chains=[[message]], order=[0])
    asked = Asked(connections=connections, duration_s=seconds, timeout_s=TIMEOUT_S)
    with machine.pinned(core) if core is not None else nullcontext():
        records = NativeDriver("127.0.0.1", port, work, asked).run()
    seen = figures(records, duration_s=seconds, warm_up_s=0.0)
    if not seen.answered:
        raise LoadFailed(f"nothing was answered: {dict(seen.errors)} {dict(seen.samples)}")
    at = {one.percent: one.value for one in seen.latency.percentiles} if seen.latency else {}
    return Load(
        requests=int(records.is_answered.sum()),
        seconds=records.wall_s,
        p50_ms=_ms(at.get(50.0)),
        p99_ms=_ms(at.get(99.0)),
        errors=sum(seen.errors.values()),
        generator_share=seen.generator.cpu_share,
        generator_cpu_s=records.cpu_s,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
