"""What an hour of a machine costs: a number, or the name of an instance in a list that anybody may edit.

The list here is a beginning (`prices.toml`); a user's own comes before it.
"""

import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from farthing.types.errors import InvalidInput

OWN: Final = Path("~/.config/farthing/prices.toml")
VARIABLE: Final = "FARTHING_PRICES"
BYTES_MAX: Final = 1 << 20

_Prices = dict[str, dict[str, float]]


def price_usd_per_hour(said: str) -> float:
    """Dollars an hour: `0.34`, an instance's name, or `PROVIDER/NAME` where two have one name.

    Raises `InvalidInput` listing the names there are, or saying what is wrong with the user's list.
    """
    try:
        price = float(said)
    except ValueError:
        return _listed(said)
    if not 0 < price < 1e6:
        raise InvalidInput(f"`{said}` is no price of an hour in dollars")
    return price


def _listed(said: str) -> float:
    known = _own() or {}
    for provider, prices in _shipped().items():
        known[provider] = {**prices, **known.get(provider, {})}
    provider, _, name = said.rpartition("/")
    found = {p: prices[name] for p, prices in known.items() if name in prices and provider in ("", p)}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise InvalidInput(f"`{said}` is sold by {', '.join(sorted(found))}", hint=f"say {min(found)}/{name}")
    names = ", ".join(sorted(name for prices in known.values() for name in prices))
    raise InvalidInput(
        f"no price is known of `{said}`; known: {names}",
        hint=f"give dollars an hour, or add it to {os.environ.get(VARIABLE) or OWN}",
    )


def _own() -> _Prices | None:
    file = Path(os.environ.get(VARIABLE) or OWN).expanduser()
    try:
        with file.open("rb") as opened:
            return _parsed(opened.read(BYTES_MAX + 1).decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{file}: is no list of prices: {error}", hint='[provider] and lines like "name" = 0.34, dollars an hour'
        ) from error


def _shipped() -> _Prices:
    return _parsed(resources.files("farthing.optimizer").joinpath("prices.toml").read_text(encoding="utf-8"))


def _parsed(text: str) -> _Prices:
    prices = msgspec.convert(tomllib.loads(text), _Prices)
    if any(not 0 < price < 1e6 for listed in prices.values() for price in listed.values()):
        raise ValueError("a price is not above 0")
    return prices
