"""A price is a number or a name, and a user's own list comes first."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.optimizer.prices import price_usd_per_hour
from farthing.types.errors import InvalidInput


def test_a_number_is_itself_and_a_name_is_looked_up() -> None:
    assert price_usd_per_hour("0.17") == 0.17
    assert price_usd_per_hour("c5.2xlarge") == price_usd_per_hour("aws/c5.2xlarge") == 0.34


def test_one_s_own_list_comes_first_and_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('[aws]\n"c5.2xlarge" = 0.12\n[cellar]\nbox = 0.01\n[attic]\nbox = 0.02\n')
    monkeypatch.setenv("FARTHING_PRICES", str(file))
    assert price_usd_per_hour("c5.2xlarge") == 0.12
    assert price_usd_per_hour("cellar/box") == 0.01
    with pytest.raises(InvalidInput, match="is sold by attic, cellar"):
        price_usd_per_hour("box")


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "free", "aws/n2-standard-8", ""])
def test_what_is_no_price_says_what_is(said: str) -> None:
    with pytest.raises(InvalidInput):
        price_usd_per_hour(said)


@given(st.text(max_size=60))
def test_no_list_crashes(text: str) -> None:
    import os
    import tempfile
    from unittest import mock

    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        with mock.patch.dict(os.environ, {"FARTHING_PRICES": file.name}), pytest.raises(InvalidInput):
            price_usd_per_hour("no such machine")
