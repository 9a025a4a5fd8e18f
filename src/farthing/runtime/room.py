"""Memory for models under a budget: makes room for a load, has it done, measures what it took.

Carries out what `runtime.placement` decides. Loads take turns here, so that what memory grows by meanwhile is the
model's: traffic and other loads would be counted with it. What resting means for requests belongs to `runtime.resting`,
the table of models to `runtime.catalog`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from farthing.repository import FoundModel, FoundVersion
from farthing.runtime.ensemble import LoadedEnsemble
from farthing.runtime.footprint import give_back, own_bytes, own_mappings, process_bytes
from farthing.runtime.language_model import LoadedLanguageModel
from farthing.runtime.load import LoadedVersion
from farthing.runtime.placement import STAY_LOADS, Key, Load, Refuse, Resident, Wait, place
from farthing.runtime.resting import WAIT_S_MAX
from farthing.runtime.serve_loaded import Loaded
from farthing.types.errors import LoadFailed, Overloaded

TWICE_BYTES_MAX: Final = 32 << 20
"""The first model of its kind brings its engine's library with it (ONNX Runtime: 32 MB), which is not its own. If it is
no larger than this, it is loaded twice, and the second load is measured."""

DOUBTED_BYTES: Final = 1 << 20
"""A model of at most that size which seems to take half as much again as its files, and so much more, is loaded and
measured once more, and the smaller figure holds: what other threads took meanwhile would be counted as the model's for
as long as it lives, and others would find no room."""

log = logging.getLogger(__name__)


class Memory:
    """What one version holds, and what is known of what it will hold when it is loaded again."""

    __slots__ = ("evictions", "loaded_ms", "loads", "own_bytes", "pids", "process_bytes", "stays_until_ns")

    def __init__(self) -> None:
        self.own_bytes = 0
        """In this process, as its last load was measured; 0: never."""
        self.process_bytes = 0
        """In processes of its own, as last looked at."""
        self.pids: Callable[[], Iterable[int | None]] = tuple
        self.loaded_ms = 0
        self.stays_until_ns = 0
        self.loads = 0
        self.evictions = 0

    @property
    def bytes(self) -> int:
        return self.own_bytes + self.process_bytes


class Held(NamedTuple):
    """A version in memory."""

    key: Key
    memory: Memory
    used_ms: int
    is_busy: bool
    may_go: bool
    """Whether it can be loaded on demand."""


class Room:
    """The budget, and everything that goes through it."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        pinned: frozenset[str],
        held: Callable[[], list[Held]],
        rest: Callable[[Key], Awaitable[None]],
        loader: ThreadPoolExecutor,
    ) -> None:
        """`rest` unloads a version so that it is loaded on demand, and returns once its memory is free."""
        self.budget_bytes = budget_bytes
        self._pinned = pinned
        self._held = held
        self._rest = rest
        self._loader = loader
        self._turn = asyncio.Lock()
        self._kinds: set[str] = set()
        """Endings of model files of which one was loaded."""
        self._under_way: dict[Key, float] = {}
        """Loads that run or wait, and how long each will take, seconds."""

    @property
    def held_bytes(self) -> int:
        """What all versions in memory hold together."""
        return sum(one.memory.bytes for one in self._held())

    def load_s(self, key: Key, own_s: float) -> float:
        """How long until this version is loaded, behind those that are before it, seconds."""
        return sum(self._under_way.values()) + (0.0 if key in self._under_way else own_s)

    async def load(
        self,
        memory: Memory,
        found: FoundModel,
        source: FoundVersion,
        read: Callable[[FoundModel, FoundVersion], Loaded],
        *,
        load_s: float,
        is_on_demand: bool,
    ) -> Loaded:
        """Reads a version once there is room. Raises `LoadFailed` where it can never fit, `Overloaded` where those
        that are in the way stay busy, and what `read` raises.
        """
        loop = asyncio.get_running_loop()
        key = (found.key, source.number)
        until = time.monotonic() + WAIT_S_MAX
        self._under_way[key] = load_s
        try:
            while True:
                async with self._turn:
                    guess = await loop.run_in_executor(self._loader, files_bytes, found, source)
                    needed = memory.bytes or guess
                    await self._look_at_processes()
                    decided = self._decide(needed)
                    if isinstance(decided, Load):
                        await self._make(decided.unload)
                        if guess < TWICE_BYTES_MAX and source.path.suffix not in self._kinds:
                            await loop.run_in_executor(self._loader, _load_and_close, read, found, source)
                        self._kinds.add(source.path.suffix)
                        started_ns = time.monotonic_ns()
                        loaded, own, pids = await loop.run_in_executor(
                            self._loader, _measured, read, found, source, guess
                        )
                        await self._correct(key, memory, loaded, max(own, guess), pids)
                        now_ns = time.monotonic_ns()
                        memory.stays_until_ns = now_ns + STAY_LOADS * (now_ns - started_ns) if is_on_demand else 0
                        return loaded
                if isinstance(decided, Refuse):
                    raise self._too_large(key, needed, decided)
                now = time.monotonic()
                if now >= until:
                    raise Overloaded(
                        f"model `{key[0]}` version {key[1]} needs {needed} bytes, and the models in its place are busy",
                        hint="raise --model-memory, or serve fewer models here",
                        retry_after_s=max(1.0, load_s),
                    )
                await asyncio.sleep(min(until - now, max(0.0, decided.until_ns / 1e9 - now) + 0.001))
        finally:
            del self._under_way[key]

    def _decide(self, needed: int) -> Load | Refuse | Wait:
        residents = [
            Resident(
                key=one.key,
                bytes=one.memory.bytes,
                used_ms=max(one.used_ms, one.memory.loaded_ms),
                stays_until_ns=one.memory.stays_until_ns,
                is_busy=one.is_busy,
                is_pinned=not one.may_go or one.key[0].rpartition("/")[2] in self._pinned,
            )
            for one in self._held()
        ]
        return place(residents, needed_bytes=needed, budget_bytes=self.budget_bytes, now_ns=time.monotonic_ns())

    async def _make(self, keys: Sequence[Key]) -> None:
        await asyncio.gather(*map(self._rest, keys))
        if keys:
            await asyncio.get_running_loop().run_in_executor(self._loader, give_back)

    async def _correct(
        self, key: Key, memory: Memory, loaded: Loaded, own: int, pids: Callable[[], Iterable[int | None]]
    ) -> None:
        """Writes down what a version takes, and makes the room that it took beyond what was thought."""
        loop = asyncio.get_running_loop()
        processes = await loop.run_in_executor(self._loader, process_bytes, pids())
        if isinstance(loaded, LoadedEnsemble):
            own = 0
        decided = self._decide(own + processes)
        if isinstance(decided, Refuse):
            await loop.run_in_executor(self._loader, _close, loaded)
            memory.own_bytes, memory.process_bytes = own, processes
            raise self._too_large(key, own + processes, decided)
        if isinstance(decided, Load):
            await self._make(decided.unload)
        else:
            log.warning("models hold more than --model-memory until some of them are idle")
        memory.own_bytes, memory.process_bytes, memory.pids = own, processes, pids
        memory.loaded_ms = time.time_ns() // 1_000_000

    async def _look_at_processes(self) -> None:
        """What Python models hold changes as they run."""
        looked = [(one.memory, tuple(one.memory.pids())) for one in self._held()]
        for memory, pids in looked:
            if pids:
                loop = asyncio.get_running_loop()
                memory.process_bytes = await loop.run_in_executor(self._loader, process_bytes, pids)

    def _too_large(self, key: Key, needed: int, refused: Refuse) -> LoadFailed:
        left = refused.left_bytes
        beside = " beside the models that are never unloaded" if left < self.budget_bytes else ""
        return LoadFailed(
            f"model `{key[0]}` version {key[1]} needs {needed} bytes; --model-memory leaves {left}{beside}",
            hint="raise --model-memory, or serve it elsewhere",
        )


