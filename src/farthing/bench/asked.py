"""What `farthing bench` was asked: the command line, read by `cli.bench`, carried out by `benchmark`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command line, read."""

    url: str
    models: tuple[str, ...]
    """Empty: the only one, in process."""
    kind: str
    api_key: str
    concurrency: tuple[int, ...]
    rate: tuple[float, float | None] | None
    arrivals: str
    burstiness: float
    trace: Path | None
    speed: float
    find: str
    against: str
    rounds: int
    duration_s: float
    warm_up_s: float | None
    goal: str
    input: str
    shapes: dict[str, tuple[int, ...]]
    is_json: bool
    prompt_tokens: str
    output_tokens: str
    prefix_tokens: int
    prefixes: int
    turns: int
    pause_s: float
    timeout_s: float
    connections_max: int
    seed: int
    frames: float | None = None
    """Frames a second of each stream."""
    deadline_s: float | None = None
    policy: str = "latest"
    mlperf: str = ""
    is_accuracy: bool = False
    mlperf_conf: Path | None = None
    mlperf_logs: Path = Path()


def settings_of(asked: Asked) -> dict[str, Any]:
    """What the report says of how it was made: all of it but the key."""
    return {name: getattr(asked, name) for name in Asked.__slots__ if name not in {"api_key", "url"}} | {
        name: str(value) if (value := getattr(asked, name)) else "" for name in ("trace", "mlperf_conf", "mlperf_logs")
    }
