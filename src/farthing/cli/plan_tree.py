"""The decision tree of a plan on a terminal: engines, their recipes, how fast each is, and why it is out."""

from typing import TYPE_CHECKING, Final

from farthing.cli.plan_steps import Branch, branches, recipe_of

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from farthing.optimizer.plan import Plan, Tried

BAR: Final = 24
"""Characters of the longest bar."""

SETTINGS_SHOWN: Final = 3
"""Of the winner's recipe, beside the winner; all are in `plan.toml` and on the page."""


def tree_of(plan: "Plan", name: str) -> "Tree":
    """To be printed by rich."""
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(f"{name}: {len(plan.tried)} candidates", style="bold"), guide_style="dim")
    found = branches(plan)
    most = max((branch.best.rows_per_s for branch in found if branch.best), default=1.0)
    wide = max((len(_rest(branch.recipe)) for branch in found), default=0)
    engines: dict[str, list[Branch]] = {}
    for branch in found:
        engines.setdefault(branch.recipe.partition(" ")[0], []).append(branch)
    for engine, ones in engines.items():
        node = root.add(Text(engine, style="bold"))
        for branch in ones:
            leaf = node.add(_line(branch, plan, most, wide))
            if branch.best is not None and not branch.out:
                for one in _others(plan, branch):
                    leaf.add(
                        Text(f"{one.name[len(branch.recipe) + 2 :]}: {one.rows_per_s:,.0f}/s, {one.out}", style="dim")
                    )
    return root


def _line(branch: Branch, plan: "Plan", most: float, wide: int) -> "Text":
    from rich.text import Text

    name = _rest(branch.recipe).ljust(wide)
    if branch.best is None:
        return Text.assemble(("✗ ", "red"), name, "  ", (branch.out, "dim"))
    is_chosen = not branch.out
    mark, style = ("★ ", "bold green") if is_chosen else ("✓ ", "")
    times = f"x {branch.best.rows_per_s / plan.default_rows_per_s:.1f}" if plan.together is None else ""
    setting = branch.best.name[len(branch.recipe) + 2 :]
    lost = f", loses at most {branch.drop_upper:.2%}" if branch.drop_upper else ""
    return Text.assemble(
        (mark, style or "green"),
        (name, style),
        "  ",
        ("█" * max(1, round(BAR * branch.best.rows_per_s / most)), "green" if is_chosen else "blue"),
        (f" {branch.best.rows_per_s:,.0f}/s {times}", style),
        (f"  {setting}{lost}; {'chosen' if is_chosen else branch.out}", "dim"),
    )


def _others(plan: "Plan", branch: Branch) -> "list[Tried]":
    same = [one for one in plan.tried if one.turns and one.out and recipe_of(one) == branch.recipe]
    return sorted(same, key=lambda one: -one.rows_per_s)[:SETTINGS_SHOWN]


def _rest(recipe: str) -> str:
    return recipe.partition(" ")[2]
