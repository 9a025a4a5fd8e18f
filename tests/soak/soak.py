"""The soak: a server with every kind of model, rounds of mixed load, and what it holds between them.

Between rounds nobody is connected and nothing is under way, so what the server then has open can be counted exactly;
memory is compared as a whole, for allocators keep what they like.
"""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.language import write_tiny_model
from tests.models import running_sum, save
from tests.runtime.shop import Shop
from tests.serving import Live, serve_process
from tests.soak.clients import CLIENTS, HEAVY, Round

from farthing.repository.uploads import PREFIX

SETTLE_S = 20.0
"""How long what a round left may take to be gone: idle sequences end after 1 s, drains and closes take less."""

GROWTH_MAX = 0.05
"""Resident memory at the end beside that once warm."""

GROWTH_BYTES = 16 << 20
"""What may come on top: memory the allocator keeps differs by as much from one look to the next."""

SNAKE = """
from farthing import Tensor

class Model:
    inputs = [Tensor("x", "FP32", [-1, 1])]
    outputs = [Tensor("y", "FP32", [-1, 1])]
    max_batch_size = 8

    def infer(self, inputs):
        return {"y": inputs["x"] * 3}
"""

BOTH = """
platform: "ensemble"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
ensemble_scheduling {
  step { model_name: "double" model_version: -1
         input_map { key: "x" value: "x" } output_map { key: "y" value: "between" } }
  step { model_name: "snake" model_version: -1
         input_map { key: "x" value: "between" } output_map { key: "y" value: "y" } }
}
"""

SUM = """
max_batch_size: 8
sequence_batching {
  max_sequence_idle_microseconds: 1000000
  oldest { max_candidate_sequences: 64 }
  control_input [ { name: "start" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
                  { name: "id" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 } ] } ]
  state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ 1 ] } ]
}
"""


@dataclass(frozen=True, slots=True)
class Holding:
    """What the server has at one moment."""

    resident_bytes: int
    files: int
    threads: int
    processes: int
    shared_segments: int
    temporary: int

    @property
    def counts(self) -> dict[str, int]:
        """What must be the same in the end; threads and memory need not be to the last."""
        return {
            "open files": self.files,
            "processes": self.processes,
            "shared memory segments": self.shared_segments,
            "temporary files": self.temporary,
        }


def build(folder: Path) -> Path:
    """A repository with one of everything."""
    shop = Shop(folder / "models")
    shop.put("double", 2)
    for place in range(HEAVY):
        shop.put_heavy(f"heavy{place}", place + 1, 16)
    (shop.folder / "snake" / "1").mkdir(parents=True)
    (shop.folder / "snake" / "1" / "model.py").write_text(SNAKE)
    shop.configure("both", BOTH)
    (shop.folder / "both" / "1").mkdir()
    save(shop.folder / "sum", running_sum())
    shop.configure("sum", SUM)
    write_tiny_model(shop.folder / "says")
    return shop.folder


