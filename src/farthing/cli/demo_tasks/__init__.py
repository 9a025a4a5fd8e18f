"""What each sample model is for: real inputs, what to do before and after the model, and the right answer.

One file a task. They talk to any server through `task.Infers`, so the demo, tests and benches use the same ones.
Serving, timing and printing belong to `cli.demo`.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Final

from farthing.cli.demo_tasks.task import Finding, Infers, Task
from farthing.types.errors import LoadFailed, NotFound

__all__ = ["DEFAULT_TASKS", "TASKS", "Finding", "Infers", "Task", "task_named"]

TASKS: Final = {
    "effnet-lite0": "pictures:Pictures",
    "minilm-l6": "sentences:Sentences",
    "ppocr-v4": "page:Page",
    "silero-vad": "voice:Voice",
    "magika": "file_types:FileTypes",
    "wdbc-gbdt": "diagnosis:Diagnosis",
    "movielens-dlrm": "films:Films",
    "centerface": "faces:Faces",
    "basic-pitch": "notes:Notes",
    "nanodet-g": "objects:Objects",
}
"""Sample -> the file and class of its task, in the order the demo shows them."""

DEFAULT_TASKS: Final[Sequence[str]] = tuple(name for name in TASKS if name != "nanodet-g")
"""NanoDet is left out unless asked for: its package is a 145 MB download for 15 MB of model."""


def task_named(sample: str) -> Task:
    """The task for that sample, its inputs read. Raises `NotFound` listing those there are."""
    if sample not in TASKS:
        raise NotFound(f"no task for sample `{sample}`; tasks: {', '.join(TASKS)}")
    module, name = TASKS[sample].split(":")
    try:
        task: Task = getattr(import_module(f"farthing.cli.demo_tasks.{module}"), name)()
    except ImportError as missing:
        raise LoadFailed(
            f"the inputs of `{sample}` are prepared with `{missing.name}`, which is not installed",
            hint="pip install 'farthing[samples]'",
        ) from missing
    return task
