"""MLPerf's scenarios, issued and judged by MLPerf's own LoadGen (extra `mlperf`); its figures beside ours.

LoadGen says what is sent when, measures, judges and writes its logs; `sut` answers it. ConstantStream, which LoadGen
does not have, is an open load of ours, judged by `constant_stream`. Rules: MLCommons, inference_policies, scenarios.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from farthing.bench.endpoint import Endpoint, Measurable
from farthing.bench.figures import Figures
from farthing.bench.in_process import InProcess
from farthing.bench.load import Load, Message, Work
from farthing.bench.measure import PROGRESS_EVERY_S, Measured, OnProgress, find_local, measured
from farthing.bench.sut import InProcessSut, Sut
from farthing.bench.targets import Metric, Target, Verdict, judge
from farthing.types.errors import EngineFailed, InvalidSetting, Unsupported

SLACK: Final = 1.3
"""Queries are scheduled for so much more speed than was seen before: LoadGen ends early when they run out."""
PROBE_S: Final = 1.0
"""A closed load before the run, by our own driver: it warms the model up and gives LoadGen the speed to expect."""
SAMPLES_PER_QUERY: Final = 8
"""Of MultiStream, as the rules have it."""
SUMMARY: Final = "mlperf_log_summary.txt"


class Scenario(Enum):
    """MLPerf's, as they are written on the command line."""

    SINGLE_STREAM = "single-stream"
    MULTI_STREAM = "multi-stream"
    SERVER = "server"
    OFFLINE = "offline"
    CONSTANT_STREAM = "constant-stream"

    @property
    def loadgen_name(self) -> str:
        return "".join(word.capitalize() for word in self.value.split("-"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What LoadGen is to do."""

    scenario: Scenario
    is_accuracy: bool
    duration_s: float
    timeout_s: float
    connections: int
    rate: float | None
    """Server: queries a second."""
    targets: Sequence[Target]
    """Server: the latency they must meet; of text, the first token's and that of each token after it."""
    config: Path | None
    """A `user.conf`, which overrides all of these."""
    model: str
    logs: Path
    seed: int
    is_text: bool = False
    """A language model's: LoadGen is told of first tokens, and of how many there were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One quantity, by two clocks; latencies in seconds. None: not stated."""

    loadgen: float | None
    farthing: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What came of it. `logs` is the folder with LoadGen's own files, empty where LoadGen had no part in it."""

    scenario: str
    mode: str
    by: str
    """Who judged: LoadGen and its version, or farthing."""
    result: str
    """VALID or INVALID; UNSURE where the sample cannot say; empty in accuracy mode, which judges nothing."""
    problems: Sequence[str]
    """Why it must not be believed, whatever the result says."""
    pairs: Mapping[str, Pair]
    unmet: Sequence[str] = ()
    """Of LoadGen's conditions, those that made it INVALID, in its words."""
    logs: str = ""
    files: Sequence[str] = ()

    @property
    def is_valid(self) -> bool:
        return self.result in {"VALID", ""} and not self.problems


def check_asked(asked: Asked) -> None:
    """Raises `InvalidSetting` for what is missing or has no meaning here."""
    is_text = asked.is_text
    if is_text and (asked.is_accuracy or asked.scenario is Scenario.MULTI_STREAM):
        raise InvalidSetting(
            "of language models LoadGen measures the SingleStream, Server and Offline scenarios",
            hint="leave out --accuracy; farthing perplexity says what a model's answers are worth",
        )
    if asked.scenario is Scenario.SERVER and not asked.is_accuracy:
        wanted = {Metric.TTFT, Metric.TPOT} if is_text else {Metric.LATENCY}
        if asked.rate is None or {target.metric for target in asked.targets} != wanted:
            goal = "ttft p99<2s,tpot p99<200ms" if is_text else "p99<15ms"
            raise InvalidSetting(
                "MLPerf's Server scenario wants a rate and the latency it must meet",
                hint=f"add --rate 200 --goal '{goal}'",
            )
    if asked.config is not None and not asked.config.is_file():
        raise InvalidSetting(f"--mlperf-conf {asked.config}: no such file")


def probe_connections(asked: Asked) -> int:
    """As many as the scenario will use."""
    if asked.scenario is Scenario.SINGLE_STREAM:
        return 1
    return min(asked.connections, SAMPLES_PER_QUERY) if asked.scenario is Scenario.MULTI_STREAM else asked.connections


def loadgen() -> Any:
    """MLPerf's package. Raises `Unsupported` where it is not installed."""
    try:
        import mlperf_loadgen
    except ImportError as missing:
        raise Unsupported("MLPerf's LoadGen is not installed", hint="pip install farthing[mlperf]") from missing
    return mlperf_loadgen


def run_loadgen(
    endpoint: Measurable, work: Work, asked: Asked, *, expected_rate: float, on_progress: OnProgress
) -> tuple[Measured, Judged]:
    """Blocks until LoadGen is done, which nothing can make it before. `expected_rate` is samples a second."""
    lg = loadgen()
    messages = samples_of(work)
    asked.logs.mkdir(parents=True, exist_ok=True)
    server = find_local(endpoint)
    cpu_s = server.cpu_s() if server else 0.0
    sut = _sut(endpoint, work, asked, lg)
    _start(lg, sut, _settings(lg, asked, expected_rate), len(messages), asked.logs, on_progress)
    sut.close()
    records = sut.records(is_by_query=asked.scenario is Scenario.MULTI_STREAM)
    mode = "accuracy" if asked.is_accuracy else "performance"
    load = Load(connections=asked.connections, duration_s=max(records.wall_s, 1e-9), timeout_s=asked.timeout_s)
    run = measured(
        work,
        load,
        records,
        label=f"MLPerf {asked.scenario.loadgen_name}, {mode}",
        at=asked.rate or float(asked.connections),
        warm_up_s=0.0,
        server=server,
        cpu_before_s=cpu_s,
        targets=asked.targets,
    )
    return run, _judged(asked, mode, run.figures)


def _sut(endpoint: Measurable, work: Work, asked: Asked, lg: Any) -> Sut:
    """The native loop where it can; it keeps no answers and speaks no TLS."""
    connections = 1 if asked.scenario is Scenario.SINGLE_STREAM else asked.connections
    if not isinstance(endpoint, InProcess) and not endpoint.is_tls and not asked.is_accuracy:
        try:
            from farthing.bench.sut_native import NativeSut
        except ImportError:
            if asked.is_text:
                raise Unsupported("LoadGen's tokens are counted by the native loop, which was not built here") from None
        else:
            return _native_sut(NativeSut, endpoint, work, asked, connections, lg)

    def complete(sample: int, outputs: bytes) -> None:
        """LoadGen copies an answer's bytes while it is told of it, so they need not outlive the call."""
        if not outputs:
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample, 0, 0)])
            return
        import numpy as np

        view = np.frombuffer(outputs, np.uint8)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(sample, view.ctypes.data, len(outputs))])

    how: dict[str, Any] = {
        "connections": connections,
        "timeout_s": asked.timeout_s,
        "is_kept": asked.is_accuracy,
    }
    messages = samples_of(work)
    if isinstance(endpoint, InProcess):
        return InProcessSut(endpoint, messages, complete, **how)
    if asked.is_text:
        raise Unsupported("LoadGen measures language models over plain HTTP", hint="measure the port without TLS")
    from farthing.bench.sut_threads import ThreadSut

    return ThreadSut(endpoint, messages, complete, **how)


