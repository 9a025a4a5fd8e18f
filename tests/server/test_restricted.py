"""Restricted APIs, as Triton has them."""

from pathlib import Path

import pytest
from tests.serving import infer_json, serving, small_repository

from farthing.server.restricted import Restrictions
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import Forbidden, InvalidSetting


def test_a_category_opens_to_its_header_alone() -> None:
    restrictions = Restrictions(["model-repository,statistics:Operator-Key=secret", "inference:app=two=2"])
    for kind in (RouteClass.REPOSITORY, RouteClass.STATISTICS):
        restrictions.check(kind, {b"operator-key": b"secret"})
        for headers in ({}, {b"operator-key": b"Secret"}, {b"app": b"two=2"}):
            with pytest.raises(Forbidden, match="This API is restricted, expecting header 'operator-key'"):
                restrictions.check(kind, headers)
    restrictions.check(RouteClass.INFER, {b"app": b"two=2"})
    restrictions.check(RouteClass.HEALTH, {})


def test_without_settings_nothing_is_restricted() -> None:
    assert not Restrictions([])
    assert not Restrictions(["trace,logging:key=value"])


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("", "restricts nothing"),
        ("health", "restricts nothing"),
        ("health:key", "restricts nothing"),
        ("health:=value", "restricts nothing"),
        ("helth:key=value", "`helth` cannot be restricted"),
        ("health,health:key=value", "`health` is restricted twice"),
    ],
)
def test_a_mistyped_setting_is_named(setting: str, reason: str) -> None:
    with pytest.raises(InvalidSetting, match=reason):
        Restrictions([setting])


def test_over_the_wire(tmp_path: Path) -> None:
    with serving(small_repository(tmp_path), restricted=("statistics,metadata:key=open",)) as live:
        assert live.get("/v2/health/live").status == 200
        refused = live.get("/v2/models/stats")
        assert (refused.status, refused.error) == (403, "This API is restricted, expecting header 'key'")
        assert live.get("/v2/models/stats", headers={"Key": "open"}).status == 200
        assert live.get("/v2").status == 403
        name = live.post("/v2/repository/index").json[0]["name"]
        assert live.post(f"/v2/models/{name}/infer", infer_json([0.0] * 32)).status in (200, 400)
