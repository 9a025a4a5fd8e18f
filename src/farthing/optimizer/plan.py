"""A plan on disk: what was decided for a model, what was measured, and where that holds.

    model.onnx
    model.onnx.farthing-plan/
        plan.toml       every decision with its figures; for people, and for `farthing serve`
        model.onnx      the file to run instead, if the plan needs one

A plan is written beside the old one and takes its place in one step, so whatever goes wrong the old one stays. It
holds for the file it was made from, on the machine it was made on; elsewhere it says so and is not used.
"""

import hashlib
import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec
import tomli_w

from farthing.optimizer.agreement import Drop, OutputError
from farthing.optimizer.machine import ENGINES, Machine
from farthing.repository.listing import PLAN_SUFFIX
from farthing.types.batch_axes import BatchAxes
from farthing.types.errors import InvalidInput, LoadFailed

FORMAT: Final = 1
FILE: Final = "plan.toml"
TOML_BYTES_MAX: Final = 4 << 20
HASH_CHUNK: Final = 1 << 20

LIBRARY_OF: Final = {"compiled": "llvmlite"}
"""Ways of running trees that are not called as their library is."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The file a plan was made from."""

    file: str
    sha256: str
    bytes: int


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, beside the target's figures: enough to ask again."""

    metric: str = "auto"
    data: str = ""
    """The file; empty where arrays were given."""
    tokenizer: str = ""
    outputs: tuple[str, ...] = ()
    has_fixed_shapes: bool = False


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """What was judged by."""

    sha256: str
    """Of all values (`samples.digest_of`)."""
    samples: int
    judged_by: str
    """The metric, `auto` made definite."""


class Companion(msgspec.Struct, frozen=True, kw_only=True):
    """A model that shares the machine."""

    place: str
    """Its file, seen from this model's folder."""
    bytes: int
    sha256: str


class Together(msgspec.Struct, frozen=True, kw_only=True):
    """How a model runs beside others, all at full load."""

    others: tuple[Companion, ...]
    alone_rows_per_s: float
    """As it was planned, with the machine to itself."""
    share: float
    """Of the machine's cost that is this model's: its part of what it does alone, in parts of all models' sum."""
    memory_bytes: int
    """What the process grew by when it was loaded and had run, about."""
    tried: tuple["Shared", ...] = ()


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """One way of sharing the machine."""

    name: str
    """Such as `2 x 1 thread | 1 x 2 threads`, in the order of the models."""
    parts: tuple[float, ...]
    """Each model's rate in parts of what it does alone."""
    answer_ms: tuple[float, ...]
    turns: int
    out: str = ""
    """Why it was not chosen; empty for the winner."""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate, and how far it came."""

    name: str
    recipe: str = ""
    """The recipe of a setting; empty for a recipe that was not timed."""
    why: str = ""
    """What it was hoped to gain."""
    rows_per_s: float = 0.0
    low: float = 0.0
    high: float = 0.0
    answer_ms: float = 0.0
    drop: float = 0.0
    drop_upper: float = 0.0
    turns: int = 0
    out: str = ""
    """Why it was not chosen; empty for the winner."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided for one model on one machine."""

    format: int
    made: str
    """Date and time, UTC."""
    source: Source
    machine: Machine
    answer_ms_max: float | None = None
    """The target: how long the answer to the unluckiest request may take."""
    drop_max: float
    price_usd_per_hour: float | None = None
    asked: Asked = Asked()
    data: Data | None = None
    # what to do
    engine: str
    precision: str
    artefact: str = ""
    """The file in the plan's folder to run; empty: the model's own."""
    threads: int
    instances: int
    rows: int
    """Of a batch, to begin with."""
    parameters: dict[str, str] = {}
    axes: BatchAxes | None = None
    """Along which requests share a run, where the model's file gives batches no dimension; None: as the file says."""
    # what that gives
    rows_per_s: float
    answer_ms: float
    default_rows_per_s: float
    """Of the model as it came: ONNX Runtime (or its own engine) on all cores, one request at a time."""
    default: str = ""
    """Its name among `tried`."""
    together: Together | None = None
    """None: it has the machine to itself. Else the figures above are of all models at full load together."""
    drop: Drop | None = None
    """None: answers are the same but for the order of sums."""
    errors: tuple[OutputError, ...] = ()
    notes: tuple[str, ...] = ()
    """What people should know of the model, the data and the machine."""
    tried: tuple[Tried, ...] = ()

    @property
    def times_cheaper(self) -> float:
        """Than the default, on the same machine."""
        return self.rows_per_s / self.default_rows_per_s

    def is_for(self, asked: Asked, data: Data | None, answer_ms_max: float | None, drop_max: float) -> bool:
        """Whether it was made for this."""
        return (
            self.data is not None
            and data is not None
            and self.data.sha256 == data.sha256
            and (self.answer_ms_max, self.drop_max) == (answer_ms_max, drop_max)
            and self.asked == asked
        )

    def usd_per_million(self, rows_per_s: float | None = None) -> float | None:
        """Dollars for a million rows at this rate, the machine fully used, or this model's share of it; None without a
        price."""
        if self.price_usd_per_hour is None:
            return None
        share = self.together.share if self.together else 1.0
        return share * self.price_usd_per_hour / 3600 / (rows_per_s or self.rows_per_s) * 1e6


