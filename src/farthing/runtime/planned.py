"""A model's plan, where it has one that holds here: what `farthing optimize` found, carried out at loading.

What the operator configured stands before any plan: a configuration that names an engine, instances or an engine's
parameters is obeyed, and the plan not looked at. A plan that does not hold (another machine, another version of an
engine, another model file) is said to be stale, once a load, and the model is served as if there were none.
"""

import logging
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from farthing.config.model import ModelConfig
from farthing.optimizer.machine import Machine, this_machine
from farthing.optimizer.plan import Plan, folder_of, read_plan, stale
from farthing.types.errors import FarthingError

log: Final = logging.getLogger(__name__)


class Planned(msgspec.Struct, frozen=True):
    """How to load a model."""

    path: Path
    """The file to run: the plan's own, or the model's."""
    plan: Plan | None


def planned(name: str, path: Path, config: ModelConfig) -> Planned:
    """What the plan of the model file `path` says, if there is one and nothing speaks against it."""
    as_it_is = Planned(path, None)
    if not folder_of(path).is_dir():
        return as_it_is
    if config.backend or config.platform or config.instance_group or config.parameters:
        log.info("the plan of model `%s` is not looked at: its configuration says how to run it", name)
        return as_it_is
    try:
        plan = read_plan(path)
        why = stale(plan, path, _machine()) if plan is not None else ""
        cut = plan is not None and plan.asked.outputs
        missing = [output.name for output in config.output if cut and output.name not in cut]
        if missing:
            why = f"output `{missing[0]}`, which is configured, was not asked for when it was made"
    except (FarthingError, OSError) as error:
        plan, why = None, str(error).partition("\n")[0]
    if plan is None or why:
        if why:
            log.warning(
                "the plan of model `%s` is stale: %s; served without it; `farthing optimize %s --remeasure` mends that",
                name, why, path,
            )  # fmt: skip
        return as_it_is
    log.info(
        "model `%s` runs as planned: %s %s, %d x %d threads, %.1f times cheaper than by default",
        name, plan.engine, plan.precision, plan.instances, plan.threads, plan.times_cheaper,
    )  # fmt: skip
    if plan.together is not None:
        others = ", ".join(other.place for other in plan.together.others)
        log.info("model `%s` is planned to share this machine with %s", name, others)
    return Planned(folder_of(path) / plan.artefact if plan.artefact else path, plan)


@cache
def _machine() -> Machine:
    return this_machine()
