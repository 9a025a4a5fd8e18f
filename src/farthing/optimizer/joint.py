"""Several models of one machine planned together: each alone first, then all at full load at once.

What a model is (engine, precision, file) is settled alone, by `optimizer.search`, or by a plan that still holds for
the same data and target. How much of the machine each gets is raced here, all of them running together; which ways
there are and what is good is `optimizer.sharing`'s to say. Every round times each model alone, too, and the models as
they came together: what company costs, and what planning gains, are measured under the same conditions.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from farthing.engines.contract import Batch, Executable
from farthing.engines.cores import cores_available
from farthing.optimizer.judging import Target
from farthing.optimizer.loaded import Loaded
from farthing.optimizer.machine import memory_available, memory_resident, this_machine
from farthing.optimizer.plan import (
    Companion,
    Data,
    Plan,
    Shared,
    Together,
    copy_artefact,
    digest,
    folder_of,
    read_plan,
    stale,
    write_plan,
)
from farthing.optimizer.race import ROUND_SECONDS, Turn, go_on, is_decided, standing, winner
from farthing.optimizer.recipes import Recipe, original_of
from farthing.optimizer.samples import digest_of, divide
from farthing.optimizer.search import BUDGET_S, AnyData, Fitted, asked_for, find, fit, metric_for
from farthing.optimizer.sharing import Shape, Way, as_turn, name_of, shares, ways_to_share
from farthing.optimizer.timing import batches_of, take_turn, take_turns
from farthing.optimizer.watch import Leader, OnEvent, Watch
from farthing.types.errors import FarthingError, InvalidInput

ALONE_SHARE: Final = 0.75
"""Of the search, for planning each model alone, where that is still to be done."""

MEMORY_SHARE: Final = 0.9
"""Of the memory that is available: what models may take together."""

ROUNDS_MIN: Final = 3


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A model, and what its plan must keep to."""

    model: Path
    target: Target
    data: AnyData
    tokenizer: Path | None = None


class _Sharer(msgspec.Struct, kw_only=True):
    """One model while it is planned with others."""

    wanted: Wanted
    plan: Plan
    fitted: Fitted
    file: Path
    memory_bytes: int = 0

    @property
    def name(self) -> str:
        return named(self.wanted.model)

    @property
    def planned(self) -> Shape:
        return Shape(threads=self.plan.threads, instances=self.plan.instances, rows=self.plan.rows)


def named(model: Path) -> str:
    """What people call a model file: its own name, or its folder's where all are called `model`."""
    folders = [part for part in model.resolve().parts[:-1] if not part.isdigit()]
    return model.name if model.stem != "model" else folders[-1]


def optimize_jointly(
    models: Sequence[Wanted],
    *,
    budget_s: float = BUDGET_S,
    price_usd_per_hour: float | None = None,
    memory_bytes_max: int | None = None,
    on_event: OnEvent = lambda event: None,
    is_stopped: Callable[[], bool] = lambda: False,
    is_written: bool = True,
    is_fresh: bool = False,
) -> list[Plan]:
    """A plan for each model, that holds for all of them at full load on this machine, written beside them.

    `memory_bytes_max` is what they may take together, by default nine tenths of what is available. Raises what
    `optimize` raises, and `InvalidInput` where no way of sharing meets all targets.
    """
    if len(models) < 2:
        raise InvalidInput("planning together takes two models or more", hint="name them all, each with its --data")
    if len({wanted.model.resolve() for wanted in models}) < len(models):
        raise InvalidInput("a model is named twice", hint="give it instances instead: they are planned")
    watch = Watch(budget_s, on_event, is_stopped)
    limit = int(memory_available() * MEMORY_SHARE) if memory_bytes_max is None else memory_bytes_max
    sharers: list[_Sharer] = []
    with tempfile.TemporaryDirectory(prefix="farthing-optimize-") as scratch:
        try:
            for number, wanted in enumerate(models):
                watch.say(f"model {number + 1} of {len(models)}: {named(wanted.model)}", "each is planned alone first")
                own = Watch(budget_s * ALONE_SHARE / len(models), watch.pass_on, is_stopped)
                folder = Path(scratch) / str(number)
                folder.mkdir()
                sharers.append(_alone(wanted, own, folder, price_usd_per_hour, is_fresh=is_fresh))
            plans = _Sharing(sharers, limit, watch).run()
            for sharer, plan in zip(sharers, plans, strict=True):
                if is_written:
                    write_plan(sharer.wanted.model, plan, sharer.file if plan.artefact else None)
            return plans
        finally:
            for sharer in sharers:
                sharer.fitted.loaded.close()


