"""Which recipes are right? Each is made, run on data that took no part in making it, and held against the original.

How far answers may move, and how that is measured, is `optimizer.agreement`'s; making files is `optimizer.making`'s.
"""

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from farthing.engines.contract import Executable
from farthing.optimizer import graphs, trouble
from farthing.optimizer.agreement import Drop, OutputError, chosen_metric, drop, is_same, output_errors, samples_needed
from farthing.optimizer.custom_metric import CustomMetric
from farthing.optimizer.journal import Journal, Right, Wrong
from farthing.optimizer.loaded import Loaded
from farthing.optimizer.machine import cpu_flags
from farthing.optimizer.making import Making
from farthing.optimizer.plan import Tried
from farthing.optimizer.recipes import (
    PACKAGES,
    ROWS,
    STATIC,
    Facts,
    Recipe,
    mixed,
    mostly_bf16,
    no_faster,
    original_of,
    ways_for,
)
from farthing.optimizer.row_axes import find_axes
from farthing.optimizer.samples import Samples
from farthing.optimizer.sensitivity import STEPS
from farthing.optimizer.timing import answers
from farthing.optimizer.watch import Stopped, Watch
from farthing.types.batch_axes import BatchAxes
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput, LoadFailed
from farthing.types.tensors import Tensor

TIME_SHARE: Final = 0.6
"""Of the search: when judging ends, whoever was not judged yet is out."""

RUN_SHARE: Final = 0.04
"""Of the search: what one run over the judging data may take; data beyond that are not looked at."""

ROWS_JUDGED: Final = 8
"""Of a batch, while judging."""
HOPELESS: Final = 2
"""Times what is allowed: a file that loses so much with one engine is not judged with another."""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe that is right, and how right."""

    recipe: Recipe
    file: Path
    drop: Drop | None
    """None: the same answers but for the order of sums."""
    errors: tuple[OutputError, ...]
    why: str = ""
    """What it was hoped to gain."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan must keep to."""

    answer_ms_max: float | None = None
    """How long the answer to a request may take that comes at the worst moment, milliseconds; None: any time."""
    drop_max: float = 0.005
    """How much of the metric may be lost, in parts of 1, with 95 % confidence."""
    metric: str | Callable[..., Any] = "auto"
    """One of `agreement.METRICS`, `FILE.py:FUNCTION`, or a function as `optimizer.custom_metric` calls it."""
    outputs: tuple[str, ...] = ()
    """Those that anybody needs; the others are cut from the graph. Empty: all."""
    has_fixed_shapes: bool = False
    """Whether requests will have the shapes of the data, rows of a batch aside."""


