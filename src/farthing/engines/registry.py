"""Which engine reads which file. A new engine is one file beside this one and one line here."""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from farthing.types.errors import LoadFailed

if TYPE_CHECKING:
    from pathlib import Path

    from farthing.engines.contract import Engine

ENGINES: Final = {
    "onnxruntime": "farthing.engines.onnxruntime:OnnxRuntime",
    "openvino": "farthing.engines.openvino:OpenVino",
    "trees": "farthing.engines.trees:Trees",
    "python": "farthing.engines.python:Python",
}
"""Name -> where it lives. Importing one must not import its runtime; `load` does."""


def engine_named(name: str) -> "Engine":
    """The engine with that name or alias. Raises `LoadFailed` listing those there are."""
    for engine in all_engines():
        if name == engine.name or name in engine.aliases:
            return engine
    raise LoadFailed(
        f"no engine is called `{name}`; engines: {', '.join(ENGINES)}",
        hint="set `backend` to one of these, or leave it out and the file decides",
    )


def engine_for(path: "Path") -> "Engine":
    """The engine that reads this file. Raises `LoadFailed` saying what can be read."""
    for engine in all_engines():
        if engine.recognises(path):
            return engine
    endings = sorted({suffix for engine in all_engines() for suffix in engine.suffixes})
    raise LoadFailed(
        f"{path}: no engine reads this file; endings known: {' '.join(endings)}",
        hint="convert the model to ONNX, or name its engine with `backend`",
    )


def default_filenames() -> "dict[str, tuple[str, ...]]":
    """Every name an engine answers to -> the model file names it looks for."""
    return {name: engine.default_filenames for engine in all_engines() for name in (engine.name, *engine.aliases)}


def all_engines() -> "list[Engine]":
    """One of each, in the order they are asked."""
    return [_engine(place) for place in ENGINES.values()]


def _engine(place: str) -> "Engine":
    module, name = place.split(":")
    engine: Engine = getattr(import_module(module), name)()
    return engine
