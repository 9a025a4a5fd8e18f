"""Language models on two cores: Farthing and its peers in turn, the same weights and prompts, in one run.

    python benchmarks/llm_cpu/run.py                           everything, three rounds (about an hour)
    python benchmarks/llm_cpu/run.py --quick                   little of each, to see that it works
    python benchmarks/llm_cpu/run.py --models smollm2-135m --only farthing-q8,llama-server-Q4_0 --rounds 5

Each engine has both cores to itself for its turn; then the next, then the next round, because machines drift and only
neighbours in time compare. What the figures mean is in the README beside this file.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parents[1]))  # `machine`, which the benchmark of servers uses too

import figures
import limits
import table
import weights
from figures import OUTPUT_TOKENS, PREFILL_TOKENS, PROMPT_TOKENS, Run, Turn
from process import EngineFailed, Running, prefer
from prompts import Prompts

import engines
import machine
import readme
from engines import LARGE, TINY, Engine

RESULTS: Final = Path(__file__).parents[1] / "results"


@dataclass(frozen=True, slots=True)
class Amount:
    """How many requests each figure comes from."""

    decode: int
    prefill: int
    c8: int
    c32: int
    output: int = OUTPUT_TOKENS


AMOUNTS: Final = {TINY: Amount(4, 4, 16, 64), LARGE: Amount(2, 2, 8, 32)}
"""On S two requests a client, so that the second wave meets running ones; on L one, all at once."""
QUICK: Final = {TINY: Amount(1, 1, 8, 32, 32), LARGE: Amount(1, 1, 8, 32, 16)}


def measure(engine: Engine, model: str, amount: Amount, prompts: Prompts, round_: int, nice: int = 0) -> Turn:
    """One turn."""
    shape, streamed = weights.shape_of(model), engine.streamed(model)
    before = limits.probe()
    busy, own, began = machine.busy_s(), machine.own_cpu_s(), time.monotonic()
    with Running(engine, model, nice) as running:
        running.generate(prompts.take(2, PROMPT_TOKENS), 16, 1)  # warm-up
        running.generate(prompts.take(8, PROMPT_TOKENS), 8, 8)
        alone = running.generate(prompts.take(amount.decode, PROMPT_TOKENS), amount.output, 1)
        firsts = alone + running.generate(prompts.take(5, PROMPT_TOKENS), 2, 1)
        long = running.generate(prompts.take(amount.prefill, PREFILL_TOKENS), 2, 1)
        eight = running.generate(prompts.take(amount.c8, PROMPT_TOKENS), amount.output, 8)
        own_before, started = machine.own_cpu_s(), time.monotonic()
        many = running.generate(prompts.take(amount.c32, PROMPT_TOKENS), amount.output, 32)
        generator_cores = (machine.own_cpu_s() - own_before) / (time.monotonic() - started)
        memory_mb = running.pss_mb()
        strangers = machine.busy_s() - busy - running.cpu_s() - (machine.own_cpu_s() - own)
        took = time.monotonic() - began
    after = limits.probe()
    return Turn(
        engine=engine.name,
        model=model,
        round=round_,
        is_ours=engine.is_ours,
        decode=figures.median_of(alone, lambda a: a.decode_rate),
        prefill=figures.median_of(long, lambda a: PREFILL_TOKENS / a.ttft_s),
        c8=figures.aggregate_rate(eight),
        c32=figures.aggregate_rate(many),
        ttft_c1_ms=figures.median_of(firsts, lambda a: a.ttft_s * 1e3),
        ttft_c8_p95_ms=figures.percentile([a.ttft_s * 1e3 for a in eight], 0.95),
        memory_mb=memory_mb,
        start_s=running.start_s,
        streamed_bytes=streamed,
        read_limit=max(before.read, after.read),
        operations_limit=max(before.operations, after.operations),
        body=shape.body,
        head=shape.head,
        generator_cores=generator_cores,
        strangers_cores=max(0.0, strangers / took),
    )


@contextlib.contextmanager
def machine_alone(lock: Path | None) -> Iterator[None]:
    """Holds a lock file for one turn, on machines whose users agree on one."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def options_from(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of little: shows that it works, proves nothing")
    parser.add_argument("--only", default="", help=f"engines, separated by commas: {', '.join(engines.BY_NAME)}")
    parser.add_argument("--models", default=",".join(weights.NAMES), help="models, separated by commas")
    parser.add_argument("--rounds", type=int, help="how often each engine has its turn (3)")
    parser.add_argument("--lock", type=Path, help="a file to lock during each turn, where others share the machine")
    parser.add_argument("--prepare", action="store_true", help="install and convert everything, measure nothing")
    parser.add_argument(
        "--nice", type=int, default=0, help="priority of it all, -20 to 19: negative where others share"
    )
    parser.add_argument("--readme", action="store_true", help="put the tables into the README, between their marks")
    parser.add_argument("--out", type=Path, help="the JSON file (benchmarks/results/llm-cpu-DATE.json)")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.only = options.only.split(",") if options.only else [e.name for e in engines.ALL if e.is_default]
    options.models = options.models.split(",")
    for name, known in [(n, engines.BY_NAME) for n in options.only] + [(n, weights.NAMES) for n in options.models]:
        if name not in known:
            parser.error(f"`{name}` is none of {', '.join(known)}")
    options.out = options.out or RESULTS / f"llm-cpu-{time.strftime('%Y-%m-%d', time.gmtime())}.json"
    return options


def main(argv: list[str] | None = None) -> int:
    """Runs it all; the exit status is 1 if an engine failed."""
    options = options_from(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the `with`, so that no engine is left behind
    chosen = [engines.BY_NAME[name] for name in options.only]
    for engine in chosen:
        engine.install()
        for model in options.models:
            if model in engine.models:
                engine.prepare(model)
    if options.prepare:
        return 0
    os.nice(options.nice)
    prefer("self", options.nice)
    run = Run(machine=machine.describe(), engines={}, settings={}, turns=[], failures=[])
    amounts = QUICK if options.quick else AMOUNTS
    run.settings = {
        "rounds": options.rounds,
        "is_quick": options.quick,
        "requests": {m: asdict(amounts[m]) for m in options.models},
    }
    for engine in chosen:
        run.engines[engine.name] = {"about": engine.about, "version": engine.version()}
    weights.prepare(TINY)
    tokenizer = weights.tokenizer()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for round_ in range(1, options.rounds + 1):
        for model in options.models:
            for engine in chosen:
                if model not in engine.models:
                    continue
                prompts = Prompts.of(tokenizer)
                prompts.skip_to((round_ - 1) / options.rounds)
                print(f"round {round_}: {model} on {engine.name}", file=sys.stderr, flush=True)
                try:
                    with machine_alone(options.lock):
                        run.turns.append(measure(engine, model, amounts[model], prompts, round_, options.nice))
                    print(f"  {table.one_line(run.turns[-1])}", file=sys.stderr, flush=True)
                except EngineFailed as failed:
                    print(f"  FAILED {failed}", file=sys.stderr, flush=True)
                    run.failures.append(f"round {round_}, {model}: {str(failed).partition(chr(10))[0]}")
                options.out.write_text(json.dumps(asdict(run), indent=1) + "\n")
    print(table.markdown(run))
    print(f"written to {options.out}", file=sys.stderr)
    if options.readme:
        readme.put("bench-llm", table.for_readme(run, options.out.name))
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
