"""What Farthing has promised, held against a run: each target as a line that says met or missed.

The numbers are the first release's (issue "Serve any model", part 5). Ratios to a peer use that peer's figures of
the same run; a peer that was not run gives no line.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import Final

from report import Cell

CPU_US_MAX: Final = 30
"""CPU microseconds a request of the tiny MLP may cost at 64 connections."""
CONNECTIONS: Final = 64
RATE_RATIOS: Final = {"triton": 1, "triton-dynbatch": 1, "mlserver": 8, "litserve": 20}
"""Peer -> how many times its request rate Farthing must answer, JSON, 64 connections."""
ENGINE_SHARE_MIN: Final = 0.95


def _median(cells: list[Cell], of: Callable[[Cell], float | None]) -> float | None:
    values = [value for value in map(of, cells) if value is not None]
    return statistics.median(values) if values else None


def _pick(cells: list[Cell], server: str, model: str, wire: str, connections: int) -> list[Cell]:
    wanted = (server, model, wire, connections)
    return [c for c in cells if (c.server, c.model, c.wire, c.connections) == wanted]


def _line(is_met: bool, text: str) -> str:
    return f"- {'met' if is_met else '**missed**'}: {text}"


def lines(cells: list[Cell]) -> Iterator[str]:
    """One line for each target that this run can judge."""
    for wire in ("json", "binary"):
        ours = _pick(cells, "farthing", "mlp", wire, CONNECTIONS)
        cost = _median(ours, lambda c: c.cpu_us)
        if cost is not None:
            yield _line(cost <= CPU_US_MAX, f"mlp:{wire}, c={CONNECTIONS}: {cost:.1f} CPU-us, target {CPU_US_MAX}")
    ours = _pick(cells, "farthing", "mlp", "json", CONNECTIONS)
    rate, p99 = _median(ours, lambda c: c.rate), _median(ours, lambda c: c.p99_ms)
    for peer, factor in RATE_RATIOS.items():
        theirs = _pick(cells, peer, "mlp", "json", CONNECTIONS)
        their_rate, their_p99 = _median(theirs, lambda c: c.rate), _median(theirs, lambda c: c.p99_ms)
        if rate is None or p99 is None or not their_rate or their_p99 is None:
            continue
        ratio = rate / their_rate
        yield _line(ratio >= factor, f"mlp:json, c={CONNECTIONS}: {ratio:.1f} times {peer}'s rate, target {factor}")
        yield _line(
            p99 <= their_p99, f"mlp:json, c={CONNECTIONS}: p99 {p99:.2f} ms, {peer} {their_p99:.2f} ms, target no worse"
        )
    for model, wire in (("effnet", "binary"), ("minilm", "json"), ("minilm", "binary")):
        heavy = [c for c in _pick(cells, "farthing", model, wire, 16) if c.engine_rate]
        share = _median(heavy, lambda c: c.rate / c.engine_rate)
        if share is not None:
            met = share >= ENGINE_SHARE_MIN
            yield _line(met, f"{model}:{wire}, c=16: {share:.1%} of the engine, target {ENGINE_SHARE_MIN:.0%}")
    failed = sum(c.errors for c in cells if c.server == "farthing")
    yield _line(failed == 0, f"{failed} errors in all of Farthing's runs, target 0")
