"""What could be made of a model: an engine, a precision, a file.

A recipe changes answers or it does not; how fast it runs depends on its *setting* too (threads, instances, rows of a
batch), which changes nothing. So recipes are judged once, and only settings of recipes that are right are timed.

`CATALOGUE` lists the recipes, each with what it needs of a model and of the machine. What the files hold belongs to
`optimizer.graphs`, `quantise` and `weights`; what is timed when to `optimizer.race`.
"""

from collections.abc import Callable, Iterable
from typing import Final, Literal

import msgspec

from farthing.optimizer.sensitivity import PARTS

ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Batches tried, for as long as they gain: networks are best at 4 to 16 rows on a CPU, trees at hundreds."""

Artefact = Literal[
    "",
    "clean",
    "ir",
    "int8_minmax",
    "int8_entropy",
    "int8_percentile",
    "int8_smooth",
    "int8_dynamic",
    "int8_weights",
    "int4_weights",
]
"""What is made of the file; empty: it is used as it is. Most are made of the clean one, `ir` where there is one."""


STATIC: Final[tuple[Artefact, ...]] = ("int8_smooth", "int8_minmax", "int8_percentile", "int8_entropy")
"""Those whose activations are calibrated; both engines have integer kernels for them."""

Precision = Literal["f32", "bf16", "int8", "int4"]


ALIKE: Final[tuple[Artefact, ...]] = ("int8_minmax", "int8_percentile", "int8_entropy")
"""Those that differ in numbers alone and run equally fast: once one is right, the others are not looked at."""

BF16: Final = frozenset({"avx512_bf16", "amx_bf16"})


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """One way to compute a model's answers."""

    engine: str
    """As `backend` in a model's configuration."""
    precision: Precision
    artefact: Artefact = ""
    parts_in_float: int = 0
    """Of `optimizer.sensitivity.PARTS`: those that int8, or bf16 in an `ir`, hurts most."""
    rest: Literal["f32", "bf16"] = "f32"
    """What those parts, and all that int8 leaves alone, are computed in."""
    variant: Literal["", "plain layout", "xgboost", "compiled"] = ""
    """A way of the engine's own to run the same file; empty: its usual one."""

    @property
    def name(self) -> str:
        """Such as `openvino int8 (entropy)`."""
        kind = self.artefact.rpartition("_")[2]
        kinds = [kind] if kind and kind != "ir" else []
        if self.parts_in_float:
            kinds.append(f"{self.parts_in_float} of {PARTS} parts {'float' if self.rest == 'f32' else self.rest}")
        if self.variant:
            kinds.append(self.variant)
        return f"{self.engine} {self.precision}" + (f" ({', '.join(kinds)})" if kinds else "")

    @property
    def file(self) -> tuple[Artefact, int]:
        """Recipes that agree in this run the same file."""
        return self.artefact, self.parts_in_float

    @property
    def parameters(self) -> dict[str, str]:
        """The engine's own knobs."""
        if self.engine == "openvino" and "bf16" in (self.precision, self.rest):
            return {"precision": "bf16"}
        if self.variant == "plain layout":
            return {"layout": "plain"}
        return {"runtime": self.variant} if self.variant else {}


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


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe may depend on."""

    engine: str
    """That runs the model as it came."""
    form: str
    """Of its file: `onnx`, `openvino`, `lightgbm`, `xgboost`, or whatever else its engine calls it."""
    operators: frozenset[str] = frozenset()
    """Of an ONNX file, by their types; empty for others."""
    cpu_flags: frozenset[str] = frozenset()
    packages: frozenset[str] = frozenset()
    """Installed, of those that recipes need."""
    is_cleaned: bool = False
    """Whether cleaning its graph has changed anything."""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the catalogue."""

    recipe: Recipe
    why: str
    """What it might gain."""
    loads: Callable[[Facts], bool]
    """Whether it is for such a model at all."""
    packages: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()
    """Of the processor; one of these is enough."""
    extra: str = "optimize"
    """Of `pip install farthing[...]`, which brings the packages."""

    def lacks(self, facts: Facts) -> str:
        """What is missing here, in words; empty if nothing is."""
        missing = [name for name in self.packages if name not in facts.packages]
        if missing:
            return f"needs {' and '.join(missing)}: pip install 'farthing[{self.extra}]'"
        if self.flags and not self.flags & facts.cpu_flags:
            return f"this processor has no {' or '.join(sorted(self.flags))}"
        return ""


def _is_onnx(facts: Facts) -> bool:
    return facts.form == "onnx"


def _is_network(facts: Facts) -> bool:
    return facts.form in ("onnx", "openvino")


def _is_cleaned(facts: Facts) -> bool:
    return _is_onnx(facts) and facts.is_cleaned


def _has_weights(facts: Facts) -> bool:
    return _is_onnx(facts) and bool(facts.operators & {"Conv", "Gemm", "MatMul"})


def _has_matrices(facts: Facts) -> bool:
    return _is_onnx(facts) and bool(facts.operators & {"Gemm", "MatMul"})


def _has_layout(facts: Facts) -> bool:
    return facts.engine == "onnxruntime" and "Conv" in facts.operators


def _is_forest_of(*forms: str) -> Callable[[Facts], bool]:
    return lambda facts: facts.engine == "trees" and facts.form in forms