def files_bytes(found: FoundModel, source: FoundVersion) -> int:
    """The size of a version's files: the first guess at what it will hold."""
    if found.config.ensemble_scheduling is not None:
        return 0
    if source.path.is_dir():
        return _folder_bytes(source.path)
    is_alone = source.path.parent == found.folder
    return source.path.stat().st_size if is_alone else _folder_bytes(source.path.parent)


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _measured(
    read: Callable[[FoundModel, FoundVersion], Loaded], found: FoundModel, source: FoundVersion, guess: int
) -> tuple[Loaded, int, Callable[[], Iterable[int | None]]]:
    """A version, the bytes that this process grew by, and the processes it has of its own."""
    loaded, own = _measured_once(read, found, source)
    is_doubted = own > guess * 3 // 2 + DOUBTED_BYTES and guess < TWICE_BYTES_MAX
    if is_doubted and isinstance(loaded, LoadedVersion) and not hasattr(loaded.executable, "pids"):
        _close(loaded)
        del loaded  # its memory goes before it is measured what the next takes
        loaded, again = _measured_once(read, found, source)
        own = min(own, again)
    executable = loaded.executable if isinstance(loaded, LoadedVersion) else None
    return loaded, own, lambda: getattr(executable, "pids", ())


def _measured_once(
    read: Callable[[FoundModel, FoundVersion], Loaded], found: FoundModel, source: FoundVersion
) -> tuple[Loaded, int]:
    before = own_bytes()
    with own_mappings():
        loaded = read(found, source)
    return loaded, max(0, own_bytes() - before)


def _load_and_close(
    read: Callable[[FoundModel, FoundVersion], Loaded], found: FoundModel, source: FoundVersion
) -> None:
    with own_mappings():
        _close(read(found, source))


def _close(loaded: Loaded) -> None:
    if isinstance(loaded, LoadedVersion):
        loaded.executable.close()
    elif isinstance(loaded, LoadedLanguageModel):
        loaded.close(WAIT_S_MAX)
