"""The modes of `farthing bench`: a sweep, one open load, a search, a comparison, MLPerf; each is loads and a report.

What was asked is a value (`Asked`), read from the command line by `cli.bench`, which also shows progress.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.bench.arrivals import OpenLoad, Process, Times, arrivals
from farthing.bench.asked import Asked, settings_of
from farthing.bench.comparison import Side, order, ratio
from farthing.bench.endpoint import Measurable, model_inputs, open_target
from farthing.bench.frame_load import FramesAsked, frame_load, frame_plan
from farthing.bench.in_process import InProcess
from farthing.bench.inputs import Inputs, inputs_from_file, random_inputs
from farthing.bench.knee import knee
from farthing.bench.load import Load, Work
from farthing.bench.measure import Measured, OnProgress, check_answers, measure
from farthing.bench.mlperf import (
    PROBE_S,
    Scenario,
    check_asked,
    constant_stream,
    loadgen,
    probe_connections,
    run_loadgen,
)
from farthing.bench.mlperf import Asked as LoadGenAsked
from farthing.bench.prompts import LENGTH_MAX, Turn, conversations, parse_lengths, prompts_of_file, replayed
from farthing.bench.report import Compared, Report, report
from farthing.bench.search import Found, Limits, Trial, decide
from farthing.bench.targets import Metric, Target, Verdict, judge, parse_targets
from farthing.bench.traces import read_trace, scaled
from farthing.bench.workload import chat_work, infer_work
from farthing.types.errors import InvalidInput, InvalidSetting

SEARCH_MAX: Final = 1024
"""Connections, where a search has no other limit; its rates go up to `RATE_MAX`."""
RATE_MAX: Final = 1_000_000.0
PROMPTS_CLOSED: Final = 2_048
"""Different conversations of a closed loop, which cannot know how many it will need."""
CHAT_FIELDS: Final = {"ignore_eos": True}
"""Answers have the length asked for: what is compared must be equally long."""

Shown = Callable[[str, float], AbstractContextManager[OnProgress]]


def benchmark(asked: Asked, shown: Shown) -> Report:
    """Does what is asked. `shown` is entered for each load, with its name and seconds; it gives what to call."""
    with ExitStack() as opened:
        return _benchmark(asked, shown, opened)


def _benchmark(asked: Asked, shown: Shown, opened: ExitStack) -> Report:

    if asked.mlperf:
        _check_mlperf(asked)
    endpoint = _open(asked.url, asked, opened)
    targets = parse_targets(asked.find or asked.goal) if asked.find or asked.goal else ()
    bench = _Bench(asked, endpoint, targets, shown)
    check_answers(endpoint, bench.work, timeout_s=asked.timeout_s)
    settings = settings_of(asked)
    if asked.mlperf:
        try:
            return bench.mlperf(settings)
        except KeyboardInterrupt:
            opened.pop_all()  # LoadGen's thread goes on asking until the process ends: close nothing under it
            raise
    if asked.against:
        return bench.compare(_open(asked.against, asked, opened), settings)
    if asked.find:
        return bench.search(settings)
    if asked.rate or asked.trace:
        return report(asked.url, settings, [bench.run(*bench.open_load(asked.rate))])
    if asked.frames:
        return bench.frames(settings)
    runs: list[Measured] = []
    for connections in asked.concurrency:
        runs.append(bench.run(*bench.closed_load(connections)))
        if runs[-1].is_interrupted:
            break
    medians = [run.figures.latency.at(50.0).value if run.figures.latency else None for run in runs]
    curve = [(run.figures.rate.value, median) for run, median in zip(runs, medians, strict=True) if median]
    at = knee([rate for rate, _ in curve], [median for _, median in curve]) if len(curve) == len(runs) else None
    return report(asked.url, settings, runs, knee=at)


def _open(target: str, asked: Asked, opened: ExitStack) -> Measurable:

    found = open_target(target, asked.kind, asked.api_key)
    if isinstance(found, InProcess):
        opened.callback(found.close)
    return found


def _check_mlperf(asked: Asked) -> None:
    """Before anything is loaded."""
    if asked.find or asked.against or asked.trace or asked.turns > 1:
        raise InvalidSetting(
            "--mlperf sends single requests by MLPerf's own rules",
            hint="leave out --find, --against, --trace and --turns",
        )
    if Scenario(asked.mlperf) is Scenario.CONSTANT_STREAM:
        if asked.rate is None or asked.is_accuracy:
            raise InvalidSetting("ConstantStream is frames at a constant rate", hint="add --rate 30")
    else:
        loadgen()
        check_asked(_asked_of_loadgen(asked))


def _asked_of_loadgen(asked: Asked) -> LoadGenAsked:

    targets = parse_targets(asked.goal) if asked.goal else ()
    return LoadGenAsked(
        scenario=Scenario(asked.mlperf),
        is_accuracy=asked.is_accuracy,
        duration_s=asked.duration_s,
        timeout_s=asked.timeout_s,
        connections=max(asked.concurrency),
        rate=asked.rate[0] if asked.rate else None,
        targets=targets,
        config=asked.mlperf_conf,
        model=",".join(asked.models),
        logs=asked.mlperf_logs,
        seed=asked.seed,
        is_text=asked.kind == "openai",
    )


class _Bench:
    """What one endpoint is asked, and the modes of asking."""

    def __init__(self, asked: Asked, endpoint: Measurable, targets: tuple[Target, ...], shown: Shown) -> None:
        self._asked, self._endpoint, self._targets, self._shown = asked, endpoint, targets, shown
        self._inputs = {} if asked.kind == "openai" else _inputs(asked, endpoint)
        self.work = _work(asked, endpoint, self._inputs)

    def run(
        self, load: Load, label: str, at: float, endpoint: Measurable | None = None, work: Work | None = None
    ) -> Measured:

        with self._shown(label, load.duration_s) as on_progress:
            return measure(
                endpoint or self._endpoint,
                work or self.work,
                load,
                label=label,
                at=at,
                warm_up_s=self._asked.warm_up_s,
                targets=self._targets,
                on_progress=on_progress,
            )

    def closed_load(self, connections: int) -> tuple[Load, str, float]:

        asked = self._asked
        load = Load(
            connections=connections, duration_s=asked.duration_s, timeout_s=asked.timeout_s, pause_s=asked.pause_s
        )
        unit = (
            "at once" if isinstance(self._endpoint, InProcess) else "connection" if connections == 1 else "connections"
        )
        return load, f"{connections} {unit}", float(connections)

    def open_load(self, rate: tuple[float, float | None] | None) -> tuple[Load, str, float]:

        asked = self._asked
        if asked.trace:
            times, label = _trace_times(asked), f"{asked.trace.name} x{asked.speed:g}"
            at = len(times) / asked.duration_s
        else:
            assert rate is not None
            first, last = rate
            process = Process.CONSTANT if asked.mlperf else Process(asked.arrivals)
            wanted = OpenLoad(rate=first, rate_end=last, process=process, burstiness=asked.burstiness)
            times = arrivals(wanted, asked.duration_s, asked.seed)
            label, at = f"{first:g}{f' to {last:g}' if last else ''}/s {process.value}", first
        load = Load(
            connections=asked.connections_max,
            duration_s=asked.duration_s,
            arrivals_s=times,
            timeout_s=asked.timeout_s,
            pause_s=asked.pause_s,
        )
        return load, label, at

    def search(self, settings: dict[str, Any]) -> Report:

        asked = self._asked
        is_open = asked.rate is not None
        low = asked.rate[0] if asked.rate else 1.0
        limits = Limits(load_min=low, load_max=RATE_MAX if is_open else SEARCH_MAX, is_whole=not is_open)
        runs: list[Measured] = []
        trials: list[Trial] = []
        while not isinstance(step := decide(trials, limits), Found):
            shape = self.open_load((step.load, None)) if is_open else self.closed_load(int(step.load))
            runs.append(self.run(*shape))
            if runs[-1].is_interrupted:
                step = Found(load=None, missed=None, reason="interrupted")
                break
            trials.append(Trial(load=step.load, verdict=_verdict(runs[-1], self._targets)))
        runs.sort(key=lambda run: run.load)
        return report(asked.url, settings, runs, found=step)

    def mlperf(self, settings: dict[str, Any]) -> Report:

        asked = self._asked
        if Scenario(asked.mlperf) is Scenario.CONSTANT_STREAM:
            assert asked.rate is not None
            target = (self._targets or parse_targets(f"p99<{1e3 / asked.rate[0]:.6f}ms"))[0]
            run = self._frame_run(1, asked.rate[0], target.limit_s)
            return report(asked.url, settings, [run], mlperf=constant_stream(run, target))
        wanted = _asked_of_loadgen(asked)
        probe = Load(connections=probe_connections(wanted), duration_s=PROBE_S, timeout_s=asked.timeout_s)
        seen = self.run(probe, "warming up", 0.0).figures
        with self._shown(f"LoadGen, {wanted.scenario.loadgen_name}", asked.duration_s) as on_progress:
            run, judged = run_loadgen(
                self._endpoint, self.work, wanted, expected_rate=seen.rate.value or 1.0, on_progress=on_progress
            )
        return report(asked.url, settings, [run], mlperf=judged)

    def frames(self, settings: dict[str, Any]) -> Report:
        """So many streams of frames at once, one number of streams after the other."""
        asked = self._asked
        assert asked.frames is not None
        runs: list[Measured] = []
        for streams in asked.concurrency:
            runs.append(self._frame_run(streams, asked.frames, asked.deadline_s))
            if runs[-1].is_interrupted:
                break
        return report(asked.url, settings, runs)

    def _frame_run(self, streams: int, rate: float, deadline_s: float | None) -> Measured:
        asked = self._asked
        if len(self._inputs) != 1:
            raise InvalidSetting("a stream of frames is to one model", hint="give one --model")
        ((model, requests),) = self._inputs.items()
        wanted = FramesAsked(
            model=model,
            rate=rate,
            deadline_s=deadline_s,
            policy=asked.policy,
            duration_s=asked.duration_s,
            timeout_s=asked.timeout_s,
            connections_max=asked.connections_max,
        )
        plan = frame_plan(wanted, self._endpoint)
        work, load, label = frame_load(wanted, plan, streams, self.work, requests)
        return self.run(load, label, float(streams), work=work)

    def compare(self, other: Measurable, settings: dict[str, Any]) -> Report:

        asked = self._asked
        other_work = _work(asked, other, {} if asked.kind == "openai" else _inputs(asked, other))
        check_answers(other, other_work, timeout_s=asked.timeout_s)
        sides: dict[Side, list[Measured]] = {Side.A: [], Side.B: []}
        for turn, side in enumerate(order(asked.rounds)):
            load, label, at = self.open_load(asked.rate) if asked.rate else self.closed_load(asked.concurrency[0])
            label = f"{side.value} round {turn // 2 + 1}: {label}"
            is_b = side is Side.B
            run = self.run(load, label, at, other if is_b else None, other_work if is_b else None)
            sides[side].append(run)
            if run.is_interrupted:
                break
        compared = _compared(asked, sides[Side.A], sides[Side.B])
        return report(asked.url, settings, sides[Side.A], compared=compared)


def _compared(asked: Asked, a: list[Measured], b: list[Measured]) -> Compared:

    def tokens(run: Measured) -> float | None:
        return run.figures.tokens_s.value if run.figures.tokens_s else None

    def percentile(percent: float) -> Callable[[Measured], float | None]:
        return lambda run: run.figures.latency.at(percent).value if run.figures.latency else None

    quantities: dict[str, Callable[[Measured], float | None]] = {
        "requests/s": lambda run: run.figures.rate.value,
        "p50 latency": percentile(50.0),
        "p99 latency": percentile(99.0),
        "tokens/s": tokens,
        "CPU a request": lambda run: run.server.cpu_us_per_request if run.server else None,
    }
    ratios = {}
    for name, of in quantities.items():
        pairs = [(one, other) for one, other in zip(map(of, a), map(of, b), strict=False) if one and other]
        if pairs and len(pairs) == min(len(a), len(b)):
            ratios[name] = ratio([one for one, _ in pairs], [other for _, other in pairs])
    return Compared(a=asked.url, b=asked.against, ratios=ratios, b_runs=b)


def _verdict(run: Measured, targets: tuple[Target, ...]) -> Verdict:
    """Of a whole trial: missed if any target is, or requests failed; met if all are."""

    found = run.figures
    if found.errors or not found.answered or "grows" in found.rest_problem:
        return Verdict.MISSED
    spreads = {Metric.LATENCY: found.latency, Metric.TTFT: found.ttft, Metric.TPOT: found.tpot, Metric.ITL: found.itl}
    verdicts = set()
    for target in targets:
        spread = spreads[target.metric]
        if spread is None:
            raise InvalidInput(f"`{target}`: this endpoint has no {target.metric.value}")
        verdicts.add(judge(target, spread.at(target.percent)))
    return (
        Verdict.MISSED if Verdict.MISSED in verdicts else Verdict.UNSURE if Verdict.UNSURE in verdicts else Verdict.MET
    )


def _work(asked: Asked, endpoint: Measurable, inputs: dict[str, list[Inputs]]) -> Work:
    if asked.kind == "openai":
        if len(asked.models) != 1 or isinstance(endpoint, InProcess):
            raise InvalidSetting("a chat is with one model", hint="give one --model")
        return chat_work(endpoint, asked.models[0], _chains(asked), CHAT_FIELDS)
    weights = dict(_weighted(text) for text in asked.models) if asked.models else dict.fromkeys(inputs, 1.0)
    if not sum(weights.values()) > 0:
        raise InvalidSetting("--model: the weights of a mix must not all be 0")
    return infer_work(endpoint, inputs, weights, is_json=asked.is_json)


def _inputs(asked: Asked, endpoint: Measurable) -> dict[str, list[Inputs]]:
    """What each model is sent."""
    if asked.trace:
        raise InvalidSetting("traces are of language models", hint="add --kind openai")
    requests: dict[str, list[Inputs]] = {}
    for name in [_weighted(text)[0] for text in asked.models] or [_only_model(endpoint)]:
        specs = model_inputs(endpoint, name)
        requests[name] = (
            random_inputs(specs, asked.shapes, asked.seed)
            if asked.input == "random"
            else inputs_from_file(Path(asked.input), specs)
        )
    return requests


def _weighted(text: str) -> tuple[str, float]:
    """A model of a mix and its weight: `a:3`; 1 where none is said."""
    name, colon, weight = text.rpartition(":")
    return (name, float(weight)) if colon and weight.replace(".", "", 1).isdecimal() else (text, 1.0)


def _only_model(endpoint: Measurable) -> str:

    if not isinstance(endpoint, InProcess):
        raise InvalidSetting("which model?", hint="add --model NAME")
    models = endpoint.models()
    if len(models) > 1:
        raise InvalidSetting(f"{endpoint.url} has several models", hint=f"add --model, one of: {', '.join(models)}")
    return models[0]


def _chains(asked: Asked) -> list[list[Turn]]:

    if asked.trace:
        rows = scaled(read_trace(asked.trace), speed=asked.speed, duration_s=asked.duration_s)
        return replayed(rows, prompt_tokens_max=LENGTH_MAX, output_tokens_max=LENGTH_MAX, seed=asked.seed)
    if asked.input != "random":
        if asked.turns > 1:
            raise InvalidSetting("--turns makes sessions of synthetic prompts", hint="leave out --input")
        return prompts_of_file(Path(asked.input), parse_lengths(asked.output_tokens), asked.seed)
    count = PROMPTS_CLOSED
    if asked.rate and not asked.find:
        count = min(int(max(asked.rate[0], asked.rate[1] or 0) * asked.duration_s * 1.3) + 16, 100_000)
    return conversations(
        count,
        parse_lengths(asked.prompt_tokens),
        parse_lengths(asked.output_tokens),
        turns=asked.turns,
        prefix_tokens=asked.prefix_tokens,
        prefixes=asked.prefixes,
        seed=asked.seed,
    )


def _trace_times(asked: Asked) -> Times:

    assert asked.trace is not None
    return np.array(
        [row.at_s for row in scaled(read_trace(asked.trace), speed=asked.speed, duration_s=asked.duration_s)]
    )
