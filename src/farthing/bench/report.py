"""What a benchmark hands over, as one value: everything the terminal, the JSON file and the HTML page show.

Written with `msgspec.json`; its shape is described in docs/reference/bench.md, under the version that stands in it.
"""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from farthing import __version__
from farthing.bench.comparison import Ratio
from farthing.bench.measure import Measured
from farthing.bench.mlperf import Judged
from farthing.bench.search import Found

SCHEMA: Final = "farthing-bench/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A against B: one ratio a quantity, and the rounds it comes from."""

    a: str
    b: str
    ratios: Mapping[str, Ratio]
    b_runs: Sequence[Measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`runs` are those of A where there is a comparison; `knee` is an index into them."""

    schema: str
    farthing: str
    made_at: str
    machine: Mapping[str, Any]
    target: str
    settings: Mapping[str, Any]
    runs: Sequence[Measured]
    knee: int | None = None
    found: Found | None = None
    compared: Compared | None = None
    mlperf: Judged | None = None

    @property
    def is_valid(self) -> bool:
        """Whether all of it may be believed, and MLPerf's rules, where they were asked, are kept."""
        return all(run.figures.is_valid for run in self.runs) and (self.mlperf is None or self.mlperf.is_valid)


def machine() -> dict[str, Any]:
    """Where it was measured from."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        model = platform.processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores, "system": platform.platform(), "python": platform.python_version()}


def report(target: str, settings: Mapping[str, Any], runs: Sequence[Measured], **more: Any) -> Report:
    """With the time and the machine filled in."""
    return Report(
        schema=SCHEMA,
        farthing=__version__,
        made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        machine=machine(),
        target=target,
        settings=settings,
        runs=runs,
        **more,
    )


def to_json(told: Report) -> bytes:
    """The documented file."""
    return msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n"