def _native_sut(make: Any, endpoint: Endpoint, work: Work, asked: Asked, connections: int, lg: Any) -> Sut:
    def first(samples: Sequence[int]) -> None:
        lg.FirstTokenComplete([lg.QuerySampleResponse(sample, 0, 0, 1) for sample in samples])

    def last(samples: Sequence[tuple[int, int]]) -> None:
        # LoadGen refuses an answer of no tokens; one that failed is reported by us.
        lg.QuerySamplesComplete([lg.QuerySampleResponse(sample, 0, 0, max(tokens, 1)) for sample, tokens in samples])

    sut: Sut = make(
        endpoint,
        replace(work, chains=[[message] for message in samples_of(work)], order=range(len(work.order))),
        first=first,
        last=last,
        connections=connections,
        timeout_s=asked.timeout_s,
    )
    return sut


def samples_of(work: Work) -> list[Message]:
    """The first message of each chain, in the order of the load: what LoadGen draws from."""
    return [work.chains[chain][0] for chain in work.order]


def _settings(lg: Any, asked: Asked, expected_rate: float) -> Any:
    settings = lg.TestSettings()
    name = asked.scenario.loadgen_name
    settings.scenario = getattr(lg.TestScenario, name)
    settings.mode = lg.TestMode.AccuracyOnly if asked.is_accuracy else lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(asked.duration_s * 1e3)
    settings.min_query_count = 1
    settings.single_stream_expected_latency_ns = int(1e9 / (expected_rate * SLACK))
    settings.multi_stream_samples_per_query = SAMPLES_PER_QUERY
    settings.multi_stream_expected_latency_ns = int(SAMPLES_PER_QUERY * 1e9 / (expected_rate * SLACK))
    settings.offline_expected_qps = expected_rate * SLACK
    if asked.rate is not None:
        settings.server_target_qps = asked.rate
    settings.use_token_latencies = asked.is_text
    for target in asked.targets if asked.scenario is Scenario.SERVER else ():
        limit_ns = int(target.limit_s * 1e9)
        if target.metric is Metric.TTFT:
            settings.ttft_latency = limit_ns
        elif target.metric is Metric.TPOT:
            settings.tpot_latency = limit_ns
        else:
            settings.server_target_latency_ns = limit_ns
        settings.server_target_latency_percentile = target.percent / 100
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = asked.seed
    if asked.config is not None and settings.FromConfig(str(asked.config), asked.model, name):
        raise InvalidSetting(f"--mlperf-conf {asked.config}: LoadGen cannot read it")
    return settings


