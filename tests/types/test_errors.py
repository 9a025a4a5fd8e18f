"""Every error has a status that clients understand, and says what to do."""

import inspect

import pytest

from farthing.types import errors
from farthing.types.errors import DeadlineExceeded, FarthingError, InvalidInput, NotFound, Overloaded, TenantLimited

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FarthingError)]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_a_status_of_http_and_of_grpc(kind: type[FarthingError]) -> None:
    assert 400 <= kind.http_status <= 599
    assert 1 <= kind.grpc_status <= 16
    assert kind.__doc__


def test_a_hint_is_a_line_of_its_own() -> None:
    assert str(NotFound("no model `x`", hint="load it first")) == "no model `x`\nhint: load it first"
    assert str(NotFound("no model `x`")) == "no model `x`"


def test_statuses_say_whose_fault_it_is() -> None:
    assert InvalidInput.http_status == 400
    assert TenantLimited.http_status == 429
    assert Overloaded.http_status == DeadlineExceeded.http_status == 503
    assert Overloaded("full", retry_after_s=2).retry_after_s == 2
