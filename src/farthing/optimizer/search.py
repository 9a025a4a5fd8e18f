"""From a model, a target and data to a plan: judge every recipe, race the settings of those that are right.

Deciding is `optimizer.race`'s and `optimizer.judging`'s; this file carries it out and writes down what came of it. It
keeps to its time, and can be stopped at any moment with the best so far.
"""

import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from farthing.engines.contract import Batch
from farthing.engines.cores import cores_available
from farthing.engines.registry import engine_for
from farthing.optimizer.judging import Judged, Judging, Target
from farthing.optimizer.loaded import Loaded, Place
from farthing.optimizer.machine import this_machine
from farthing.optimizer.plan import FORMAT, Plan, Tried, source_of, write_plan
from farthing.optimizer.race import ROUND_SECONDS, Standing, Turn, go_on, is_decided, standing, winner
from farthing.optimizer.recipes import Setting, original_of, settings_of
from farthing.optimizer.samples import Samples, divide, fit_samples, read_samples
from farthing.optimizer.timing import batches_of, take_turn
from farthing.optimizer.watch import OnEvent, Watch
from farthing.types.errors import EngineFailed, FarthingError, InvalidInput
from farthing.types.tensors import Tensor

BUDGET_S: Final = 240.0
ARTEFACT: Final = "model.onnx"

WORSE_MAX: Final = 2
"""Larger batches that gained nothing, one after the other, until still larger ones are not tried."""

RUN_MS_MAX: Final = 300
"""A run longer than this is not made longer still: nobody waits so long for an answer to save a per cent."""

ROUNDS_MIN: Final = 3
"""Before a race may be called decided: intervals from fewer turns are wide, and narrow by luck."""


def optimize(
    model: Path | str,
    target: Target,
    data: Path | str | Mapping[str, Tensor],
    *,
    budget_s: float = BUDGET_S,
    price_usd_per_hour: float | None = None,
    on_event: OnEvent = lambda event: None,
    is_stopped: Callable[[], bool] = lambda: False,
    is_written: bool = True,
) -> Plan:
    """The cheapest plan for the model file `model` that keeps to `target` on `data`, written beside the model.

    `data` is a `.npz` file or arrays by input name, each [samples, ...], and perhaps `labels`. `on_event` is told what
    is done; once `is_stopped` says so, the best so far is the plan. Raises `LoadFailed` for a model that no engine can
    load, `InvalidInput` for data that do not fit it, a target that nothing meets, or a plan that cannot be written.
    """
    model = Path(model)
    watch = Watch(budget_s, on_event, is_stopped)
    loaded = Loaded(model)
    with tempfile.TemporaryDirectory(prefix="farthing-optimize-") as scratch:
        try:
            plan, artefact = _search(loaded, target, data, price_usd_per_hour, Path(scratch), watch)
            if is_written:
                write_plan(model, plan, artefact)
            return plan
        finally:
            loaded.close()


def _search(
    loaded: Loaded,
    target: Target,
    data: Path | str | Mapping[str, Tensor],
    price_usd_per_hour: float | None,
    scratch: Path,
    watch: Watch,
) -> tuple[Plan, Path | None]:
    """The plan, and the file it needs beside it."""
    model, cores = loaded.model, cores_available()
    engine = engine_for(model).name
    if engine == "python":
        raise InvalidInput(f"{model}: a Python model is what its code is", hint="optimize the models it calls")
    original = loaded.load(original_of(engine), cores)
    # Whether a free first dimension counts rows is asked later, by running some together and alone.
    has_batch_axis = original.batch_axis is not False and all(
        spec.shape[:1] == (-1,) for spec in (*original.inputs, *original.outputs)
    )
    if isinstance(data, Mapping):
        samples = fit_samples(data, original.inputs, has_batch_axis=has_batch_axis)
    else:
        samples = read_samples(Path(data), original.inputs, has_batch_axis=has_batch_axis)
    calibration, judging_samples = divide(samples)
    judging = Judging(
        loaded,
        engine,
        cores,
        target,
        calibration,
        judging_samples,
        has_batch_axis=has_batch_axis,
        scratch=scratch,
        watch=watch,
    )
    judging.run()
    default = Setting(recipe=original_of(engine), threads=cores, instances=1, rows=1)
    race = _Race(loaded, judging, default, cores, judging_samples, has_batch_axis=has_batch_axis, watch=watch)
    race.run(target.answer_ms_max)
    lost = {name: judging.judged[setting.recipe.name].drop for name, setting in race.settings.items()}
    drops = {name: found.upper for name, found in lost.items() if found is not None}
    won = winner(race.turns, target.answer_ms_max, default.name, drops)
    if won is None:
        nearest = min(seen.answer_ms for seen in race.standings.values())
        raise InvalidInput(
            f"nothing answers within {target.answer_ms_max:g} ms on {cores} cores; the nearest takes {nearest:.3g} ms",
            hint="allow more time, or a larger drop, or use a faster machine",
        )
    setting = race.settings[won]
    chosen = judging.judged[setting.recipe.name]
    rates = race.standings[won]
    plan = Plan(
        format=FORMAT,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source_of(model),
        machine=this_machine(),
        answer_ms_max=target.answer_ms_max,
        drop_max=target.drop_max,
        price_usd_per_hour=price_usd_per_hour,
        engine=setting.recipe.engine,
        precision=setting.recipe.precision,
        artefact=ARTEFACT if setting.recipe.artefact else "",
        threads=setting.threads,
        instances=setting.instances,
        rows=setting.rows,
        parameters=setting.recipe.parameters,
        rows_per_s=rates.rows_per_s,
        answer_ms=rates.answer_ms,
        default_rows_per_s=race.standings[default.name].rows_per_s,
        drop=chosen.drop,
        errors=chosen.errors,
        tried=(*judging.tried, *race.failed, *_told(race, judging.judged, target, won)),
    )
    return plan, chosen.file if setting.recipe.artefact else None


