"""`farthing chat`: talk to a language model on the terminal, or through a pipe.

A model's path or `sample:NAME` is served by a process of its own for as long as the chat lasts; a URL is a server that
runs already. The conversation is kept here and sent anew each turn, as the API wants it (the server's prefix cache
makes that cheap).
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import click

from farthing.cli.demo_server import serving_models
from farthing.cli.progress import progress_shown
from farthing.cli.pull import stop
from farthing.client.chat import ChatClient, Message
from farthing.types.errors import FarthingError, InvalidInput, LoadFailed, NotFound

HELP: Final = """\
/system TEXT   who the model should be (and starts anew)
/reset         forget the conversation
/help          this
Ctrl-C         stop the answer
Ctrl-D         leave"""
TOO_LONG: Final = "context"
"""Stands in every server's words for a conversation that no longer fits."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("target", metavar="MODEL|URL")
@click.argument("prompt", nargs=-1)
@click.option("--model", default="", show_default="the first", help="Which of the server's models.")
@click.option("--system", default="", show_default=False, help="Who the model should be.")
@click.option("--temperature", type=click.FloatRange(0, 2), show_default="the model's", help="0: always the likeliest.")
@click.option("--max-tokens", type=click.IntRange(min=1), show_default="what fits", help="Of one answer.")
@click.option("--seed", type=int, show_default="by chance", help="The same seed, the same answers.")
@click.option("--api-key", envvar="FARTHING_API_KEY", default="", show_default=False, help="Or FARTHING_API_KEY.")
def command(target: str, prompt: tuple[str, ...], model: str, system: str, api_key: str, **sampling: Any) -> None:
    """Talk to a language model.

    MODEL is what `farthing serve` takes (a .gguf file, a Hugging Face folder, sample:smollm2-135m); URL is a running
    server. With a PROMPT, or with input from a pipe, it answers once, on stdout, and ends.

    \b
    farthing chat sample:smollm2-135m
    farthing chat http://127.0.0.1:8000 "What is the capital of Japan?"
    echo "Write a haiku" | farthing chat model.gguf
    """
    with _server(target) as url:
        client = ChatClient(url, api_key=api_key)
        fields = {name: value for name, value in sampling.items() if value is not None}
        chat = Chat(client, _chosen(client, model), system, fields)
        if prompt:
            chat.answer_once(" ".join(prompt))
        elif not sys.stdin.isatty():
            chat.answer_once(sys.stdin.read().strip())
        else:
            chat.converse()


class Chat:
    """A conversation and the terminal it is held on."""

    def __init__(self, client: ChatClient, model: str, system: str, fields: dict[str, Any]) -> None:
        self._client = client
        self._fields = {"model": model, **fields}
        self._system = system
        self._turns: list[Message] = []

    def answer_once(self, prompt: str) -> None:
        """One question, its answer on stdout and nothing else."""
        if not prompt:
            raise InvalidInput("there is no question", hint="pipe one in, or write it behind the model")
        self._turns.append({"role": "user", "content": prompt})
        for piece in self._client.ask(self._messages(), **self._fields):
            click.echo(piece.text, nl=False)
        click.echo()

    def converse(self) -> None:
        """Turns until the person leaves."""
        _prepare_line_editing()
        click.secho(f"{self._fields['model']}: /help for help, Ctrl-D to leave", dim=True, err=True)
        while (said := _line()) is not None:
            if not said:
                continue
            if said.startswith("/"):
                self._obey(said)
                continue
            self._turns.append({"role": "user", "content": said})
            try:
                self._answer()
            except FarthingError as error:
                self._turns.pop()
                click.secho(f"error: {error}", fg="red", err=True)

    def _obey(self, said: str) -> None:
        name, _, rest = said.partition(" ")
        if name == "/reset":
            self._turns.clear()
            click.secho("forgotten", dim=True, err=True)
        elif name == "/system":
            self._system = rest.strip()
            self._turns.clear()
            click.secho("so be it" if self._system else "no system message", dim=True, err=True)
        else:
            click.secho(HELP, dim=True, err=True)

    def _answer(self) -> None:
        """Streams one answer, and leaves the oldest turns out while the conversation does not fit."""
        while True:
            try:
                self._stream()
            except InvalidInput as error:
                if TOO_LONG not in error.message or len(self._turns) < 3:
                    raise
                del self._turns[:2]
                click.secho("(too long for the model: the oldest turn is left out)", dim=True, err=True)
            else:
                return

    def _stream(self) -> None:
        started = first = time.monotonic()
        texts: list[str] = []
        tokens = 0
        pieces = self._client.ask(self._messages(), **self._fields)
        with _interrupts_raise():
            try:
                for piece in pieces:
                    if piece.text:
                        if not texts:
                            first = time.monotonic()
                        texts.append(piece.text)
                        click.echo(piece.text, nl=False)
                    tokens = piece.completion_tokens or tokens
            except KeyboardInterrupt:
                click.secho(" (stopped)", dim=True, nl=False, err=True)
        close = getattr(pieces, "close", None)
        if close is not None:
            close()  # hangs up: the server stops working
        end = time.monotonic()
        click.echo()
        self._turns.append({"role": "assistant", "content": "".join(texts)})
        if tokens > 1 and end > first:
            rate = (tokens - 1) / (end - first)
            click.secho(
                f"{tokens} tokens, {rate:.0f} tokens/s, first after {first - started:.2f} s", dim=True, err=True
            )

    def _messages(self) -> list[Message]:
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *self._turns]


def _server(target: str) -> AbstractContextManager[str]:
    if target.startswith(("http://", "https://")):
        return nullcontext(target)
    if target.startswith("sample:"):
        from farthing.repository.samples import sample_paths

        with progress_shown() as progress:
            sample_paths(target.removeprefix("sample:"), progress=progress)
    elif not Path(target).exists():
        raise LoadFailed(f"{target}: no such file or folder", hint="a URL begins with http://; sample:NAME fetches one")
    signal.signal(signal.SIGTERM, stop)  # the server has to go too
    if sys.stderr.isatty():
        click.secho(f"starting {target}", dim=True, err=True)
    return serving_models([target], is_apart=True)


def _chosen(client: ChatClient, model: str) -> str:
    models = client.models()
    if not models:
        raise NotFound("the server has no language model", hint="serve a .gguf file or a Hugging Face folder")
    if model and model not in models:
        raise NotFound(f"the server has no model `{model}`; models: {', '.join(models)}")
    return model or models[0]


def _prepare_line_editing() -> None:
    """Arrow keys and earlier lines, where Python was built with readline."""
    try:
        import readline
    except ImportError:
        return
    readline.set_auto_history(True)


def _line() -> str | None:
    """What the person says; None when they leave. A backslash at the end goes on in the next line."""
    lines: list[str] = []
    prompt = "> "
    while True:
        try:
            line = input(prompt)
        except EOFError:
            click.echo(err=True)
            return None
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            return ""
        if not line.endswith("\\"):
            return "\n".join([*lines, line]).strip()
        lines.append(line[:-1])
        prompt = ". "


@contextmanager
def _interrupts_raise() -> Iterator[None]:
    """Ctrl-C ends what runs in here, whatever it means elsewhere."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        sys.stdout.flush()
