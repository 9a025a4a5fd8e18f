"""What is told once a server serves: to the person who started it, and to a program that waits for it.

Imports much of the server; whoever imports this has it in memory already.
"""

import json
from pathlib import Path

import click

from farthing.cli.curl import chat_line, curl_line, stream_line
from farthing.repository import model_key
from farthing.runtime.language_model import LanguageModel
from farthing.runtime.resting import RESTING
from farthing.runtime.served_streams import Streaming
from farthing.server.server import Server
from farthing.types.models import ModelSpec
from farthing.types.tensors import TensorSpec


def say_what_is_served(server: Server, url: str) -> None:
    """A line a model and one that calls the first, for the person who started it."""
    lines = server.runtime.index()
    if not lines:
        click.echo("no models: name some, or load them with --model-control-mode explicit", err=True)
    first, first_served = None, None
    for line in lines:
        if line.state == "READY":
            served = server.runtime.resolve(line.name, line.version, line.namespace)
            spec, key = served.spec, model_key(line.name, line.namespace)
            if first is None and len(server.runtime.catalog.namespaces(line.name)) == 1:
                first, first_served = spec, served
            if isinstance(served, LanguageModel):
                click.echo(f"  {key} v{spec.version}  {served.description}", err=True)
                continue
            batching = f"up to {spec.batch_rows_max} rows" if spec.batch_rows_max else "no batching"
            click.echo(f"  {key} v{spec.version}  {spec.platform}  {_tensors(spec)}  {batching}", err=True)
        elif line.reason == RESTING:
            click.echo(f"  {model_key(line.name, line.namespace)} v{line.version}  {line.reason}", err=True)
        elif line.state:
            key = model_key(line.name, line.namespace)
            click.echo(click.style(f"  {key} v{line.version}  {line.state}: {line.reason}", fg="red"), err=True)
    if first is not None:
        if isinstance(first_served, LanguageModel):
            call = chat_line(url, first.name)
        elif isinstance(first_served, Streaming):
            call = stream_line(url, first)
        else:
            call = curl_line(url, first)
        click.echo(f"try it:\n  {call}", err=True)


def _tensors(spec: ModelSpec) -> str:
    def side(tensors: tuple[TensorSpec, ...]) -> str:
        shown = [f"{t.name}:{t.datatype}[{','.join(map(str, t.shape))}]" for t in tensors[:3]]
        return ", ".join(shown) + (", ..." if len(tensors) > 3 else "")

    return f"{side(spec.inputs)} -> {side(spec.outputs)}"


def write_ready_file(path: Path, server: Server) -> None:
    """Written beside and renamed, so that whoever waits for it never reads half of it."""
    beside = path.with_name(path.name + ".part")
    addresses = {"http": str(server.http)} | ({"grpc": str(server.grpc)} if server.grpc is not None else {})
    beside.write_text(json.dumps(addresses) + "\n")
    beside.replace(path)