class _Race:
    """The settings of all recipes that are right, against each other."""

    def __init__(
        self,
        loaded: Loaded,
        judging: Judging,
        default: Setting,
        cores: int,
        samples: Samples,
        *,
        has_batch_axis: bool,
        watch: Watch,
    ) -> None:
        self._loaded = loaded
        self._default = default.name
        self._samples = samples
        self._has_batch_axis = has_batch_axis
        self._watch = watch
        self.settings = {default.name: default}
        for one in judging.judged.values():
            for setting in settings_of(one.recipe, cores, rows_max=judging.rows_max):
                self.settings.setdefault(setting.name, setting)
        self.turns: dict[str, list[Turn]] = {}
        self.failed: list[Tried] = []
        self._batches: dict[int, list[Batch]] = {}

    @property
    def standings(self) -> dict[str, Standing]:
        """Of everybody who had a turn."""
        return {name: standing(turns) for name, turns in self.turns.items()}

    def run(self, answer_ms_max: float | None) -> None:
        """Rounds until it is decided or the time is over. Raises `EngineFailed` if the default cannot be timed."""
        alive = list(self.settings)
        for number, seconds in enumerate(ROUND_SECONDS):
            self._round(alive, seconds, is_first=number == 0)
            standings = self.standings
            if self._default not in standings:
                raise EngineFailed(f"{self._loaded.model}: the model as it is could not be timed")
            alive = go_on({name: standings[name] for name in alive if name in standings}, answer_ms_max, self._default)
            kept = {_place(self.settings[name]) for name in alive}
            self._loaded.keep(kept.__contains__)
            if self._watch.is_over() or (number + 1 >= ROUNDS_MIN and is_decided(standings, alive)):
                return

    def _round(self, alive: list[str], seconds: float, *, is_first: bool) -> None:
        worse: dict[Place, int] = {}
        best_at: dict[Place, float] = {}
        for name in alive:
            if self._watch.is_over() and self._default in self.turns:
                return
            setting = self.settings[name]
            place = _place(setting)
            if is_first and worse.get(place, 0) >= WORSE_MAX:
                continue
            turn = self._turn(setting, seconds, len(alive))
            if turn is None:
                continue
            worse[place] = 0 if turn.rows_per_s > best_at.get(place, 0.0) else worse.get(place, 0) + 1
            if turn.run_ms_p99 > RUN_MS_MAX:
                worse[place] = WORSE_MAX
            best_at[place] = max(best_at.get(place, 0.0), turn.rows_per_s)
            self.turns.setdefault(name, []).append(turn)

    def _turn(self, setting: Setting, seconds: float, alive: int) -> Turn | None:
        best = max(self.turns, key=lambda name: self.turns[name][-1].rows_per_s, default="")
        rate = self.turns[best][-1].rows_per_s if best else 0.0
        self._watch.say(f"timing {setting.name}", alive=alive, best=best, best_rows_per_s=rate)
        try:
            executable = self._loaded.load(setting.recipe, setting.threads, setting.instances)
            if setting.rows not in self._batches:
                outputs = [spec.name for spec in executable.outputs]
                self._batches[setting.rows] = batches_of(
                    self._samples, setting.rows, outputs, has_batch_axis=self._has_batch_axis
                )
            return take_turn(executable, self._batches[setting.rows], instances=setting.instances, seconds=seconds)
        except FarthingError as error:
            self.failed.append(Tried(name=setting.name, out=str(error).partition("\n")[0]))
            self.turns.pop(setting.name, None)
            return None


def _told(race: _Race, judged: Mapping[str, Judged], target: Target, won: str) -> list[Tried]:
    """Everybody who was timed, the fastest first, with what spoke against them."""
    standings = race.standings
    best, told = standings[won], []
    for name, seen in sorted(standings.items(), key=lambda item: -item[1].rows_per_s):
        lost = judged[race.settings[name].recipe.name].drop
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


def _place(setting: Setting) -> Place:
    return (setting.recipe.name, setting.threads, setting.instances)
