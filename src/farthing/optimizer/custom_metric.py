"""A metric of the user's own: a Python function that scores answers, from 0 to 1.

It is called as `function(outputs, labels)`: outputs by name, each [samples, ...], and the data's labels, or, where
there are none, the outputs of the model as it came, by name too. It answers a score a sample, or one for all. What a
loss of score means for a plan belongs to `optimizer.agreement`.
"""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.types.errors import InvalidInput
from farthing.types.tensors import Tensor

HINT: Final = (
    "it is called as function(outputs, labels), with arrays [samples, ...] by output name, and answers a score a "
    "sample, or one for all, from 0 to 1"
)


class CustomMetric:
    """The function, with a name for people and a digest for whoever resumes."""

    def __init__(self, function: Callable[..., Any], name: str, digest: str) -> None:
        self._function = function
        self.name = name
        self.digest = digest

    def scores(self, outputs: Mapping[str, Tensor], truth: object, samples: int) -> Tensor | float:
        """[samples], or one for all. Raises `InvalidInput` for what it throws, and for what is no score."""
        given = {name: _read_only(array) for name, array in outputs.items()}
        try:
            scores = np.asarray(self._function(given, truth), np.float64)
        except Exception as error:
            raise InvalidInput(f"metric {self.name} threw {_told(error)}", hint=HINT) from error
        if scores.shape not in ((), (samples,)):
            raise InvalidInput(
                f"metric {self.name} answered with shape {list(scores.shape)} for {samples} samples", hint=HINT
            )
        if not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1):
            low, high = float(scores.min()), float(scores.max())
            raise InvalidInput(f"metric {self.name} answered with scores from {low:.4g} to {high:.4g}", hint=HINT)
        return float(scores) if scores.ndim == 0 else scores


def custom_metric(said: str) -> CustomMetric:
    """The metric behind `FILE.py:FUNCTION`. Runs the file. Raises `InvalidInput` saying what is wrong with it."""
    place, _, name = said.rpartition(":")
    file = Path(place)
    if file.suffix != ".py" or not name.isidentifier():
        raise InvalidInput(f"metric `{said}` is unknown", hint="write FILE.py:FUNCTION for one of your own; " + HINT)
    try:
        source = file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"metric {said}: {file} cannot be read: {error.strerror}") from error
    spec = importlib.util.spec_from_file_location(f"farthing_metric_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InvalidInput(f"metric {said}: {file} threw {_told(error)}", hint="it must run by itself") from error
    finally:
        sys.path.remove(str(file.parent.absolute()))
    function = getattr(module, name, None)
    if not callable(function):
        found = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_")) or "none"
        raise InvalidInput(f"metric {said}: {file} has no function `{name}`; functions: {found}")
    return CustomMetric(function, f"{file.name}:{name}", hashlib.sha256(source + name.encode()).hexdigest())


def metric_of(function: Callable[..., Any]) -> CustomMetric:
    """The same for a function at hand."""
    name = getattr(function, "__qualname__", type(function).__name__)
    code = getattr(getattr(function, "__code__", None), "co_code", b"")
    return CustomMetric(function, name, hashlib.sha256(name.encode() + code).hexdigest())


def _told(error: Exception) -> str:
    """What was thrown, and in which of the user's lines."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = f" (line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:300]}{where}"


def _read_only(array: Tensor) -> Tensor:
    """Not to be changed by the metric: others are judged by it."""
    view = array.view()
    view.flags.writeable = False
    return view
