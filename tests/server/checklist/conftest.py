"""The server that the rows of the checklist are tried on."""

from collections.abc import Iterator

import pytest
from tests.server.checklist.house import WIRES, House, WireName, build
from tests.server.test_grpc import grpc_serving

from farthing.config.server import ModelControl


@pytest.fixture(scope="package")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Every model but `spare` is loaded; clients may load and unload."""
    folder = build(tmp_path_factory.mktemp("checklist"))
    names = tuple(sorted(path.name for path in folder.iterdir() if path.name != "spare"))
    with grpc_serving(folder, model_control=ModelControl.EXPLICIT, load_models=names) as (live, client):
        yield House(live, client)


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> WireName:
    """Each protocol in turn."""
    name: WireName = request.param
    return name
