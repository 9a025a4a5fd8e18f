"""One server for the tests that leave it as it was."""

from collections.abc import Iterator

import pytest
from tests.serving import Live, serving, small_repository


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with three small models and every default."""
    with serving(small_repository(tmp_path_factory.mktemp("repository"))) as server:
        yield server
