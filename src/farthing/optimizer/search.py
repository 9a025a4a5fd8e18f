"""From a model, a target and data to a plan: judge every recipe, race the settings of those that are right.

Deciding is `optimizer.race`'s and `optimizer.judging`'s; this file carries it out and writes down what came of it. It
keeps to its time, can be stopped at any moment with the best so far, and goes on where it was stopped.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from farthing.engines.cores import cores_available
from farthing.engines.registry import engine_for, engine_named
from farthing.optimizer.agreement import METRICS
from farthing.optimizer.custom_metric import CustomMetric, custom_metric, metric_of
from farthing.optimizer.journal import Journal, key_of, open_journal
from farthing.optimizer.judging import Judged, Judging, Target
from farthing.optimizer.loaded import Loaded
from farthing.optimizer.machine import this_machine
from farthing.optimizer.plan import FORMAT, Asked, Data, Plan, Tried, read_plan, source_of, stale, write_plan
from farthing.optimizer.race import winner
from farthing.optimizer.racing import Racing
from farthing.optimizer.recipes import Setting, original_of
from farthing.optimizer.samples import Samples, digest_of, divide, fit_samples, read_samples
from farthing.optimizer.texts import tokenizer_beside
from farthing.optimizer.watch import OnEvent, Watch
from farthing.types.errors import FarthingError, InvalidInput, LoadFailed
from farthing.types.tensors import Tensor

BUDGET_S: Final = 240.0
ARTEFACT: Final = "model"

AnyData = Path | str | Mapping[str, Tensor]


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """A model loaded as it came, and data that fit it."""

    loaded: Loaded
    engine: str
    samples: Samples
    has_batch_axis: bool


def optimize(
    model: Path | str,
    target: Target,
    data: AnyData,
    *,
    budget_s: float = BUDGET_S,
    price_usd_per_hour: float | None = None,
    tokenizer: Path | str | None = None,
    on_event: OnEvent = lambda event: None,
    is_stopped: Callable[[], bool] = lambda: False,
    is_written: bool = True,
    is_fresh: bool = False,
) -> Plan:
    """The cheapest plan for the model file `model` that keeps to `target` on `data`, written beside the model.

    `data` is a file (`.npz`, `.npy`, or text with a `tokenizer`), or arrays by input name, each [samples, ...], and
    perhaps `labels`. `on_event` is told what is done; once `is_stopped` says so, the best so far is the plan. A search
    that was stopped or killed goes on from what it had found, unless `is_fresh`. Raises `LoadFailed` for a model that
    no engine can load, `InvalidInput` for data that do not fit it, a target that nothing meets, or a plan that cannot
    be written.
    """
    watch = Watch(budget_s, on_event, is_stopped)

    def keep(plan: Plan, artefact: Path | None) -> None:
        if is_written:
            write_plan(Path(model), plan, artefact)

    return find(
        Path(model),
        target,
        data,
        watch,
        keep,
        price_usd_per_hour=price_usd_per_hour,
        tokenizer=None if tokenizer is None else Path(tokenizer),
        is_fresh=is_fresh,
    )


def find(
    model: Path,
    target: Target,
    data: AnyData,
    watch: Watch,
    keep: Callable[[Plan, Path | None], None],
    *,
    price_usd_per_hour: float | None,
    tokenizer: Path | None,
    is_fresh: bool,
) -> Plan:
    """The same; `keep` puts the plan and the file it needs where they are to be, before that is deleted."""
    metric = metric_for(target)
    loaded = Loaded(model, cores_available())
    try:
        fitted = fit(loaded, data, tokenizer, watch)
        asked = asked_for(target, metric, data, tokenizer)
        journal = open_journal(_key(fitted, target, metric), is_fresh=is_fresh)
        is_over = False
        try:
            if journal.entries:
                watch.spent_before(journal.spent_s)
                watch.tell(f"going on with the search that was stopped after {journal.spent_s:.0f} s")
            try:
                plan, artefact = _search(fitted, target, metric, asked, journal, watch)
            except FarthingError:
                is_over = True  # what was asked cannot be had, and would not be had the next time
                raise
            plan = msgspec.structs.replace(plan, price_usd_per_hour=price_usd_per_hour)
            better = _better_before(plan, loaded.model, watch)
            if better is not None:
                return better
            keep(plan, artefact)
            is_over = not watch.is_stopped()
            return plan
        finally:
            if is_over:
                journal.discard()
            else:
                journal.close()
    finally:
        loaded.close()


def _better_before(plan: Plan, model: Path, watch: Watch) -> Plan | None:
    """The plan that is there, where a search that was stopped has not yet found as good a one for the same."""
    if not watch.is_stopped():
        return None
    try:
        before = read_plan(model)
        if before is None or before.together is not None or stale(before, model, plan.machine):
            return None
    except FarthingError:
        return None
    is_for_this = before.is_for(plan.asked, plan.data, plan.answer_ms_max, plan.drop_max)
    if not is_for_this or before.rows_per_s <= plan.rows_per_s:
        return None
    watch.tell(f"the plan of {before.made} is better than the best so far, and stays")
    return before


def fit(loaded: Loaded, data: AnyData, tokenizer: Path | None, watch: Watch) -> Fitted:
    """Loads the model as it came, by the first engine that can, and reads the data. Raises `LoadFailed`,
    `InvalidInput`."""
    model = loaded.model
    watch.say(f"loading {model.name}", "as it came, by the engine that would serve it")
    engine = engine_for(model).name
    if engine == "python":
        raise InvalidInput(f"{model}: a Python model is what its code is", hint="optimize the models it calls")
    try:
        original = loaded.load(original_of(engine), loaded.cores)
    except LoadFailed as first:
        if engine != "onnxruntime":
            raise
        engine = engine_named("openvino").name
        try:
            original = loaded.load(original_of(engine), loaded.cores)
        except LoadFailed as second:
            raise LoadFailed(
                f"{first.message}; {second.message.removeprefix(f'{model}: ')}",
                hint="no engine here runs it: export it with operators of a standard opset, or update the engines",
            ) from first
        watch.tell(f"ONNX Runtime cannot load it, so OpenVINO's answers are the truth: {first.message}")
    # Whether a free first dimension counts rows is asked later, by running some together and alone.
    has_batch_axis = original.batch_axis is not False and all(
        spec.shape[:1] == (-1,) for spec in (*original.inputs, *original.outputs)
    )
    if isinstance(data, Mapping):
        samples = fit_samples(data, original.inputs, has_batch_axis=has_batch_axis)
    else:
        samples = read_samples(
            Path(data),
            original.inputs,
            has_batch_axis=has_batch_axis,
            tokenizer=tokenizer or tokenizer_beside(model),
        )
    return Fitted(loaded=loaded, engine=engine, samples=samples, has_batch_axis=has_batch_axis)


def asked_for(
    target: Target,
    metric: str | CustomMetric,
    data: AnyData,
    tokenizer: Path | str | None,
) -> Asked:
    """What was asked for, as a plan keeps it: enough to ask again."""
    said = metric.name if isinstance(metric, CustomMetric) else metric
    if isinstance(target.metric, str) and isinstance(metric, CustomMetric):
        place, _, name = target.metric.rpartition(":")
        said = f"{Path(place).absolute()}:{name}"
    return Asked(
        metric=said,
        data="" if isinstance(data, Mapping) else str(Path(data).absolute()),
        tokenizer="" if tokenizer is None else str(Path(tokenizer).absolute()),
        outputs=target.outputs,
        has_fixed_shapes=target.has_fixed_shapes,
    )


def metric_for(target: Target) -> str | CustomMetric:
    """The metric of a target. Raises `InvalidInput`."""
    if callable(target.metric):
        return metric_of(target.metric)
    return target.metric if target.metric in METRICS else custom_metric(target.metric)


def _key(fitted: Fitted, target: Target, metric: str | CustomMetric) -> str:
    return key_of(
        source_of(fitted.loaded.model),
        this_machine(),
        digest_of(fitted.samples),
        msgspec.structs.replace(target, metric=metric.digest if isinstance(metric, CustomMetric) else metric),
    )


def _search(
    fitted: Fitted, target: Target, metric: str | CustomMetric, asked: Asked, journal: Journal, watch: Watch
) -> tuple[Plan, Path | None]:
    """The plan, and the file it needs beside it."""
    loaded, engine = fitted.loaded, fitted.engine
    calibration, judging_samples = divide(fitted.samples)
    judging = Judging(
        loaded,
        engine,
        target,
        metric,
        calibration,
        judging_samples,
        journal,
        watch,
        has_batch_axis=fitted.has_batch_axis,
    )
    judging.run()
    default = Setting(recipe=original_of(engine), threads=loaded.cores, instances=1, rows=1)
    race = Racing(
        loaded,
        judging.judged,
        default,
        judging_samples,
        journal,
        watch,
        rows_max=judging.rows_max,
        has_batch_axis=fitted.has_batch_axis,
        axes=judging.axes,
    )
    race.run(target.answer_ms_max)
    lost = {name: judging.judged[setting.recipe.name].drop for name, setting in race.settings.items()}
    drops = {name: found.upper for name, found in lost.items() if found is not None}
    won = winner(race.turns, target.answer_ms_max, default.name, drops)
    if won is None:
        nearest = min(seen.answer_ms for seen in race.standings.values())
        raise InvalidInput(
            f"nothing answers within {target.answer_ms_max:g} ms on {loaded.cores} cores; the nearest takes "
            f"{nearest:.3g} ms",
            hint="allow more time, or a larger drop, or use a faster machine",
        )
    setting = race.settings[won]
    chosen = judging.judged[setting.recipe.name]
    rates = race.standings[won]
    plan = Plan(
        format=FORMAT,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source_of(loaded.model),
        machine=this_machine(),
        answer_ms_max=target.answer_ms_max,
        drop_max=target.drop_max,
        asked=asked,
        data=Data(sha256=digest_of(fitted.samples), samples=len(fitted.samples), judged_by=judging.metric_name),
        engine=setting.recipe.engine,
        precision=setting.recipe.precision,
        artefact=ARTEFACT + chosen.file.suffix if setting.recipe.artefact else "",
        threads=setting.threads,
        instances=setting.instances,
        rows=setting.rows,
        parameters=setting.recipe.parameters,
        axes=judging.axes.of(target.outputs) if judging.axes else None,
        rows_per_s=rates.rows_per_s,
        answer_ms=rates.answer_ms,
        default_rows_per_s=race.standings[default.name].rows_per_s,
        default=default.name,
        drop=chosen.drop,
        errors=chosen.errors,
        notes=tuple(judging.notes),
        tried=(*judging.tried, *race.failed, *_told(race, judging.judged, target, won)),
    )
    return plan, chosen.file if setting.recipe.artefact else None


def _told(race: Racing, judged: Mapping[str, Judged], target: Target, won: str) -> list[Tried]:
    """Everybody who was timed, the fastest first, with what spoke against them."""
    standings = race.standings
    best, told = standings[won], []
    for name, seen in sorted(standings.items(), key=lambda item: -item[1].rows_per_s):
        recipe = judged[race.settings[name].recipe.name]
        lost = recipe.drop
        out = f"{1 - seen.rows_per_s / best.rows_per_s:.0%} slower"
        if name == won:
            out = ""
        elif target.answer_ms_max is not None and seen.answer_ms > target.answer_ms_max:
            out = f"answers in {seen.answer_ms:.3g} ms; allowed: {target.answer_ms_max:g}"
        elif seen.rows_per_s >= best.low:
            out = "no faster beyond the noise, and not truer or sooner"
        told.append(
            Tried(
                name=name,
                recipe=recipe.recipe.name,
                why=recipe.why,
                rows_per_s=seen.rows_per_s,
                low=seen.low,
                high=seen.high,
                answer_ms=seen.answer_ms,
                drop=lost.mean if lost else 0.0,
                drop_upper=lost.upper if lost else 0.0,
                turns=len(race.turns[name]),
                out=out,
            )
        )
    return told