class Judging:
    """Judges all recipes of one model, once."""

    def __init__(
        self,
        loaded: Loaded,
        engine: str,
        target: Target,
        metric: str | CustomMetric,
        calibration: Samples,
        samples: Samples,
        journal: Journal,
        watch: Watch,
        *,
        has_batch_axis: bool,
    ) -> None:
        self._loaded = loaded
        self._engine = engine
        self._target = target
        self._metric = metric
        self._samples = samples
        self._journal = journal
        self._watch = watch
        self._has_batch_axis = has_batch_axis
        self._making = Making(loaded, calibration, journal, watch, has_batch_axis=has_batch_axis)
        self._known: dict[str, Right | Wrong] = {
            **{found.recipe: found for found in journal.found(Right)},
            **{found.tried.name: found for found in journal.found(Wrong)},
        }
        """What an earlier part of the search has found."""
        self._truth: dict[str, Tensor] = {}
        self._failed: list[tuple[float, Recipe]] = []
        """Recipes of another file that lose too much, and how much."""
        self.judged: dict[str, Judged] = {}
        """Recipes that are right, by name."""
        self.tried: list[Tried] = []
        """The others, with the reason."""
        self.notes: list[str] = []
        """What people should know of the model, the data and the machine."""
        self.rows_max = 1
        """Rows that may share a run."""
        self.axes: BatchAxes | None = None
        """Along which, where the first dimensions of its tensors do not count them."""

    @property
    def metric_name(self) -> str:
        """What answers are judged by."""
        return self._metric.name if isinstance(self._metric, CustomMetric) else self._metric

    def run(self) -> None:
        """Fills `judged` and `tried`. Raises `InvalidInput` where the original itself cannot be judged."""
        recipe = original_of(self._engine)
        original = self._loaded.load(recipe, self._loaded.cores)
        self._watch.say("running the model as it is", "what its answers are, all others are held against")
        self._check_outputs(original)
        self.rows_max = self._most_rows(original)
        self._limit_samples(original)
        self._truth = self._truth_of(original)
        self._check_truth()
        self._metric = chosen_metric(self._metric, self._truth, self._samples.labels)
        drop(self._metric, self._truth, self._truth, self._samples.labels)  # what cannot be judged by: say so now
        errors, why = output_errors(self._truth, self._truth), "the model as it came"
        self.judged[recipe.name] = Judged(recipe=recipe, file=self._loaded.model, drop=None, errors=errors, why=why)
        try:
            facts = self._facts(original)
            for way in ways_for(facts):
                out = way.lacks(facts) or no_faster(way.recipe, [one.recipe for one in self.judged.values()])
                if out:
                    self.tried.append(Tried(name=way.recipe.name, out=out))
                elif not self._is_hopeless(way.recipe):
                    self._try(way.recipe, way.why)
                    if way.recipe.precision == "bf16":
                        self._try_mostly_bf16(way.recipe)
            if self._failed and not any(one.recipe.artefact in STATIC for one in self.judged.values()):
                self._try_mixed()
        except Stopped:
            return

    def _facts(self, original: Executable) -> Facts:
        """What the catalogue asks. Cleans the graph on the way."""
        facts = Facts(
            engine=self._engine,
            form=_form_of(self._loaded.model, original),
            cpu_flags=cpu_flags(),
            packages=frozenset(name for name in PACKAGES if importlib.util.find_spec(name) is not None),
        )
        if facts.form != "onnx" or not graphs.is_available():
            if self._target.outputs or self._target.has_fixed_shapes:
                self.notes.append("outputs are cut and shapes fixed in ONNX files alone, with the `onnx` package")
            return facts
        self._watch.say("cleaning the graph", "folded constants and fixed shapes cost nothing when it runs")
        try:
            graph = graphs.graph_of(self._loaded.model)
            done = self._making.clean(self._fixed_sizes(graph, original), self._target.outputs)
        except LoadFailed as error:
            self.notes.append(f"no other file could be made of it: {error.message}")
            return facts
        self.notes += done
        return msgspec.structs.replace(facts, operators=graph.operators, is_cleaned=bool(done))

    def _fixed_sizes(self, graph: graphs.Graph, original: Executable) -> dict[str, int]:
        """Dimensions that can be fixed, by `INPUT.AXIS`."""
        row = self._row(0)

        def runs(changed: Mapping[str, Tensor]) -> bool:
            samples = Samples(inputs=changed if self._has_batch_axis else {n: a[None] for n, a in changed.items()})
            try:
                answers(original, samples, rows=1, has_batch_axis=self._has_batch_axis)
            except FarthingError:
                return False
            return True

        rows = {f"{name}.{axis}" for name, axis in self.axes.inputs.items()} if self.axes else set()
        free = [group for group in graph.free if not rows.intersection(group)]
        places = [place for group in free for place in group]
        if not self._target.has_fixed_shapes:
            places = graphs.only_sizes(free, row, runs)
        named = [place.rpartition(".") for place in places]
        return {f"{name}.{axis}": row[name].shape[int(axis)] for name, _, axis in named if name in row}

    def _check_outputs(self, original: Executable) -> None:
        known = [spec.name for spec in original.outputs]
        unknown = [name for name in self._target.outputs if name not in known]
        if unknown:
            raise InvalidInput(f"{self._loaded.model}: has no output `{unknown[0]}`; outputs: {', '.join(known)}")

    def _check_truth(self) -> None:
        bad = _bad_row(self._truth, self._truth)
        if bad is None:
            return
        name, sample = bad
        kind = self._loaded.model.suffix == ".onnx"
        layer = trouble.first_bad(self._loaded.model, self._engine, self._row(sample)) if kind else ""
        raise InvalidInput(
            f"output `{name}` of the model as it is has NaN or infinite values on these data, first in sample {sample} "
            f"of those to judge by" + (f": {layer}" if layer else ""),
            hint="nothing can be held against that; check the data's scale",
        )

    def _is_hopeless(self, recipe: Recipe) -> bool:
        """Whether another engine has lost far too much with the same file. Puts the recipe out then."""
        lost, name = max(((lost, o.name) for lost, o in self._failed if o.file == recipe.file), default=(0.0, ""))
        if lost <= HOPELESS * self._target.drop_max:
            return False
        out = f"{name} loses {lost:.2%} with the same file"
        self._put_out(recipe, Tried(name=recipe.name, drop=lost, drop_upper=lost, out=out))
        return True

    def _try_mixed(self) -> None:
        """Where int8 throughout is wrong: leaves more and more of the layers in float that it hurts most."""
        made = [pair for pair in self._failed if pair[1].precision == "int8" and pair[1].artefact != "int8_weights"]
        if not made:
            return
        least, best = min(made, key=lambda pair: (pair[1].artefact not in STATIC, pair[0]))
        if least <= self._target.drop_max:
            return  # it may be right already; with so few samples nothing that moves can be shown to be
        engines = [recipe.engine for _, recipe in made if recipe.artefact == best.artefact]
        flags = cpu_flags()
        for count in STEPS:
            recipes = [mixed(best.artefact, engine, count, flags) for engine in engines]
            for recipe in recipes:
                self._try(recipe, "integer kernels, but for the layers that they hurt most")
            if any(recipe.name in self.judged for recipe in recipes):
                return

    def _try_mostly_bf16(self, recipe: Recipe) -> None:
        """Where bf16 throughout loses too much: leaves more and more of the layers in float that it hurts most."""
        lost = next((tried.drop for tried in self.tried if tried.name == recipe.name), 0.0)
        if not self._target.drop_max / 4 < lost <= self._target.drop_max * 10:
            return  # it is right, or so few samples cannot show that anything is, or it is beyond help
        for count in STEPS:
            mixed = mostly_bf16(count)
            self._try(mixed, "bf16, but for the layers that it hurts most")
            if mixed.name in self.judged:
                return

    def _try(self, recipe: Recipe, why: str) -> None:
        tried = Tried(name=recipe.name, out="there was no time to judge it")
        if self._recall(recipe, why):
            return
        if not self._watch.is_over(TIME_SHARE):
            try:
                found = self._judge(recipe, why)
            except FarthingError as error:
                tried = Tried(name=recipe.name, out=str(error).partition("\n")[0])
            except Stopped:
                self.tried.append(tried)
                raise
            else:
                if isinstance(found, Judged):
                    self.judged[recipe.name] = found
                    right = Right(recipe=recipe.name, drop=found.drop, errors=found.errors)
                    self._journal.note(right, self._watch.spent_s)
                    self._watch.tell(f"{recipe.name} is right: {lost_in_words(found.drop)}")
                    return
                tried = found
                self._loaded.keep(lambda place: place[0] != recipe.name)
            self._journal.note(Wrong(tried=tried), self._watch.spent_s)
            self._watch.tell(f"{recipe.name} is out: {tried.out}")
        self._put_out(recipe, tried)

    def _recall(self, recipe: Recipe, why: str) -> bool:
        """Whether an earlier part of the search has judged it; then its word stands."""
        known = self._known.get(recipe.name)
        if isinstance(known, Wrong):
            self._put_out(recipe, known.tried)
        elif known is not None and self._making.is_there(recipe):
            file = self._loaded.files[recipe.file]
            self.judged[recipe.name] = Judged(recipe=recipe, file=file, drop=known.drop, errors=known.errors, why=why)
        else:
            return False
        return True

    def _put_out(self, recipe: Recipe, tried: Tried) -> None:
        if recipe.artefact and tried.drop_upper:
            self._failed.append((tried.drop, recipe))
        self.tried.append(tried)

    def _judge(self, recipe: Recipe, why: str) -> Judged | Tried:
        if not self._making.is_there(recipe):
            self._watch.say(f"making {recipe.name}", why)
            self._making.make(recipe)
        self._watch.say(f"judging {recipe.name}", why)
        given = self._answers(self._loaded.load(recipe, self._loaded.cores))
        for name, output in self._truth.items():
            if name not in given:
                raise EngineFailed(f"gives no output `{name}`, but {', '.join(given)}")
            if given[name].shape != output.shape:
                raise EngineFailed(f"output `{name}` has shape {list(given[name].shape)}, not {list(output.shape)}")
        errors = output_errors(self._truth, given)
        file = self._loaded.files[recipe.file]
        bad = _bad_row(self._truth, given)
        if bad is not None:
            raise EngineFailed(self._trouble_in(recipe, file, *bad))
        if is_same(errors):
            return Judged(recipe=recipe, file=file, drop=None, errors=errors, why=why)
        lost = drop(self._metric, self._truth, given, self._samples.labels)
        cut_off = ""
        if recipe.artefact in STATIC:
            rows = [self._row(at) for at in range(min(trouble.ROWS_LOOKED_AT, len(self._samples)))]
            cut_off = trouble.saturated(file, self._making.clean_file, rows)
        if lost.upper <= self._target.drop_max and not cut_off:
            return Judged(recipe=recipe, file=file, drop=lost, errors=errors, why=why)
        allowed = f"{self._target.drop_max:.2%}"
        out = f"loses {lost.mean:.2%} of {lost.metric}, perhaps {lost.upper:.2%}; allowed: {allowed}"
        needed = samples_needed(self._target.drop_max)
        if lost.mean <= self._target.drop_max < lost.upper and lost.samples < needed:
            out += f"; {lost.samples} samples cannot show less, {needed} might"
        if cut_off:
            out = cut_off if lost.upper <= self._target.drop_max else f"{out}; {cut_off}"
        return Tried(name=recipe.name, drop=lost.mean, drop_upper=lost.upper, out=out)

    def _trouble_in(self, recipe: Recipe, file: Path, output: str, sample: int) -> str:
        """What to say of an output that is not finite where the original's was."""
        layer = ""
        if file.suffix == ".onnx":
            alone = self._row(sample)
            first = sample - sample % min(ROWS_JUDGED, self.rows_max)
            beside = self._samples.take(np.arange(first, min(first + ROWS_JUDGED, len(self._samples)))).inputs
            for inputs in (alone, beside) if self._has_batch_axis and self.rows_max > 1 else (alone,):
                layer = layer or trouble.first_bad(
                    file, recipe.engine, inputs, self._loaded.model, parameters=recipe.parameters
                )
        return f"output `{output}` has NaN or infinite values" + (f": {layer}" if layer else "")

    def _row(self, sample: int) -> dict[str, Tensor]:
        """One sample as the model takes it."""
        if self._has_batch_axis:
            return {name: array[sample : sample + 1] for name, array in self._samples.inputs.items()}
        return {name: np.ascontiguousarray(array[sample]) for name, array in self._samples.inputs.items()}

    def _truth_of(self, original: Executable) -> dict[str, Tensor]:
        """What the model as it came says; where rows have axes of their own, together as well as alone."""
        if self.axes is None:
            return self._answers(original)
        axes, self.axes = self.axes, None
        truth, self.axes = self._answers(original), axes
        try:
            together = self._answers(original)
        except FarthingError:
            together = {}
        if not together or not _are_near(truth, together):
            self.notes.append("runs one row at a time: what a row gives depends on those beside it")
            self.axes, self.rows_max = None, 1
        return truth

    def _answers(self, executable: Executable) -> dict[str, Tensor]:
        return answers(
            executable,
            self._samples,
            rows=min(ROWS_JUDGED, self.rows_max),
            has_batch_axis=self._has_batch_axis,
            axes=self.axes,
            wanted=self._target.outputs,
            check=self._watch.check if self._truth else lambda: None,
        )

    def _most_rows(self, original: Executable) -> int:
        """How many rows may share a run: asked by running some together and alone."""
        if not self._has_batch_axis:
            self.axes = find_axes(original, self._samples, _are_near)
            if self.axes is None:
                self.notes.append("its shapes leave no room for more rows in a run than the file says")
                return 1
            where = ", ".join(f"axis {axis} of `{name}`" for name, axis in self.axes.inputs.items())
            self.notes.append(f"requests may share a run along {where}")
            return original.batch_rows_max or ROWS[-1]
        probe = self._samples.take(np.arange(min(3, len(self._samples))))
        try:
            together = answers(original, probe, rows=len(probe), has_batch_axis=True)
        except FarthingError as error:
            answers(original, probe, rows=1, has_batch_axis=True)  # whatever fails here too is the model's own fault
            self.notes.append(
                f"runs one row at a time only: {error.message.partition(chr(10))[0]}; exported with a free batch "
                "dimension throughout it could be batched"
            )
            return 1
        if _are_near(together, answers(original, probe, rows=1, has_batch_axis=True)):
            return original.batch_rows_max or ROWS[-1]
        self.notes.append("runs one row at a time: what a row gives depends on those beside it")
        return 1

    def _limit_samples(self, original: Executable) -> None:
        """Looks at no more data than there is time for."""
        first = self._samples.take(np.arange(min(4, len(self._samples))))
        before = time.monotonic()
        answers(original, first, rows=1, has_batch_axis=self._has_batch_axis)
        each_s = (time.monotonic() - before) / len(first)
        most = max(2, int(self._watch.budget_s * RUN_SHARE / max(each_s, 1e-9)))
        if most < len(self._samples):
            self.notes.append(f"judged by {most} of {len(self._samples)} samples: there was no time for more")
            self._samples = self._samples.take(np.arange(most))


def lost_in_words(lost: Drop | None) -> str:
    """Such as `0.12% of top1 lost, perhaps 0.30%`."""
    return "the same answers" if lost is None else f"{lost.mean:.2%} of {lost.metric} lost, perhaps {lost.upper:.2%}"


def _form_of(model: Path, original: Executable) -> str:
    if model.suffix.lower() == ".onnx":
        return "onnx"
    return original.platform.partition("_")[0]


def _bad_row(original: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Output and sample of the first value that is not finite; where `original` is not either, it does not count."""
    is_itself = original is other
    for name, output in other.items():
        if name not in original or not np.issubdtype(output.dtype, np.floating):
            continue
        bad = ~np.isfinite(output)
        if not is_itself:
            bad &= np.isfinite(original[name])
        samples = np.flatnonzero(bad.reshape(len(bad), -1).any(1))
        if samples.size:
            return name, int(samples[0])
    return None


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
