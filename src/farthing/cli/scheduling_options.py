"""The options of `farthing serve` about the response cache and the rate limiter, in our spelling and in Triton's.

What they mean is in `config.server`.
"""

import re
from collections.abc import Mapping, Sequence

import click
import msgspec

from farthing.config.server import RESPONSE_CACHE_BYTES, SchedulingSettings


def scheduling_settings(
    *, cache_bytes: int | None, cache_config: Sequence[str], rate_limit: str, resources: Sequence[str]
) -> SchedulingSettings:
    """The settings. Raises `click.UsageError` for what cannot be."""
    said = _cache_config_bytes(cache_config)
    if cache_bytes is not None and said is not None:
        raise click.UsageError("--response-cache-bytes and --cache-config say the same; give one of the two")
    if cache_bytes is None:
        cache_bytes = RESPONSE_CACHE_BYTES if said is None else said
    values = {"response_cache_bytes": cache_bytes, "rate_limit": rate_limit, "resources": _resources(resources)}
    return msgspec.convert(values, SchedulingSettings)


def _cache_config_bytes(texts: Sequence[str]) -> int | None:
    """Triton's `--cache-config local,size=BYTES`; None if it was not given."""
    size = None
    for text in texts:
        found = re.fullmatch(r"local,size=(\d{1,15})", text)
        if found is None:
            raise click.UsageError(f"--cache-config `{text}`: the cache is in this process; write local,size=BYTES")
        size = int(found[1])
    return size


def _resources(texts: Sequence[str]) -> Mapping[str, int]:
    """NAME:COUNT, with a device's number behind it as Triton has it, where only 0 can be meant."""
    totals: dict[str, int] = {}
    for text in texts:
        found = re.fullmatch(r"([^:]+):(\d{1,9})(?::(\d+))?", text)
        if found is None or int(found[2]) == 0:
            raise click.UsageError(f"--rate-limit-resource `{text}`: write NAME:COUNT, such as licences:4")
        if int(found[3] or 0) != 0:
            raise click.UsageError(f"--rate-limit-resource `{text}`: device {found[3]}; this build has device 0 alone")
        if found[1] in totals:
            raise click.UsageError(f"--rate-limit-resource: `{found[1]}` is given twice")
        totals[found[1]] = int(found[2])
    return totals