def _recipe(engine: str, precision: Precision, artefact: Artefact = "", **more: str) -> Recipe:
    return msgspec.convert({"engine": engine, "precision": precision, "artefact": artefact, **more}, Recipe)


CATALOGUE: Final = (
    Way(
        recipe=_recipe("openvino", "f32"),
        why="another engine, other kernels and fusions",
        loads=lambda facts: _is_network(facts) and not facts.is_cleaned,
        packages=("openvino",),
    ),
    Way(
        recipe=_recipe("onnxruntime", "f32", "clean"),
        why="constants folded, dead parts cut, shapes fixed where nothing else fits",
        loads=_is_cleaned,
        packages=("onnx",),
    ),
    Way(
        recipe=_recipe("openvino", "f32", "clean"),
        why="another engine, on the cleaned graph",
        loads=_is_cleaned,
        packages=("onnx", "openvino"),
    ),
    Way(
        recipe=_recipe("onnxruntime", "f32", variant="plain layout"),
        why="channels as they are: blocks of them can cost more than they gain",
        loads=_has_layout,
    ),
    Way(
        recipe=_recipe("openvino", "bf16"),
        why="half the bytes, twice the products a cycle",
        loads=_is_network,
        packages=("openvino",),
        flags=BF16,
    ),
    *(
        Way(
            recipe=_recipe(engine, "int8", artefact),
            why="integer kernels, ranges of activations by " + artefact.partition("_")[2],
            loads=_has_matrices if artefact == "int8_smooth" else _has_weights,
            packages=("onnx",) if engine == "onnxruntime" else ("onnx", "openvino"),
        )
        for artefact in STATIC
        for engine in ("onnxruntime", "openvino")
    ),
    Way(
        recipe=_recipe("onnxruntime", "int8", "int8_dynamic"),
        why="integer matrix products, ranges found at each run",
        loads=_has_matrices,
        packages=("onnx",),
    ),
    Way(
        recipe=_recipe("onnxruntime", "int8", "int8_weights"),
        why="a quarter of the weight bytes, scaled in blocks of 32",
        loads=_has_matrices,
        packages=("onnx",),
    ),
    Way(
        recipe=_recipe("onnxruntime", "int4", "int4_weights"),
        why="an eighth of the weight bytes, scaled in blocks of 32",
        loads=_has_matrices,
        packages=("onnx",),
    ),
    Way(
        recipe=_recipe("openvino", "int4", "int4_weights"),
        why="an eighth of the weight bytes, scaled in blocks of 32",
        loads=_has_matrices,
        packages=("onnx", "openvino"),
    ),
    Way(
        recipe=_recipe("trees", "f32", variant="compiled"),
        why="trees as machine code, not as tables",
        loads=_is_forest_of("xgboost", "lightgbm"),
        packages=("llvmlite",),
        extra="trees",
    ),
    Way(
        recipe=_recipe("trees", "f32", variant="xgboost"),
        why="XGBoost itself, which is fastest for many rows at once",
        loads=_is_forest_of("xgboost"),
        packages=("xgboost",),
        extra="trees",
    ),
)
"""All recipes beside the model as it came, those that risk most last."""

PACKAGES: Final = frozenset(name for way in CATALOGUE for name in way.packages)


def original_of(engine: str) -> Recipe:
    """The model as it came: what all others are held against."""
    return Recipe(engine=engine, precision="f32")


def ways_for(facts: Facts) -> list[Way]:
    """The lines of the catalogue that are for this model, whether or not something is missing for them."""
    original = original_of(facts.engine)
    return [way for way in CATALOGUE if way.recipe != original and way.loads(facts)]


def no_faster(recipe: Recipe, right: Iterable[Recipe]) -> str:
    """Which of those that are right differs from this one in numbers, not in operations, in words; empty: none."""
    alike = [other.name for other in right if other.engine == recipe.engine and other.artefact in ALIKE]
    return f"no faster than {alike[0]}, which is right" if alike and recipe.artefact in ALIKE else ""


def mixed(artefact: Artefact, engine: str, parts_in_float: int, cpu_flags: frozenset[str]) -> Recipe:
    """Int8 but for the layers it hurts, and those in the fastest kind of float that the engine has here."""
    rest: Literal["f32", "bf16"] = "bf16" if engine == "openvino" and cpu_flags & BF16 else "f32"
    return Recipe(engine=engine, precision="int8", artefact=artefact, parts_in_float=parts_in_float, rest=rest)


def mostly_bf16(parts_in_float: int) -> Recipe:
    """Bf16 but for the layers it hurts."""
    return Recipe(engine="openvino", precision="bf16", artefact="ir", parts_in_float=parts_in_float)


def settings_of(recipe: Recipe, cores: int, *, rows_max: int) -> list[Setting]:
    """Ways to spread it over the machine: wide and one at a time, or narrow and many, and between."""
    return [
        Setting(recipe=recipe, threads=threads, instances=instances, rows=rows)
        for threads, instances in shapes_of(cores)
        for rows in ROWS
        if rows <= max(1, rows_max)
    ]


def shapes_of(cores: int) -> list[tuple[int, int]]:
    """Threads of an instance and instances that fill so many cores."""
    shapes = []
    threads = cores
    while threads >= 1:
        shapes.append((threads, max(1, cores // threads)))
        threads //= 2
    return shapes