def holding(live: Live, temporary: Path) -> Holding:
    """Asks the kernel about a server and its children."""
    assert live.process is not None
    pid = live.process.pid
    proc = Path("/proc")
    children = [int(child) for task in (proc / str(pid) / "task").iterdir() for child in
                (task / "children").read_text().split()]  # fmt: skip
    status = dict(line.split(":", 1) for line in (proc / str(pid) / "status").read_text().splitlines())
    links = []
    for descriptor in (proc / str(pid) / "fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    resident = int(status["VmRSS"].split()[0]) << 10
    for child in children:
        for line in (proc / str(child) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                resident += int(line.split()[1]) << 10
    return Holding(
        resident_bytes=resident,
        files=len(links),
        threads=int(status["Threads"]),
        processes=len(children),
        shared_segments=sum("memfd:" in link or "/dev/shm/" in link for link in links),
        temporary=sum(
            len(folders) + len(files)
            for where, folders, files in os.walk(temporary)  # unlike a glob it does not mind what goes meanwhile
            if Path(where).relative_to(temporary).parts[:1]
            and Path(where).relative_to(temporary).parts[0].startswith(PREFIX)
        ),
    )


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Servers started within put their temporary files there."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before


def run_round(live: Live, grpc: str, seconds: float) -> Round:
    """All clients at once, for so long."""
    until = time.monotonic() + seconds
    here = Round(live.address, grpc, lambda: time.monotonic() >= until)

    def run(client: Callable[[Round], None]) -> None:
        try:
            client(here)
        except Exception as error:
            here.faults.append(f"{client.__name__}: {error!r}: {error}"[:300])

    threads = [threading.Thread(target=run, args=(client,), name=client.__name__, daemon=True) for client in CLIENTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 90)
        if thread.is_alive():
            here.faults.append(f"{thread.name} hangs: a request was not answered")
    return here


def settled(live: Live, temporary: Path, like: Holding | None) -> Holding:
    """What the server holds once nothing changes any more, or equals what it held before."""
    for name in (*(f"heavy{place}" for place in range(HEAVY)), "double", "snake"):
        assert live.infer(name, [[1.0]]).status == 200  # so that it is always the same models that are in memory
    deadline = time.monotonic() + SETTLE_S
    last = None
    while True:
        now = holding(live, temporary)
        is_calm = last is not None and now.counts == last.counts
        if time.monotonic() > deadline or (is_calm and (like is None or now.counts == like.counts)):
            return now
        last = now
        time.sleep(0.5)


def soak(folder: Path, *, rounds: int, round_s: float, warm_s: float, say: Callable[[str], None] = print) -> list[str]:
    """Runs it, and answers what went wrong: wrong answers, and whatever was more at the end than when it was warm."""
    repository, temporary = build(folder), folder / "temporary"
    temporary.mkdir()
    options = ["--repository", repository, "--model-control-mode", "explicit", "--load-model", "*"]
    options += ["--model-memory", "96MiB", "--load-overrides", "files", "--llm-kv-memory", "4MiB"]
    faults: list[str] = []
    done: Counter[str] = Counter()
    warm: Holding | None = None
    with (
        temporary_files_in(temporary),
        serve_process(folder, *options, grpc=("--grpc", "127.0.0.1:0")) as live,
    ):
        grpc = json.loads((folder / "ready.json").read_text())["grpc"]
        began = time.monotonic()
        for number in range(rounds):
            here = run_round(live, grpc, round_s)
            faults += here.faults[:20]
            done += here.done
            now = settled(live, temporary, warm)
            minutes = (time.monotonic() - began) / 60
            say(
                f"{minutes:5.1f} min  {now.resident_bytes / 1e6:6.1f} MB  {now.threads} threads  {now.counts}  {here.done.total()} done"
            )
            if warm is None and (time.monotonic() - began >= warm_s or number >= rounds // 2):
                warm = now
        assert warm is not None
        evictions = sum(live.metric("farthing_model_evictions", model=f"heavy{n}", version="1") for n in range(HEAVY))
        faults += compared(warm, now)
        if not evictions:
            faults.append("no model ever made room for another, so that was not tried")
        if live.get("/v2/health/ready").status != 200:
            faults.append("the server is not ready at the end")
    if left := list(temporary.glob(f"{PREFIX}*")):  # libraries leave some of their own
        faults.append(f"temporary files left: {left}")
    say(f"{dict(sorted(done.items()))}, {evictions:.0f} evictions")
    return faults


def compared(warm: Holding, end: Holding) -> Iterator[str]:
    """What there is more of than when it was warm. How many threads the heavy models have depends on how many of them
    are in memory just then, and whether one was once slow enough to be given its own."""
    for what, count in end.counts.items():
        if count > warm.counts[what]:
            yield f"{what}: {warm.counts[what]} once warm, {count} at the end"
    if end.threads > warm.threads + HEAVY:
        yield f"threads: {warm.threads} once warm, {end.threads} at the end"
    if end.resident_bytes > warm.resident_bytes * (1 + GROWTH_MAX) + GROWTH_BYTES:
        yield f"memory: {warm.resident_bytes / 1e6:.1f} MB once warm, {end.resident_bytes / 1e6:.1f} MB at the end"
