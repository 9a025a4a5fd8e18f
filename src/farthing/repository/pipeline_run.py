"""The main program of the process that evaluates a `pipeline.py`: runs the file, writes its graph to stdout as JSON.

It is started by `pipeline_files` and is the only place where such a file is run. What the file prints goes to stderr.
"""

import contextlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from farthing.config.pipeline_builder import Pipeline

OUTPUT_BYTES_MAX: Final = 1 << 20
"""What it may write, to any file; a pipeline of hundreds of steps takes a tenth."""


def main(path: Path) -> None:
    """Writes `{"graph": ...}` or `{"error": ...}`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _bound_output()
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(path.parent))
    try:
        answer: dict[str, Any] = {"graph": _pipeline(path).written()}
        text = json.dumps(answer)
    except BaseException as problem:  # a file may well call sys.exit
        with contextlib.suppress(OSError):  # it may have written all it may
            traceback.print_exc()
        text = json.dumps({"error": f"{_line(path, problem)}{type(problem).__name__}: {str(problem)[:1000]}"})
    answers.write(text)
    answers.flush()
    os._exit(0)  # threads that the file started do not hold it up


def _pipeline(path: Path) -> Pipeline:
    spec = importlib.util.spec_from_file_location("farthing_user_pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {id(value): value for value in vars(module).values() if isinstance(value, Pipeline)}
    if len(found) != 1:
        raise ValueError(f"{len(found)} pipelines in the file; expected one, as in `pipeline = Pipeline()`")
    return next(iter(found.values()))


def _line(path: Path, problem: BaseException) -> str:
    """Where in the file it was; empty if it was not in there."""
    if isinstance(problem, SyntaxError) and problem.filename == str(path):
        return f"line {problem.lineno}: "
    lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == str(path)]
    return f"line {lines[-1]}: " if lines else ""


def _bound_output() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES_MAX, OUTPUT_BYTES_MAX))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
