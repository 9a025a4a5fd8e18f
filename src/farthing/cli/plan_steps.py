"""What a plan says of how it came about: what each step gained, which recipe did how well, why the winner won. Pure.

How that looks is `plan_told`'s, `plan_tree`'s and `plan_page`'s.
"""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from farthing.optimizer.plan import Plan, Tried

_SETTING: Final = re.compile(r", \d+ x ")
"""Where in a candidate's name its recipe ends."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One change on the way from the model as it came to the plan."""

    what: str
    setting: str
    rows_per_s: float
    gain: float
    """Times the step before; 1 for the first."""


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe, and how far it came."""

    recipe: str
    best: "Tried | None"
    """Its fastest setting within the target, else its fastest; None if it was not timed."""
    settings: int
    """Timed."""
    out: str
    """Why it is not the plan's; empty for the one that is."""
    drop_upper: float
    drop: float


def recipe_of(one: "Tried") -> str:
    """The recipe of a candidate."""
    return one.recipe or _SETTING.split(one.name)[0]


def chosen(plan: "Plan") -> "Tried | None":
    """The winner."""
    return next((one for one in plan.tried if one.turns and not one.out), None)


def default(plan: "Plan") -> "Tried | None":
    """The model as it came."""
    return next((one for one in plan.tried if one.turns and one.name == plan.default), None)


def branches(plan: "Plan") -> list[Branch]:
    """All recipes, those that were timed first, the fastest first."""
    won = chosen(plan)
    known: dict[str, list[Tried]] = {}
    for one in plan.tried:
        known.setdefault(recipe_of(one), []).append(one)
    found = []
    for recipe, ones in known.items():
        timed = [one for one in ones if one.turns]
        best = won if won is not None and recipe_of(won) == recipe else _best(timed, plan)
        told = best or ones[0]
        found.append(
            Branch(
                recipe=recipe,
                best=best,
                settings=len(timed),
                out=told.out,
                drop=told.drop,
                drop_upper=told.drop_upper,
            )
        )
    found.sort(key=lambda b: -b.best.rows_per_s if b.best else 0.0)
    return found


def steps(plan: "Plan") -> list[Step]:
    """From the model as it came: spread over the machine and batched, by another engine, in another precision."""
    begin, won = default(plan), chosen(plan)
    if begin is None or won is None:
        return []
    original, recipe = recipe_of(begin), recipe_of(won)
    engine = recipe.partition(" ")[0]
    path = [("as it came", begin)]
    timed = [one for one in plan.tried if one.turns]
    spread = won if recipe == original else _best([one for one in timed if recipe_of(one) == original], plan)
    if spread is not None and spread.name != begin.name:
        path.append((_spread_in_words(begin, spread), spread))
    if engine != original.partition(" ")[0]:
        floats = [one for one in timed if recipe_of(one).startswith(f"{engine} f32")]
        other = won if won in floats else _best(floats, plan)
        if other is not None:
            path.append((f"by {engine}", other))
    if path[-1][1].name != won.name:
        path.append((f"as {recipe.partition(' ')[2]}", won))
    told = [Step(what=path[0][0], setting=begin.name, rows_per_s=begin.rows_per_s, gain=1.0)]
    for (_, before), (what, one) in pairwise(path):
        told.append(
            Step(what=what, setting=one.name, rows_per_s=one.rows_per_s, gain=one.rows_per_s / before.rows_per_s)
        )
    return told


def why(plan: "Plan") -> str:
    """Why the winner won, in a sentence."""
    won = chosen(plan)
    if won is None:
        return ""
    if won.name == plan.default:
        return "nothing beat the model as it came beyond the noise, so it stays as it is"
    others = [
        one for one in plan.tried if one.turns and one.name not in (won.name, plan.default) and _is_able(one, plan)
    ]
    faster = [one for one in others if one.rows_per_s > won.rows_per_s]
    if faster:
        return (
            f"{len(faster)} other{'s are' if len(faster) > 1 else ' is'} as fast within the noise, and it loses least "
            "and answers soonest"
        )
    other = next((b for b in branches(plan) if b.best is not None and b.recipe != recipe_of(won)), None)
    if other is None or other.best is None:
        return "it is the fastest setting of the one recipe that is right"
    ahead = won.rows_per_s / other.best.rows_per_s - 1
    return f"it is {ahead:.0%} ahead of the next recipe, {other.recipe}, and within all bounds"


def front(plan: "Plan") -> "list[Tried]":
    """Those that nothing else beats in speed, time to answer and truth together, the soonest answer first.

    Dollars go with speed: a million rows cost what the machine costs for as long as they take.
    """
    from farthing.optimizer.race import front as best_of

    timed = {one.name: one for one in plan.tried if one.turns}
    names = best_of({name: (-one.rows_per_s, one.answer_ms, one.drop_upper) for name, one in timed.items()})
    return sorted((timed[name] for name in names), key=lambda one: (one.answer_ms, one.drop_upper))


def _best(timed: "Iterable[Tried]", plan: "Plan") -> "Tried | None":
    return max(timed, key=lambda one: (_is_able(one, plan), one.rows_per_s), default=None)


def _is_able(one: "Tried", plan: "Plan") -> bool:
    return plan.answer_ms_max is None or one.answer_ms <= plan.answer_ms_max


def _spread_in_words(begin: "Tried", one: "Tried") -> str:
    """Such as `2 x 1 thread, batches of 8 rows`."""
    before, after = (_SETTING.split(t.name, maxsplit=1)[-1] for t in (begin, one))
    wide = one.name[len(recipe_of(one)) + 2 :].partition(", ")
    was = begin.name[len(recipe_of(begin)) + 2 :].partition(", ")
    said = [wide[0]] if wide[0] != was[0] else []
    said += [f"batches of {wide[2]}"] if wide[2] != was[2] else []
    return ", ".join(said) if before != after else "as it came"
