"""Restricted APIs, as Triton has them."""

from pathlib import Path

import grpc
import pytest
from tests.server.test_grpc import grpc_serving, infer_message
from tests.serving import infer_json, serving, small_repository

from farthing.protocols.kserve_grpc import message_class
from farthing.server.restricted import GRPC, Restrictions
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import Forbidden, InvalidSetting, Unavailable


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


def test_over_grpc_the_header_has_tritons_prefix_and_the_refusal_tritons_status() -> None:
    restrictions = Restrictions(["inference:App=two"], GRPC)
    restrictions.check(RouteClass.INFER, {b"triton-grpc-protocol-app": b"two"})
    with pytest.raises(Unavailable, match="This protocol is restricted, expecting header 'triton-grpc-protocol-app'"):
        restrictions.check(RouteClass.INFER, {b"app": b"two"})


def test_every_category_of_triton_restricts_its_calls_over_grpc(tmp_path: Path) -> None:
    calls = {
        "health": "ServerLive",
        "metadata": "ServerMetadata",
        "inference": "ModelInfer",
        "shared-memory": "SystemSharedMemoryStatus",
        "model-config": "ModelConfig",
        "model-repository": "RepositoryIndex",
        "statistics": "ModelStatistics",
        "trace": "TraceSetting",
        "logging": "LogSettings",
    }
    settings = tuple(f"{category}:key={category}" for category in calls)
    with grpc_serving(small_repository(tmp_path), grpc_restricted=settings) as (live, client):
        for category, method in calls.items():
            code, words, _ = client.fails(method)
            assert (code, words) == (
                grpc.StatusCode.UNAVAILABLE,
                "This protocol is restricted, expecting header 'triton-grpc-protocol-key'",
            )
            client.fails(method, metadata=[("triton-grpc-protocol-key", "other")])
            key = [("triton-grpc-protocol-key", category)]
            named = (
                {"name": "echo"}
                if method == "ModelConfig"
                else {"model_name": "echo"}
                if method == "ModelInfer"
                else {}
            )
            message = (
                infer_message([[1.0, 2.0]]) if method == "ModelInfer" else message_class(f"{method}Request")(**named)
            )
            client.raw(method)(message.SerializeToString(), metadata=key, timeout=20)
        assert live.infer("echo", [[1.0, 2.0]]).status == 200, "HTTP has its own"


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
