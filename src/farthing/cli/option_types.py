"""What options mean that are neither numbers nor names: addresses and amounts of memory."""

import re

import click

from farthing.config.server import Address


class AddressType(click.ParamType[Address]):
    """HOST:PORT, :PORT or PORT."""

    name = "HOST:PORT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        host, _, port = str(value).rpartition(":")
        if not port.isdigit() or int(port) > 65535:
            self.fail(f"`{value}` is not HOST:PORT, such as 127.0.0.1:8000 (port 0 takes a free one)", param, ctx)
        return Address(host.strip("[]") or "127.0.0.1", int(port))


class BudgetType(click.ParamType[int | None]):
    """A number of bytes, or `none`."""

    name = "BYTES|none"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        return None if value == "none" else BytesType().convert(value, param, ctx)


class BytesType(click.ParamType[int]):
    """A number of bytes, with or without a unit."""

    name = "BYTES"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT]?)(i?)B?", str(value).strip())
        if found is None:
            self.fail(f"`{value}` is no amount of memory; write 2GB, 512MiB or a number of bytes", param, ctx)
        number, unit, is_binary = found.groups()
        power = ["", "K", "M", "G", "T"].index(unit.upper())
        return int(float(number) * (1024 if is_binary else 1000) ** power)
