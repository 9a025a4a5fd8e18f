"""The options about cache and limiter, in both spellings."""

from typing import Any

import click
import pytest

from farthing.cli.scheduling_options import scheduling_settings
from farthing.config.server import RESPONSE_CACHE_BYTES, RateLimit, SchedulingSettings


def settings(**said: Any) -> SchedulingSettings:
    return scheduling_settings(
        **{"cache_bytes": None, "cache_config": (), "rate_limit": "off", "resources": (), **said}  # type: ignore[arg-type]
    )


def test_nothing_said_is_the_default() -> None:
    assert settings() == SchedulingSettings()
    assert settings().response_cache_bytes == RESPONSE_CACHE_BYTES


def test_the_cache_s_size_in_both_spellings() -> None:
    assert settings(cache_bytes=0).response_cache_bytes == 0
    assert settings(cache_config=("local,size=1048576",)).response_cache_bytes == 1 << 20


def test_resources_with_and_without_a_device() -> None:
    told = settings(rate_limit="execution_count", resources=("licence:4", "cores:2:0"))
    assert told.rate_limit is RateLimit.EXECUTION_COUNT
    assert told.resources == {"licence": 4, "cores": 2}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"cache_bytes": 1, "cache_config": ("local,size=1",)}, "give one of the two"),
        ({"cache_config": ("redis,host=h",)}, "write local,size=BYTES"),
        ({"resources": ("licence",)}, "write NAME:COUNT"),
        ({"resources": ("licence:0",)}, "write NAME:COUNT"),
        ({"resources": ("licence:1:2",)}, "device 2; this build has device 0 alone"),
        ({"resources": ("a:1", "a:2")}, "`a` is given twice"),
    ],
)
def test_what_cannot_be_is_told(said: dict[str, Any], why: str) -> None:
    with pytest.raises(click.UsageError, match=why):
        settings(**said)
