"""How many cores may this process use, and how many threads does one instance get?

Asked by every engine that has a thread pool. What the pool does with its threads is the engine's own affair.
"""

import os
from collections.abc import Mapping

from farthing.engines.contract import ModelSource
from farthing.types.errors import LoadFailed

THREADS_MAX = 1024
"""More threads than any machine this runs on has cores: a larger figure in a configuration is a slip."""


def cores_available() -> int:
    """Cores this process may be scheduled on, which taskset, cpusets and containers make fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_per_instance(source: ModelSource) -> int:
    """What the configuration says, else an equal share of the cores for each instance, never less than one."""
    return source.threads or max(1, cores_available() // max(1, source.instances))


def count_parameter(parameters: Mapping[str, str], key: str, default: int, where: object) -> int:
    """A thread or stream count among an engine's parameters. 0 and absent mean `default`, as Triton has it."""
    text = parameters.get(key, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text) <= THREADS_MAX):
        raise LoadFailed(
            f"{where}: parameter `{key}` is `{text[:40]}`; a whole number from 0 to {THREADS_MAX} is allowed",
            hint="0, or leaving it out, shares the cores among the model's instances",
        )
    return int(text) or default