def _alone(wanted: Wanted, watch: Watch, folder: Path, price: float | None, *, is_fresh: bool) -> _Sharer:
    """The model with its own plan: the one that is there, if it holds and was made for the same, or a new one. The file
    that it needs is put into `folder`."""
    loaded = Loaded(wanted.model, cores_available())
    files: dict[str, Path] = {}

    def keep(plan: Plan, artefact: Path | None) -> None:
        if artefact is not None:
            files[plan.artefact] = copy_artefact(artefact, folder / plan.artefact)

    try:
        fitted = fit(loaded, wanted.data, wanted.tokenizer, watch)
        plan = None if is_fresh else _plan_there(wanted, fitted)
        if plan is not None:
            watch.tell(f"{named(wanted.model)} keeps its plan of {plan.made}: it holds, for the same data and target")
        else:
            plan = find(
                wanted.model,
                wanted.target,
                wanted.data,
                watch,
                keep,
                price_usd_per_hour=price,
                tokenizer=wanted.tokenizer,
                is_fresh=is_fresh,
            )
        if plan.artefact and plan.artefact not in files:
            keep(plan, folder_of(wanted.model) / plan.artefact)
    except BaseException:
        loaded.close()
        raise
    file = files[plan.artefact] if plan.artefact else wanted.model
    return _Sharer(wanted=wanted, plan=replace(plan, price_usd_per_hour=price), fitted=fitted, file=file)


def _plan_there(wanted: Wanted, fitted: Fitted) -> Plan | None:
    try:
        plan = read_plan(wanted.model)
        if plan is None or plan.together is not None or stale(plan, wanted.model, this_machine()):
            return None
    except FarthingError:
        return None
    target = wanted.target
    asked = asked_for(target, metric_for(target), wanted.data, wanted.tokenizer)
    data = Data(sha256=digest_of(fitted.samples), samples=len(fitted.samples), judged_by="")
    return plan if plan.is_for(asked, data, target.answer_ms_max, target.drop_max) else None


