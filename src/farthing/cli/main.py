"""The `farthing` command: which sub-commands there are, and what errors and Ctrl-C look like to a person.

Sub-commands are imported when called or when their own help is asked for, so `farthing --help` stays fast.
"""

import gc
import sys
from importlib import import_module
from typing import Final

import click

from farthing import __version__
from farthing.types.errors import FarthingError

COMMANDS: Final = {
    "serve": "Serve models over KServe v2 and OpenAI's API from one port.",
    "chat": "Talk to a language model.",
    "optimize": "Find the cheapest way to run a model that is still right.",
    "explain": "Tell what `optimize` decided for a model, and why.",
    "bench": "Measure an endpoint: load it, and tell what can be believed.",
    "pull": "Fetch sample models into the cache.",
    "keys": "Make API keys for `serve --keys`.",
    "perplexity": "Tell how well a language model foresees a text.",
    "demo": "Serve the sample models, send them real inputs, check the answers.",
}
"""Name -> its line in `farthing --help`. Each lives in `farthing.cli.NAME` as a click command called `command`."""


COLLECTS_LATER: Final = frozenset({"serve"})
"""Commands that turn Python's garbage collection on themselves, once what stays is there."""


class LazyGroup(click.Group):
    """A click group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"farthing.cli.{cmd_name}").command
        if cmd_name not in COLLECTS_LATER:
            gc.enable()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="farthing")
def cli() -> None:
    """Serve any trained model as the cheapest endpoint that meets a latency target.

    \b
    farthing serve model.onnx              a KServe v2 endpoint on 127.0.0.1:8000
    farthing serve sample:effnet-lite0     the same, with a model fetched for you
    farthing serve model.gguf              OpenAI's API at /v1 on the same port
    farthing chat sample:smollm2-135m      talk to a language model
    farthing bench http://127.0.0.1:8000 -m NAME   measure it
    farthing pull --list                   what can be fetched
    """


def main() -> None:
    """Runs the command line; an error a user can mend is two lines on stderr and exit status 1."""
    gc.disable()  # a sixth of the time until a server answers would go into looking at modules just imported
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as wrong:
        wrong.show()
        sys.exit(wrong.exit_code)
    except FarthingError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