def folder_of(model: Path) -> Path:
    """Where the plan of this model file is."""
    return model.with_name(model.name + PLAN_SUFFIX)


def write_plan(model: Path, plan: Plan, artefact: Path | None) -> Path:
    """Puts the plan in its place; answers its folder. Raises `InvalidInput` when the disk refuses."""
    folder = folder_of(model)
    old = None
    try:
        new = Path(tempfile.mkdtemp(prefix=f".{model.name}.", dir=model.parent))
        try:
            if artefact is not None:
                copy_artefact(artefact, new / plan.artefact)
            (new / FILE).write_text(_toml(plan), encoding="utf-8")
            new.chmod(0o755)
            if folder.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{model.name}.", dir=model.parent)) / "old"
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old is not None and old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(new, ignore_errors=True)
            raise
        finally:
            if old is not None:
                shutil.rmtree(old.parent, ignore_errors=True)
    except OSError as error:
        raise InvalidInput(
            f"{folder}: the plan cannot be written: {error}",
            hint="make room, or make the folder writable; the plan that was there is untouched",
        ) from error
    return folder


def copy_artefact(artefact: Path, to: Path) -> Path:
    """Copies a file that a plan runs, an IR with its weights."""
    for file, copy in zip(files_of(artefact), files_of(to), strict=True):
        shutil.copyfile(file, copy)
    return to


def files_of(artefact: Path) -> tuple[Path, ...]:
    """The file, and those it cannot be without."""
    return (artefact, artefact.with_suffix(".bin")) if artefact.suffix == ".xml" else (artefact,)


def read_plan(model: Path) -> Plan | None:
    """The plan of this model; None if there is none. Raises `LoadFailed` for one that cannot be read."""
    file = folder_of(model) / FILE
    try:
        with file.open("rb") as opened:
            text = opened.read(TOML_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LoadFailed(f"{file}: cannot be read: {error}") from error
    try:
        if len(text) > TOML_BYTES_MAX:
            raise ValueError(f"longer than {TOML_BYTES_MAX} bytes")
        plan = msgspec.convert(tomllib.loads(text.decode()), Plan)
        if plan.format != FORMAT:
            raise ValueError(f"format {plan.format}; this version reads {FORMAT}")
        if plan.artefact != Path(plan.artefact).name:
            raise ValueError(f"artefact `{plan.artefact}` is not a file of its own folder")
        if not (0 < plan.threads <= 1024 and 0 < plan.instances <= 1024 and 0 < plan.rows <= 65536):
            raise ValueError("threads, instances and rows are counts from 1 up")
    except (ValueError, RecursionError) as error:  # TOML, UTF-8 and msgspec's errors are all ValueErrors
        raise LoadFailed(
            f"{file}: is no plan: {error}", hint="make it again with `farthing optimize`, or delete its folder"
        ) from error
    return plan


def stale(plan: Plan, model: Path, machine: Machine) -> str:
    """Why this plan should not be used here; empty if it should."""
    reasons = machine_differences(plan, machine)
    missing = [file.name for file in files_of(folder_of(model) / plan.artefact) if not file.is_file()]
    if plan.artefact and missing:
        reasons.append(f"its file {missing[0]} is missing")
    for other in plan.together.others if plan.together else ():
        file = model.parent / other.place
        if not file.is_file():
            reasons.append(f"it shares the machine with {other.place}, which is not there any more")
        elif file.stat().st_size != other.bytes or digest(file) != other.sha256:
            reasons.append(f"it shares the machine with {other.place}, which has changed since")
    if not reasons and (model.stat().st_size != plan.source.bytes or digest(model) != plan.source.sha256):
        reasons.append("the model has changed since")
    return "; ".join(reasons)


def machine_differences(plan: Plan, machine: Machine) -> list[str]:
    """How this machine is not the one that was measured."""
    own = plan.parameters.get("runtime")
    used = LIBRARY_OF.get(own, own) if own else None
    return plan.machine.differences(machine, (*ENGINES, *([used] if used else [])))


def source_of(model: Path) -> Source:
    """What a plan notes of its model."""
    return Source(file=model.name, sha256=digest(model), bytes=model.stat().st_size)


def digest(model: Path) -> str:
    """SHA-256 of the file, hexadecimal."""
    whole = hashlib.sha256()
    with model.open("rb") as opened:
        while chunk := opened.read(HASH_CHUNK):
            whole.update(chunk)
    return whole.hexdigest()


def _toml(plan: Plan) -> str:
    head = f"# Made by `farthing optimize` on {plan.made}; `farthing explain` tells it in words.\n"
    return head + tomli_w.dumps(_without_none(msgspec.to_builtins(plan)))


def _without_none(value: Any) -> Any:
    """TOML has no null: what is None is left out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value