class _Sharing:
    """The race of ways to share the machine."""

    def __init__(self, sharers: Sequence[_Sharer], memory_bytes_max: int, watch: Watch) -> None:
        self._sharers = sharers
        self._memory_bytes_max = memory_bytes_max
        self._watch = watch
        self._cores = cores_available()
        self._limits = [sharer.plan.answer_ms_max for sharer in sharers]
        planned = tuple(sharer.planned for sharer in sharers)
        self._ways: dict[str, Way] = {name_of(way): way for way in ways_to_share(planned, self._cores)}
        self._planned = name_of(planned)
        self._executables: dict[tuple[int, bool, int, int], Executable] = {}
        self._batches: dict[tuple[int, bool, int], list[Batch]] = {}
        self._memory_begin = memory_resident()
        self._turns: dict[str, list[Turn]] = {}
        self._seen: dict[str, list[list[Turn]]] = {}
        """Way -> round -> each model's turn."""
        self._alone: list[list[Turn]] = [[] for _ in sharers]
        self._default: list[list[Turn]] = []
        """Round -> each model's turn as it came, beside the others."""
        self._out: dict[str, str] = {}

    def run(self) -> list[Plan]:
        """The plans. Raises `InvalidInput`."""
        try:
            self._load_all()
            self._race()
            return self._plans()
        finally:
            for executable in self._executables.values():
                executable.close()

    def _load_all(self) -> None:
        """Each model as planned, to see what memory all take: cores can be shared in turns, memory cannot."""
        for number, sharer in enumerate(self._sharers):
            before = memory_resident()
            self._watch.say(f"loading {sharer.name} beside the others", "memory is shared too")
            shape = sharer.planned
            take_turn(
                self._executable(number, shape, is_default=False),
                self._rows(number, shape.rows, is_default=False),
                instances=shape.instances,
                seconds=0.05,
            )
            sharer.memory_bytes = max(0, memory_resident() - before)
        taken = memory_resident() - self._memory_begin
        if taken > self._memory_bytes_max:
            each = ", ".join(f"{s.name} {s.memory_bytes >> 20} MiB" for s in self._sharers)
            raise InvalidInput(
                f"together they take {taken >> 20} MiB; available: {max(0, self._memory_bytes_max) >> 20} MiB ({each})",
                hint="plan fewer models for this machine, or allow smaller files with a larger --max-drop",
            )

    def _race(self) -> None:
        alive = list(self._ways)
        for number, seconds in enumerate(ROUND_SECONDS):
            self._time_alone(seconds)
            for name in alive:
                if self._watch.is_over() and self._planned in self._turns:
                    return
                self._time(name, seconds)
            if self._planned not in self._turns:
                raise InvalidInput(f"the models cannot run together: {self._out.get(self._planned, 'no time')}")
            standings = {name: standing(self._turns[name]) for name in alive if name in self._turns}
            alive = go_on(standings, 1.0 if any(self._limits) else None, self._planned)
            self._let_go(alive)
            if self._watch.is_over() or (number + 1 >= ROUNDS_MIN and is_decided(standings, alive)):
                return

    def _time_alone(self, seconds: float) -> None:
        for number, sharer in enumerate(self._sharers):
            shape = sharer.planned
            self._watch.say(f"timing {sharer.name} alone", "what company costs is measured against it")
            executable = self._executable(number, shape, is_default=False)
            rows = self._rows(number, shape.rows, is_default=False)
            self._alone[number].append(take_turn(executable, rows, instances=shape.instances, seconds=seconds))
        self._watch.say("timing all as they came, together", "what planning gains is measured against it")
        wide = Shape(threads=self._cores, instances=1, rows=1)
        self._default.append(self._together((wide,) * len(self._sharers), seconds, is_default=True))

    def _time(self, name: str, seconds: float) -> None:
        best = max(self._turns, key=lambda one: self._turns[one][-1].rows_per_s, default="")
        known = [best] if best else []
        leaders = [Leader(name=n, rows_per_s=self._turns[n][-1].rows_per_s, answer_ms=0.0) for n in known]
        self._watch.say(f"timing together: {name}", "cores that one leaves the others use", leaders=tuple(leaders))
        try:
            turns = self._together(self._ways[name], seconds, is_default=False)
        except FarthingError as error:
            self._out[name] = error.message
            self._turns.pop(name, None)
            return
        taken = memory_resident() - self._memory_begin
        if taken > self._memory_bytes_max and name != self._planned:
            self._out[name] = f"takes {taken >> 20} MiB; available: {self._memory_bytes_max >> 20} MiB"
            self._turns.pop(name, None)
            return
        alone = [seen[-1].rows_per_s for seen in self._alone]
        self._turns.setdefault(name, []).append(as_turn(turns, alone, self._limits))
        self._seen.setdefault(name, []).append(turns)

    def _together(self, way: Way, seconds: float, *, is_default: bool) -> list[Turn]:
        work = [
            (
                self._executable(number, shape, is_default=is_default),
                self._rows(number, shape.rows, is_default=is_default),
                shape.instances,
            )
            for number, shape in enumerate(way)
        ]
        return take_turns(work, seconds=seconds)

    def _executable(self, number: int, shape: Shape, *, is_default: bool) -> Executable:
        place = number, is_default, shape.threads, shape.instances
        if place not in self._executables:
            sharer = self._sharers[number]
            loaded = sharer.fitted.loaded
            if is_default:
                recipe: Recipe = original_of(sharer.fitted.engine)
                file, engine, parameters = loaded.model, recipe.engine, recipe.parameters
            else:
                file, engine, parameters = sharer.file, sharer.plan.engine, sharer.plan.parameters
            self._executables[place] = loaded.load_file(file, engine, shape.threads, shape.instances, parameters)
        return self._executables[place]

    def _rows(self, number: int, rows: int, *, is_default: bool) -> list[Batch]:
        kind = number, is_default, rows
        if kind not in self._batches:
            sharer = self._sharers[number]
            some = next(e for (n, d, _, _), e in self._executables.items() if (n, d) == (number, is_default))
            outputs = [spec.name for spec in some.outputs]
            _, judging = divide(sharer.fitted.samples)
            self._batches[kind] = batches_of(
                judging, rows, outputs, has_batch_axis=sharer.fitted.has_batch_axis, axes=sharer.plan.axes
            )
        return self._batches[kind]

    def _let_go(self, alive: Sequence[str]) -> None:
        """Of executables that nobody in the race needs."""
        kept = {(n, False, s.threads, s.instances) for name in alive for n, s in enumerate(self._ways[name])}
        for place in [place for place in self._executables if not place[1] and place not in kept]:
            self._executables.pop(place).close()

    def _plans(self) -> list[Plan]:
        target = 1.0 if any(self._limits) else None
        won = winner(self._turns, target, self._planned, {})
        if won is None:
            nearest = min(self._turns, key=lambda name: standing(self._turns[name]).answer_ms)
            late = self._answers(nearest)
            told = ", ".join(
                f"{s.name} {ms:.3g} ms (allowed: {limit:g})"
                for s, ms, limit in zip(self._sharers, late, self._limits, strict=True)
                if limit is not None
            )
            raise InvalidInput(
                f"no way of sharing {self._cores} cores keeps to all targets; the nearest: {told}",
                hint="allow more time, or serve one of them elsewhere",
            )
        seen = self._seen[won]
        rates = [_mean([turns[n].rows_per_s for turns in seen]) for n in range(len(self._sharers))]
        alone = [_mean([turn.rows_per_s for turn in turns]) for turns in self._alone]
        default = [_mean([turns[n].rows_per_s for turns in self._default]) for n in range(len(self._sharers))]
        parts = shares([rate / best for rate, best in zip(rates, alone, strict=True)])
        answer_ms, tried = self._answers(won), self._tried(won)
        plans = []
        for n, sharer in enumerate(self._sharers):
            shape = self._ways[won][n]
            together = Together(
                others=tuple(_companion(sharer, other) for other in self._sharers if other is not sharer),
                alone_rows_per_s=alone[n],
                share=parts[n],
                memory_bytes=sharer.memory_bytes,
                tried=tried,
            )
            plans.append(
                replace(
                    sharer.plan,
                    threads=shape.threads,
                    instances=shape.instances,
                    rows=shape.rows,
                    rows_per_s=rates[n],
                    answer_ms=answer_ms[n],
                    default_rows_per_s=default[n],
                    together=together,
                )
            )
        return plans

    def _answers(self, name: str) -> list[float]:
        """Each model's time to answer at the worst moment, of the last turns as `race.standing` has it."""
        return [2 * max(turns[n].run_ms_p99 for turns in self._seen[name][-3:]) for n in range(len(self._sharers))]

    def _tried(self, won: str) -> tuple[Shared, ...]:
        told = []
        best = standing(self._turns[won]).rows_per_s
        for name in sorted(self._turns, key=lambda one: -standing(self._turns[one]).rows_per_s):
            alone = [_mean([turn.rows_per_s for turn in turns]) for turns in self._alone]
            rates = [_mean([turns[n].rows_per_s for turns in self._seen[name]]) for n in range(len(self._sharers))]
            answers = self._answers(name)
            late = [m for m, (ms, most) in enumerate(zip(answers, self._limits, strict=True)) if most and ms > most]
            out = f"{1 - standing(self._turns[name]).rows_per_s / best:.0%} less in all"
            if late:
                out = f"{self._sharers[late[0]].name} answers in {answers[late[0]]:.3g} ms"
            told.append(
                Shared(
                    name=name + (" (each as planned alone)" if name == self._planned else ""),
                    parts=tuple(rate / best_alone for rate, best_alone in zip(rates, alone, strict=True)),
                    answer_ms=tuple(answers),
                    turns=len(self._turns[name]),
                    out="" if name == won else out,
                )
            )
        none = (0.0,) * len(self._sharers)
        told += [Shared(name=name, parts=none, answer_ms=none, turns=0, out=why) for name, why in self._out.items()]
        return tuple(told)


def _companion(sharer: _Sharer, other: _Sharer) -> Companion:
    model = other.wanted.model.resolve()
    place = os.path.relpath(model, sharer.wanted.model.resolve().parent)
    return Companion(place=place, bytes=model.stat().st_size, sha256=digest(model))


def _mean(rates: Sequence[float]) -> float:
    """The geometric mean, as `race.standing` has it."""
    return standing([Turn(rows_per_s=rate, run_ms_p99=0.0, runs=1) for rate in rates]).rows_per_s
