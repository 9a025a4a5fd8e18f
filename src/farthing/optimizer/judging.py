"""Which recipes are right? Each is made, run on data that took no part in making it, and held against the original.

How far answers may move, and how that is measured, is `optimizer.agreement`'s.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from farthing.engines.contract import Executable
from farthing.optimizer.agreement import Drop, OutputError, chosen_metric, drop, is_same, output_errors, samples_needed
from farthing.optimizer.loaded import Loaded
from farthing.optimizer.machine import cpu_flags
from farthing.optimizer.plan import Tried
from farthing.optimizer.quantise import is_available, layers_of, prepare, quantise
from farthing.optimizer.recipes import ALIKE, ROWS, STATIC, Artefact, Recipe, original_of, recipes_for, rest_for
from farthing.optimizer.samples import Samples
from farthing.optimizer.sensitivity import STEPS, damage, parts_of, worst_first
from farthing.optimizer.timing import answers
from farthing.optimizer.watch import Watch
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput
from farthing.types.tensors import Tensor

TIME_SHARE: Final = 0.6
"""Of the search: when judging ends, whoever was not judged yet is out."""

RUN_SHARE: Final = 0.04
"""Of the search: what one run over the judging data may take; data beyond that are not looked at."""

SENSITIVITY_SAMPLES: Final = 16
"""Calibrate each trial of a part, and show what it does."""

ROWS_JUDGED: Final = 8
"""Of a batch, while judging."""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe that is right, and how right."""

    recipe: Recipe
    file: Path
    drop: Drop | None
    """None: the same answers but for the order of sums."""
    errors: tuple[OutputError, ...]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan must keep to."""

    answer_ms_max: float | None = None
    """How long the answer to a request may take that comes at the worst moment, milliseconds; None: any time."""
    drop_max: float = 0.005
    """How much of the metric may be lost, in parts of 1, with 95 % confidence."""
    metric: str = "auto"
    """One of `agreement.METRICS`."""


class Judging:
    """Judges all recipes of one model, once."""

    def __init__(
        self,
        loaded: Loaded,
        engine: str,
        cores: int,
        target: Target,
        calibration: Samples,
        samples: Samples,
        *,
        has_batch_axis: bool,
        scratch: Path,
        watch: Watch,
    ) -> None:
        self._loaded = loaded
        self._engine = engine
        self._cores = cores
        self._target = target
        self._calibration = calibration
        self._samples = samples
        self._has_batch_axis = has_batch_axis
        self._scratch = scratch
        self._watch = watch
        self._truth: dict[str, Tensor] = {}
        self._metric = ""
        self._order: list[tuple[str, ...]] = []
        """Parts of the network, those that int8 hurts most first; empty until somebody asks."""
        self._failed: list[tuple[float, Recipe]] = []
        """Int8 recipes that lose too much, and how much."""
        self.judged: dict[str, Judged] = {}
        """Recipes that are right, by name."""
        self.tried: list[Tried] = []
        """The others, with the reason."""
        self.rows_max = 1
        """Rows that may share a run."""

    def run(self) -> None:
        """Fills `judged` and `tried`. Raises `InvalidInput` where the original itself cannot be judged."""
        recipe = original_of(self._engine)
        original = self._loaded.load(recipe, self._cores)
        self._watch.say("running the model as it is")
        self.rows_max = self._most_rows(original)
        self._limit_samples(original)
        self._truth = self._answers(original)
        for name, output in self._truth.items():
            if np.issubdtype(output.dtype, np.floating) and not np.isfinite(output).all():
                raise InvalidInput(
                    f"output `{name}` of the model as it is has NaN or infinite values on these data",
                    hint="nothing can be held against that; check the data's scale",
                )
        self._metric = chosen_metric(self._target.metric, self._truth, self._samples.labels)
        if self._samples.labels is not None:
            drop(self._metric, self._truth, self._truth, self._samples.labels)  # labels that cannot be used: say so now
        errors = output_errors(self._truth, self._truth)
        self.judged[recipe.name] = Judged(recipe=recipe, file=self._loaded.model, drop=None, errors=errors)
        for candidate in recipes_for(self._loaded.model, self._engine, cpu_flags(), can_quantise=is_available())[1:]:
            twin = self._twin(candidate)
            if twin:
                self.tried.append(Tried(name=candidate.name, out=f"no faster than {twin}, which is right"))
            else:
                self._try(candidate)
        if self._failed and not any(one.recipe.artefact in STATIC for one in self.judged.values()):
            self._try_mixed()

    def _twin(self, recipe: Recipe) -> str:
        """A recipe that is right and differs from this one in numbers, not in operations; empty if there is none."""
        if recipe.artefact not in ALIKE:
            return ""
        return next(
            (
                one.recipe.name
                for one in self.judged.values()
                if one.recipe.engine == recipe.engine and one.recipe.artefact in ALIKE
            ),
            "",
        )

    def _try_mixed(self) -> None:
        """Where int8 throughout is wrong: leaves more and more of the layers in float that it hurts most."""
        least, best = min(self._failed, key=lambda pair: (pair[1].artefact not in STATIC, pair[0]))
        if least <= self._target.drop_max:
            return  # it may be right already; with so few samples nothing that moves can be shown to be
        engines = [recipe.engine for _, recipe in self._failed if recipe.artefact == best.artefact]
        kinds = [(engine, rest_for(engine, cpu_flags())) for engine in engines]
        for count in STEPS:
            recipes = [
                Recipe(engine=engine, precision="int8", artefact=best.artefact, parts_in_float=count, rest=rest)
                for engine, rest in kinds
            ]
            for recipe in recipes:
                self._try(recipe)
            if any(recipe.name in self.judged for recipe in recipes):
                return

    def _try(self, recipe: Recipe) -> None:
        tried = Tried(name=recipe.name, out="there was no time to judge it")
        if not self._watch.is_over(TIME_SHARE):
            try:
                found = self._judge(recipe)
            except FarthingError as error:
                tried = Tried(name=recipe.name, out=str(error).partition("\n")[0])
            else:
                if isinstance(found, Judged):
                    self.judged[recipe.name] = found
                    return
                tried = found
                self._loaded.keep(lambda place: place[0] != recipe.name)
        self.tried.append(tried)

    def _judge(self, recipe: Recipe) -> Judged | Tried:
        if recipe.file not in self._loaded.files:
            self._watch.say(f"making {recipe.name}")
            self._loaded.files[recipe.file] = self._make(recipe)
        self._watch.say(f"judging {recipe.name}")
        given = self._answers(self._loaded.load(recipe, self._cores))
        for name, output in self._truth.items():
            if given[name].shape != output.shape:
                raise EngineFailed(f"output `{name}` has shape {list(given[name].shape)}, not {list(output.shape)}")
        errors = output_errors(self._truth, given)
        bad = [error.output for error in errors if error.bad_values]
        if bad:
            raise EngineFailed(f"output `{bad[0]}` has NaN or infinite values")
        file = self._loaded.files[recipe.file]
        if is_same(errors):
            return Judged(recipe=recipe, file=file, drop=None, errors=errors)
        lost = drop(self._metric, self._truth, given, self._samples.labels)
        if lost.upper <= self._target.drop_max:
            return Judged(recipe=recipe, file=file, drop=lost, errors=errors)
        if recipe.artefact:
            self._failed.append((lost.mean, recipe))
        allowed = f"{self._target.drop_max:.2%}"
        why = f"loses {lost.mean:.2%} of {lost.metric}, perhaps {lost.upper:.2%}; allowed: {allowed}"
        needed = samples_needed(self._target.drop_max)
        if lost.mean <= self._target.drop_max and lost.samples < needed:
            why += f"; {lost.samples} samples cannot show less, {needed} might"
        return Tried(name=recipe.name, drop=lost.mean, drop_upper=lost.upper, out=why)

    def _make(self, recipe: Recipe) -> Path:
        prepared = self._scratch / "prepared.onnx"
        if not prepared.exists():
            prepare(self._loaded.model, self._scratch)
        kept: list[str] = []
        if recipe.parts_in_float:
            if not self._order:
                self._order = self._rank_parts(prepared, recipe.artefact)
            kept = [node for part in self._order[: recipe.parts_in_float] for node in part]
        made = self._scratch / f"{recipe.artefact}-{recipe.parts_in_float}" / "model.onnx"
        made.parent.mkdir(exist_ok=True)
        quantise(prepared, recipe.artefact, self._calibration, made, has_batch_axis=self._has_batch_axis, keep=kept)
        return made

    def _rank_parts(self, prepared: Path, artefact: Artefact) -> list[tuple[str, ...]]:
        """Parts of the network, those that int8 hurts most first."""
        parts = parts_of(layers_of(prepared))
        some = self._calibration.take(np.arange(min(SENSITIVITY_SAMPLES, len(self._calibration))))
        truth = self._answers_of(prepared, some)
        file = self._scratch / "part" / "model.onnx"
        file.parent.mkdir(exist_ok=True)
        damages = []
        for number, part in enumerate(parts):
            self._watch.say(f"asking what int8 does to part {number + 1} of {len(parts)}")
            others = [node for other in parts if other is not part for node in other]
            quantise(prepared, artefact, some, file, has_batch_axis=self._has_batch_axis, keep=others)
            damages.append(damage(truth, self._answers_of(file, some)))
        return [parts[at] for at in worst_first(damages)]

    def _answers_of(self, file: Path, samples: Samples) -> dict[str, Tensor]:
        executable = self._loaded.load_file(file, "onnxruntime", self._cores)
        try:
            return answers(executable, samples, rows=1, has_batch_axis=self._has_batch_axis)
        finally:
            executable.close()

    def _answers(self, executable: Executable) -> dict[str, Tensor]:
        rows = min(ROWS_JUDGED, self.rows_max)
        return answers(executable, self._samples, rows=rows, has_batch_axis=self._has_batch_axis)

    def _most_rows(self, original: Executable) -> int:
        """How many rows may share a run: asked by running some together and alone."""
        if not self._has_batch_axis:
            return 1
        probe = self._samples.take(np.arange(min(3, len(self._samples))))
        try:
            together = answers(original, probe, rows=len(probe), has_batch_axis=True)
            alone = answers(original, probe, rows=1, has_batch_axis=True)
        except FarthingError:
            return 1
        is_same_alone = _are_near(together, alone)
        return (original.batch_rows_max or ROWS[-1]) if is_same_alone else 1

    def _limit_samples(self, original: Executable) -> None:
        """Looks at no more data than there is time for."""
        first = self._samples.take(np.arange(min(4, len(self._samples))))
        before = time.monotonic()
        answers(original, first, rows=1, has_batch_axis=self._has_batch_axis)
        each_s = (time.monotonic() - before) / len(first)
        most = max(2, int(self._watch.budget_s * RUN_SHARE / max(each_s, 1e-9)))
        if most < len(self._samples):
            self._samples = self._samples.take(np.arange(most))


def _are_near(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether rows depend on nothing but themselves: far more room than the order of sums needs, far less than a
    model that mixes its rows takes."""
    for name, other in others.items():
        if not np.issubdtype(other.dtype, np.number) or not other.size:
            continue
        largest = float(np.nan_to_num(np.abs(other.astype(np.float64))).max())
        if not np.allclose(some[name], other, rtol=1e-2, atol=1e-6 + 1e-3 * largest):
            return False
    return True
