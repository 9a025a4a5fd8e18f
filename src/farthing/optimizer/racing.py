"""The settings of all recipes that are right, against each other, on the machine.

Who goes on and who has won is `optimizer.race`'s to say; this file gives them their turns, and writes each one down.
"""

from collections.abc import Mapping
from typing import Final

from farthing.engines.contract import Batch
from farthing.optimizer.journal import Failed, Journal, Round, Took
from farthing.optimizer.judging import Judged
from farthing.optimizer.loaded import Loaded, Place
from farthing.optimizer.plan import Tried
from farthing.optimizer.race import ROUND_SECONDS, Standing, Turn, go_on, is_decided, standing
from farthing.optimizer.recipes import Setting, settings_of
from farthing.optimizer.samples import Samples
from farthing.optimizer.timing import batches_of, take_turn
from farthing.optimizer.watch import LEADERS, Leader, Watch
from farthing.types.batch_axes import BatchAxes
from farthing.types.errors import EngineFailed, FarthingError

WORSE_MAX: Final = 2
"""Larger batches that gained nothing, one after the other, until still larger ones are not tried."""

RUN_MS_MAX: Final = 300
"""A run longer than this is not made longer still: nobody waits so long for an answer to save a per cent."""

ROUNDS_MIN: Final = 3
"""Before a race may be called decided: intervals from fewer turns are wide, and narrow by luck."""


class Racing:
    """One race. One owner, one thread."""

    def __init__(
        self,
        loaded: Loaded,
        judged: Mapping[str, Judged],
        default: Setting,
        samples: Samples,
        journal: Journal,
        watch: Watch,
        *,
        rows_max: int,
        has_batch_axis: bool,
        axes: BatchAxes | None = None,
    ) -> None:
        self._loaded = loaded
        self._judged = judged
        self._default = default.name
        self._samples = samples
        self._journal = journal
        self._watch = watch
        self._has_batch_axis = has_batch_axis
        self._axes = axes
        self.settings = {default.name: default}
        for one in judged.values():
            for setting in settings_of(one.recipe, loaded.cores, rows_max=rows_max):
                self.settings.setdefault(setting.name, setting)
        self.turns: dict[str, list[Turn]] = {}
        self.failed: list[Tried] = [found.tried for found in journal.found(Failed)]
        self._batches: dict[tuple[int, tuple[str, ...]], list[Batch]] = {}
        self._earlier = _rounds_of(journal)
        """Round -> the turns an earlier part of the search has taken in it. Of a round that was not finished only the
        first counts: in later ones a turn is compared with the others of its round, which the machine met alike."""

    @property
    def standings(self) -> dict[str, Standing]:
        """Of everybody who had a turn."""
        return {name: standing(turns) for name, turns in self.turns.items()}

    def run(self, answer_ms_max: float | None) -> None:
        """Rounds until it is decided or the time is over. Raises `EngineFailed` if the default cannot be timed."""
        alive = list(self.settings)
        for number, seconds in enumerate(ROUND_SECONDS):
            self._round(alive, number, seconds)
            standings = self.standings
            if self._default not in standings:
                reason = next((f": {one.out}" for one in self.failed if one.name == self._default), "")
                raise EngineFailed(f"{self._loaded.model}: the model as it is could not be timed{reason}")
            alive = go_on({name: standings[name] for name in alive if name in standings}, answer_ms_max, self._default)
            if self._watch.is_over():
                return
            self._journal.note(Round(number=number, alive=tuple(alive)), self._watch.spent_s)
            kept = {_place(self.settings[name]) for name in alive}
            self._loaded.keep(kept.__contains__)
            if number + 1 >= ROUNDS_MIN and is_decided(standings, alive):
                return

    def _round(self, alive: list[str], number: int, seconds: float) -> None:
        worse: dict[Place, int] = {}
        best_at: dict[Place, float] = {}
        earlier = self._earlier.get(number, {})
        out = {one.name for one in self.failed}
        for name in alive:
            setting = self.settings[name]
            place = _place(setting)
            if name in out or (number == 0 and worse.get(place, 0) >= WORSE_MAX):
                continue
            turn = earlier.get(name)
            if turn is None:
                if self._watch.is_over() and self._default in self.turns:
                    return
                turn = self._turn(setting, number, seconds, len(alive))
            if turn is None:
                continue
            worse[place] = 0 if turn.rows_per_s > best_at.get(place, 0.0) else worse.get(place, 0) + 1
            if turn.run_ms_p99 > RUN_MS_MAX:
                worse[place] = WORSE_MAX
            best_at[place] = max(best_at.get(place, 0.0), turn.rows_per_s)
            self.turns.setdefault(name, []).append(turn)

    def _turn(self, setting: Setting, number: int, seconds: float, alive: int) -> Turn | None:
        default = self.turns.get(self._default)
        self._watch.say(
            f"timing {setting.name}",
            self._why(setting, number),
            alive=alive,
            leaders=self._leaders(),
            default_rows_per_s=standing(default).rows_per_s if default else 0.0,
        )
        try:
            executable = self._loaded.load(setting.recipe, setting.threads, setting.instances)
            outputs = tuple(spec.name for spec in executable.outputs)
            kind = setting.rows, outputs
            if kind not in self._batches:
                self._batches[kind] = batches_of(
                    self._samples, setting.rows, outputs, has_batch_axis=self._has_batch_axis, axes=self._axes
                )
            turn = take_turn(executable, self._batches[kind], instances=setting.instances, seconds=seconds)
        except FarthingError as error:
            tried = Tried(name=setting.name, out=str(error).partition("\n")[0])
            self.failed.append(tried)
            self._journal.note(Failed(tried=tried), self._watch.spent_s)
            self.turns.pop(setting.name, None)
            return None
        self._journal.note(Took(setting=setting.name, round=number, turn=turn), self._watch.spent_s)
        return turn

    def _why(self, setting: Setting, number: int) -> str:
        if setting.name == self._default:
            return "the model as it came, one request at a time: what all is compared with, in every round"
        if number == 0:
            return self._judged[setting.recipe.name].why
        seen = self.turns[setting.name]
        best = max(turns[-1].rows_per_s for turns in self.turns.values())
        behind = 1 - standing(seen).rows_per_s / best
        return f"{behind:.0%} behind the fastest, not beyond the noise yet" if behind > 0 else "the fastest so far"

    def _leaders(self) -> tuple[Leader, ...]:
        known = [(name, standing(turns)) for name, turns in self.turns.items()]
        known.sort(key=lambda pair: -pair[1].rows_per_s)
        return tuple(
            Leader(name=name, rows_per_s=seen.rows_per_s, answer_ms=seen.answer_ms) for name, seen in known[:LEADERS]
        )


def _rounds_of(journal: Journal) -> dict[int, dict[str, Turn]]:
    rounds: dict[int, dict[str, Turn]] = {}
    for took in journal.found(Took):
        rounds.setdefault(took.round, {})[took.setting] = took.turn
    finished = {over.number for over in journal.found(Round)}
    return {number: turns for number, turns in rounds.items() if number in finished or number == 0}


def _place(setting: Setting) -> Place:
    return (setting.recipe.name, setting.threads, setting.instances)
