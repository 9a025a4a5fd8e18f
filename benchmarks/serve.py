"""The README's table: Farthing and its peers, the same models, one core each, one load generator, in one run.

    python benchmarks/serve.py                      everything, three rounds (about an hour)
    python benchmarks/serve.py --quick              one short round, to see that all of it works
    python benchmarks/serve.py --only farthing,triton --models mlp

Each server in turn runs alone on one core, the load on another; then the next, then the next round, because machines
drift and only neighbours in time compare. How to read the figures is in the README beside this file.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

import load
import machine
import models
import peers
import readme
import report
import targets
import yardstick
from peers.contract import Peer, version
from report import Cell
from server import Server, ServerFailed

RESULTS: Final = Path(__file__).with_name("results")
CONNECTIONS: Final = {"mlp": (1, 8, 64), "effnet": (16,), "minilm": (16,)}
WIRES: Final = {"mlp": ("json", "binary"), "effnet": ("binary",), "minilm": ("json", "binary")}
HEAVY: Final = ("effnet", "minilm")
"""Models whose rate is held against the engine's own."""
YARDSTICKS: Final = 2
"""How many of the best batch sizes are tried again around each server: neighbours differ by less than the drift."""


def wires_of(peer: Peer, model: str) -> tuple[str, ...]:
    """What to send: as planned, or the only thing that the server can read."""
    return tuple(wire for wire in WIRES[model] if wire in peer.wires) or peer.wires[:1]


def measure_cell(server: Server, wire: str, connections: int, options: argparse.Namespace, round_: int) -> Cell:
    """One server, one request, one number of connections: warmed up, then measured."""
    request = server.check(wire)
    calibration_ms = machine.calibration_ms(options.server_core)
    at = {"connections": connections, "core": options.load_core}
    load.run(server.port, request, seconds=options.warm_up, **at)
    cpu, busy, own, started = server.cpu_s(), machine.busy_s(), machine.own_cpu_s(), time.monotonic()
    seen = load.run(server.port, request, seconds=options.seconds, **at)
    wall_s = time.monotonic() - started
    cpu = server.cpu_s() - cpu
    strangers = machine.busy_s() - busy - cpu - (machine.own_cpu_s() - own)
    memory_mb = server.pss_mb()
    server.check(wire)  # still right after all that
    return Cell(
        server=server.peer.name,
        model=server.model.name,
        wire=wire,
        connections=connections,
        round=round_,
        rate=seen.rate,
        p50_ms=seen.p50_ms,
        p99_ms=seen.p99_ms,
        cpu_us=cpu / max(seen.requests, 1) * 1e6,
        memory_mb=memory_mb,
        start_s=server.start_s,
        errors=seen.errors,
        generator_share=seen.generator_share,
        strangers_cores=max(0.0, strangers / wall_s),
        calibration_ms=calibration_ms,
    )


def measure_server(
    peer: Peer, model: models.Model, best: tuple[int, ...], options: argparse.Namespace, round_: int
) -> list[Cell]:
    """All cells of one server with one model; the engine alone is measured just before and just after each."""

    def engine_alone() -> dict[int, yardstick.Alone]:
        if not best:
            return {}
        seconds = options.yardstick_seconds
        return yardstick.measure(model, core=options.server_core, seconds=seconds, batches=best, is_served_too=True)

    cells = []
    with Server(peer, model, core=options.server_core) as server:
        before = engine_alone()
        for wire in wires_of(peer, model.name):
            for connections in CONNECTIONS[model.name]:
                cell = measure_cell(server, wire, connections, options, round_)
                after = engine_alone()
                if best:
                    around = [(before[batch], after[batch]) for batch in best]
                    cell.engine_rate = max((b.rows_per_s + a.rows_per_s) / 2 for b, a in around)
                    cell.engine_cpu_us = min((b.cpu_us_per_row + a.cpu_us_per_row) / 2 for b, a in around)
                    cell.served_engine_rate = max((b.served_rows_per_s + a.served_rows_per_s) / 2 for b, a in around)
                before = after
                print(f"  {report.one_line(cell)}", file=sys.stderr, flush=True)
                cells.append(cell)
    return cells


def options_from(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with `--quick` turned into the times it stands for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of 1 s: shows that it works, proves nothing")
    parser.add_argument("--only", default="", help=f"servers, separated by commas: {', '.join(peers.BY_NAME)}")
    parser.add_argument("--models", default=",".join(models.NAMES), help="models, separated by commas")
    parser.add_argument("--rounds", type=int, help="how often each server has its turn (3)")
    parser.add_argument("--seconds", type=float, help="length of each measurement (5)")
    parser.add_argument("--out", type=Path, help="the JSON file (benchmarks/results/serve-DATE.json)")
    parser.add_argument("--readme", action="store_true", help="put the table into the README, between its marks")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1 if options.quick else 5)
    options.warm_up = 1 if options.quick else 2
    options.yardstick_seconds = 0.4 if options.quick else 1.5
    options.only = options.only.split(",") if options.only else [p.name for p in peers.ALL]
    options.models = options.models.split(",")
    for name, known in [(n, peers.BY_NAME) for n in options.only] + [(n, models.NAMES) for n in options.models]:
        if name not in known:
            parser.error(f"`{name}` is none of {', '.join(known)}")
    options.out = options.out or RESULTS / f"serve-{time.strftime('%Y-%m-%d', time.gmtime())}.json"
    return options


def main(argv: list[str] | None = None) -> int:
    """Runs it all; the exit status is 1 if a server failed or answered wrongly."""
    options = options_from(argv)
    try:
        load.check_installed()
    except load.ToolMissing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    chosen = [peers.BY_NAME[name] for name in options.only]
    run = report.Run(machine=machine.describe(), peers={}, settings={}, engine={}, cells=[], failures=[])
    for peer in chosen:
        peer.install()
        run.peers[peer.name] = {"about": peer.about, "version": peer.version(), "package": peer.main_package}
    run.settings = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "onnxruntime": version(sys.executable, "onnxruntime"),
        "is_quick": options.quick,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for round_ in range(1, options.rounds + 1):
        for model in map(models.load, options.models):
            best: tuple[int, ...] = ()
            if model.name in HEAVY:
                alone = yardstick.measure(
                    model,
                    core=options.server_core,
                    seconds=options.yardstick_seconds,
                    batches=yardstick.BATCHES,
                )
                run.engine.setdefault(model.name, []).append(
                    {batch: asdict(figures) for batch, figures in alone.items()}
                )
                best = tuple(sorted(alone, key=lambda batch: alone[batch].rows_per_s)[-YARDSTICKS:])
            for peer in chosen:
                if model.name not in peer.models:
                    continue
                print(f"round {round_}: {model.name} on {peer.name}", file=sys.stderr, flush=True)
                try:
                    run.cells += measure_server(peer, model, best, options, round_)
                except (ServerFailed, load.LoadFailed) as failed:
                    print(f"  FAILED {failed}", file=sys.stderr, flush=True)
                    run.failures.append(f"round {round_}, {model.name}: {str(failed).partition(chr(10))[0]}")
            options.out.write_text(json.dumps(asdict(run), indent=1) + "\n")
    print(report.markdown(run))
    print("\n#### targets\n")
    print(*targets.lines(run.cells), sep="\n")
    print(f"written to {options.out}", file=sys.stderr)
    if options.readme:
        readme.put("bench-serve", report.for_readme(run, options.out.name))
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