def _start(lg: Any, sut: Sut, settings: Any, samples: int, logs: Path, on_progress: OnProgress) -> None:
    """On a thread of its own, so that this one can show how it goes."""
    output, log = lg.LogOutputSettings(), lg.LogSettings()
    output.outdir, log.log_output, log.enable_trace = str(logs), output, False
    failed: list[BaseException] = []

    def issue(queries: Sequence[Any]) -> None:
        sut.issue([one.id for one in queries], [one.index for one in queries])

    def nothing(*_: Any) -> None:
        """Requests were made before the run, and nothing is held back for a flush."""

    def run() -> None:
        under_test, library = lg.ConstructSUT(issue, nothing), lg.ConstructQSL(samples, samples, nothing, nothing)
        try:
            # Not the `audit.config` of wherever we happen to be: one beside the logs is meant to be there.
            lg.StartTestWithLogSettings(under_test, library, settings, log, str(logs / "audit.config"))
        except BaseException as error:  # told to whoever waits
            failed.append(error)
        finally:
            lg.DestroyQSL(library)
            lg.DestroySUT(under_test)

    thread = threading.Thread(target=run, name="loadgen", daemon=True)
    thread.start()
    waited_s = 0.0
    while thread.is_alive():
        thread.join(PROGRESS_EVERY_S)
        waited_s += PROGRESS_EVERY_S
        on_progress(waited_s, sut.progress())
    if failed:
        raise EngineFailed(f"LoadGen failed: {failed[0]}") from failed[0]


def read_summary(text: str) -> dict[str, str]:
    """LoadGen's summary as name -> value; names as it writes them, without the spaces around."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


_RATES: Final = {
    Scenario.SINGLE_STREAM: ("queries/s", "QPS w/ loadgen overhead", "TPS w/ loadgen overhead"),
    Scenario.SERVER: ("samples/s", "Completed samples per second", "Completed tokens per second"),
    Scenario.OFFLINE: ("samples/s", "Samples per second", "Tokens per second"),
}
"""Our name of a scenario's rate, LoadGen's in its summary, and LoadGen's of tokens."""
_LATENCIES: Final = (
    ("latency", "percentile latency (ns)"),
    ("TTFT", "percentile first token latency (ns)"),
    ("TPOT", "percentile time to output token (ns)"),
)


def _judged(asked: Asked, mode: str, ours: Figures) -> Judged:
    summary = read_summary((asked.logs / SUMMARY).read_text(encoding="utf-8"))
    pairs: dict[str, Pair] = {}
    if not asked.is_accuracy:
        if asked.scenario in _RATES:
            name, key, tokens_key = _RATES[asked.scenario]
            pairs[name] = Pair(loadgen=_number(summary, key, 1.0), farthing=ours.rate.value)
            if ours.tokens_s:
                pairs["tokens/s"] = Pair(loadgen=_number(summary, tokens_key, 1.0), farthing=ours.tokens_s.value)
        if asked.scenario is not Scenario.OFFLINE:  # where latency is only a place in one long row
            for (what, key), spread in zip(_LATENCIES, (ours.latency, ours.ttft, ours.tpot), strict=True):
                for percent in (50.0, 90.0, 99.0) if spread else ():
                    theirs = _number(summary, f"{percent:.2f} {key}", 1e-9)
                    found = spread.at(percent).value if spread else None
                    pairs[f"p{percent:g} {what}"] = Pair(loadgen=theirs, farthing=found)
    problems = [f"{sum(ours.errors.values()):,} failed, which LoadGen counts as answered"] if ours.errors else []
    return Judged(
        scenario=asked.scenario.loadgen_name,
        mode=mode,
        by=f"LoadGen {metadata.version('mlcommons-loadgen')}",
        result="" if asked.is_accuracy else summary.get("Result is", "INVALID"),
        problems=problems,
        pairs=pairs,
        unmet=[name for name, value in summary.items() if name.endswith("satisfied") and value.lower() == "no"],
        logs=str(asked.logs),
        files=sorted(path.name for path in asked.logs.glob("mlperf_log_*")),
    )


def _number(summary: Mapping[str, str], key: str, unit: float) -> float | None:
    return float(summary[key]) * unit if key in summary else None


def constant_stream(run: Measured, target: Target) -> Judged:
    """ConstantStream, by our own driver: frames at a constant rate. So many in a hundred as the target says must have
    been answered within its limit, by our clock; one that the server dropped was not.
    """
    found = run.figures.frames
    assert found is not None
    problems = [f"{found.failed:,} frames failed"] if found.failed else []
    problems += [found.problem] if found.problem else []
    missed = next((one for one in found.judged if one.percent == target.percent), None)
    verdict = judge(replace(target, limit_s=0.5), missed) if missed else Verdict.MISSED
    results = {Verdict.MET: "VALID", Verdict.MISSED: "INVALID", Verdict.UNSURE: "UNSURE"}
    return Judged(
        scenario=Scenario.CONSTANT_STREAM.loadgen_name,
        mode="performance",
        by="farthing",
        result=results[verdict],
        problems=[*problems, *run.figures.generator.problems],
        pairs={},
    )
