"""What could be made of a model: an engine, a precision, a file.

A recipe changes answers or it does not; how fast it runs depends on its *setting* too (threads, instances, rows of a
batch), which changes nothing. So recipes are judged once, and only settings of recipes that are right are timed. What
quantised files hold belongs to `optimizer.quantise`, what is timed when to `optimizer.race`.
"""

import importlib.util
from pathlib import Path
from typing import Final, Literal

import msgspec

from farthing.optimizer.sensitivity import PARTS

ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Batches tried, for as long as they gain: networks are best at 4 to 16 rows on a CPU, trees at hundreds."""

Artefact = Literal["", "int8_minmax", "int8_entropy", "int8_percentile", "int8_smooth", "int8_dynamic"]
"""What is made of the file; empty: it is used as it is."""


STATIC: Final[tuple[Artefact, ...]] = ("int8_smooth", "int8_minmax", "int8_percentile", "int8_entropy")
"""Those whose activations are calibrated; both engines have integer kernels for them."""


ALIKE: Final[tuple[Artefact, ...]] = ("int8_minmax", "int8_percentile", "int8_entropy")
"""Those that differ in numbers alone and run equally fast: once one is right, the others are not looked at."""

BF16: Final = frozenset({"avx512_bf16", "amx_bf16"})


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """One way to compute a model's answers."""

    engine: str
    """As `backend` in a model's configuration."""
    precision: Literal["f32", "bf16", "int8"]
    artefact: Artefact = ""
    parts_in_float: int = 0
    """Of `optimizer.sensitivity.PARTS`: those that int8 hurts most."""
    rest: Literal["f32", "bf16"] = "f32"
    """What those parts, and all that int8 leaves alone, are computed in."""

    @property
    def name(self) -> str:
        """Such as `openvino int8 (entropy)`."""
        _, _, kind = self.artefact.partition("_")
        if self.parts_in_float:
            kind += f", {self.parts_in_float} of {PARTS} parts {'float' if self.rest == 'f32' else self.rest}"
        return f"{self.engine} {self.precision}" + (f" ({kind})" if kind else "")

    @property
    def file(self) -> tuple[Artefact, int]:
        """Recipes that agree in this run the same file."""
        return self.artefact, self.parts_in_float

    @property
    def parameters(self) -> dict[str, str]:
        """The engine's own knobs."""
        return {"precision": "bf16"} if self.engine == "openvino" and "bf16" in (self.precision, self.rest) else {}


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe, and how many of it run how wide."""

    recipe: Recipe
    threads: int
    """Of one instance."""
    instances: int
    rows: int
    """Of a batch."""

    @property
    def name(self) -> str:
        """Such as `openvino f32, 2 x 1 thread, 8 rows`."""
        wide = f"{self.threads} thread" + ("s" if self.threads != 1 else "")
        rows = f"{self.rows} row" + ("s" if self.rows != 1 else "")
        return f"{self.recipe.name}, {self.instances} x {wide}, {rows}"


def original_of(engine: str) -> Recipe:
    """The model as it came: what all others are held against."""
    return Recipe(engine=engine, precision="f32")


def recipes_for(path: Path, engine: str, cpu_flags: frozenset[str], *, can_quantise: bool) -> list[Recipe]:
    """All that make sense for this file on this processor, the original first, those that risk most last."""
    recipes = [original_of(engine)]
    if engine not in ("onnxruntime", "openvino"):
        return recipes
    is_onnx = path.suffix.lower() == ".onnx"
    engines = ["onnxruntime"] if is_onnx else []
    if importlib.util.find_spec("openvino") is not None:
        engines.append("openvino")
        recipes += [Recipe(engine="openvino", precision="f32")] if engine != "openvino" else []
        if cpu_flags & BF16:
            recipes.append(Recipe(engine="openvino", precision="bf16"))
    if is_onnx and can_quantise:
        recipes += [Recipe(engine=e, precision="int8", artefact=artefact) for artefact in STATIC for e in engines]
        recipes.append(Recipe(engine="onnxruntime", precision="int8", artefact="int8_dynamic"))
    return recipes


def rest_for(engine: str, cpu_flags: frozenset[str]) -> Literal["f32", "bf16"]:
    """What layers are left in that int8 hurts: of the faster kinds of float the engine has, bf16."""
    return "bf16" if engine == "openvino" and cpu_flags & BF16 else "f32"


def settings_of(recipe: Recipe, cores: int, *, rows_max: int) -> list[Setting]:
    """Ways to spread it over the machine: wide and one at a time, or narrow and many, and between."""
    shapes = []
    threads = cores
    while threads >= 1:
        shapes.append((threads, max(1, cores // threads)))
        threads //= 2
    return [
        Setting(recipe=recipe, threads=threads, instances=instances, rows=rows)
        for threads, instances in shapes
        for rows in ROWS
        if rows <= max(1, rows_max)
    ]
