"""`farthing keys`: make API keys for `farthing serve --keys`."""

import click

from farthing.server.auth import Role, new_key


@click.group()
def command() -> None:
    """Make API keys for `farthing serve --keys FILE`."""


@command.command()
@click.argument("name")
@click.option("--control", is_flag=True, help="A key that loads and unloads models.")
@click.option("--both", is_flag=True, help="A key for inference and for control.")
def new(name: str, control: bool, both: bool) -> None:
    """Print a new key (stderr) and its entry for the key file (stdout).

    \b
    farthing keys new shop >> keys.toml
    farthing serve model.onnx --keys keys.toml

    The file holds only the key's hash: note the key now, it cannot be shown again.
    """
    roles = (Role.INFERENCE, Role.CONTROL) if both else (Role.CONTROL,) if control else (Role.INFERENCE,)
    key, entry = new_key(name, roles)
    click.echo(f"key: {key}", err=True)
    click.echo(entry)
