"""What each sample model is for: real inputs, what to do before and after the model, and the right answer.

One file a task. They talk to any server through `task.Infers`, so the demo, tests and benches use the same ones.
Serving, timing and printing belong to `cli.demo`.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Final, NamedTuple

from farthing.cli.demo_tasks.task import Finding, Infers, Task
from farthing.types.errors import LoadFailed, NotFound

__all__ = ["DEFAULT_TASKS", "TASKS", "Finding", "Infers", "Task", "task_named"]


class Entry(NamedTuple):
    place: str
    """File and class of the task."""
    inputs: tuple[str, ...] = ()
    """Sample inputs it reads (`repository.samples.INPUTS`)."""


TASKS: Final = {
    "effnet-lite0": Entry("pictures:Pictures", ("photographs",)),
    "minilm-l6": Entry("sentences:Sentences"),
    "ppocr-v4": Entry("page:Page", ("photographs",)),
    "silero-vad": Entry("voice:Voice", ("telephone-call",)),
    "magika": Entry("file_types:FileTypes", ("photographs", "telephone-call")),
    "wdbc-gbdt": Entry("diagnosis:Diagnosis"),
    "movielens-dlrm": Entry("films:Films"),
    "smollm2-135m": Entry("conversation:Conversation"),
    "centerface": Entry("faces:Faces", ("photographs",)),
    "basic-pitch": Entry("notes:Notes"),
    "nanodet-g": Entry("objects:Objects", ("photographs",)),
}
"""Sample -> its task, in the order the demo shows them; not imported until wanted, since each needs libraries."""

DEFAULT_TASKS: Final[Sequence[str]] = tuple(name for name in TASKS if name != "nanodet-g")
"""NanoDet is left out unless asked for: its package is a 145 MB download for 15 MB of model."""


def task_named(sample: str) -> Task:
    """The task for that sample, its inputs read. Raises `NotFound` listing those there are."""
    if sample not in TASKS:
        raise NotFound(f"no task for sample `{sample}`; tasks: {', '.join(TASKS)}")
    module, name = TASKS[sample].place.split(":")
    try:
        task: Task = getattr(import_module(f"farthing.cli.demo_tasks.{module}"), name)()
    except ImportError as missing:
        raise LoadFailed(
            f"the inputs of `{sample}` are prepared with `{missing.name}`, which is not installed",
            hint="pip install 'farthing[samples]'",
        ) from missing
    return task
