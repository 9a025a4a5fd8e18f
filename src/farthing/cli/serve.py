"""`farthing serve`: models to an endpoint. Reads the command line, runs the server, and says how to call it.

What the options mean is in `config.server`; serving is `server`'s business.
"""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from farthing import __version__
from farthing.cli.option_types import AddressType, BudgetType, BytesType
from farthing.cli.scheduling_options import scheduling_settings
from farthing.config.server import (
    Address,
    AdmissionLimits,
    HttpLimits,
    KvPrecision,
    LanguageSettings,
    LoadOverrides,
    ModelControl,
    RateLimit,
    ServerConfig,
    Tls,
    WeightsPrecision,
)
from farthing.types.errors import CannotListen, LoadFailed

if TYPE_CHECKING:
    from farthing.server.server import Server
    from farthing.telemetry.logs import LogOutput

HTTP_DEFAULT = "127.0.0.1:8000"
GRPC_DEFAULT = Address("127.0.0.1", 8001)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--repository", "repositories", multiple=True, type=click.Path(path_type=Path), help="A folder of models."
)
@click.option("--model-namespacing", is_flag=True, help="Models of different folders may have one name.")
@click.option("--http", type=AddressType(), default=HTTP_DEFAULT, help="Where to listen; port 0 takes a free one.")
@click.option("--grpc", type=AddressType(), show_default=str(GRPC_DEFAULT), help="Where gRPC listens.")
@click.option("--no-grpc", is_flag=True, help="HTTP only.")
@click.option("--metrics", type=AddressType(), help="A second port for /metrics (which is on the HTTP port too).")
@click.option(
    "--model-control-mode",
    type=click.Choice([mode.value for mode in ModelControl]),
    default=ModelControl.NONE.value,
    help="Who loads models: all at start, clients, or whatever appears in the repositories.",
)
@click.option(
    "--load-overrides",
    type=click.Choice([allowed.value for allowed in LoadOverrides]),
    default=LoadOverrides.CONFIG.value,
    help="What a client's load may bring; code among files only with --keys.",
)
@click.option("--load-model", "load_models", multiple=True, help="In explicit mode: load this at start (`*`: all).")
@click.option(
    "--model-memory",
    type=BudgetType(),
    default="none",
    help="What all models may hold, such as 8GB: idle ones make room, and are loaded again on demand.",
)
@click.option("--pin-model", "pinned_models", multiple=True, help="A model that is never unloaded to make room.")
@click.option("--repository-poll-secs", type=click.FloatRange(min=0.1), default=15.0, help="In poll mode.")
@click.option("--keys", type=click.Path(path_type=Path), help="API keys file; without one everyone may infer.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key, PEM.")
@click.option("--tls-client-ca", type=click.Path(path_type=Path), help="Clients must show a certificate of this CA.")
@click.option("--http-max-input-size", type=click.IntRange(min=1), default=64 << 20, help="Bytes of a request body.")
@click.option("--inflight-bytes-max", type=click.IntRange(min=1), default=1 << 30, help="Bytes of all under way.")
@click.option("--connections-max", type=click.IntRange(min=1), default=8192, help="Open connections.")
@click.option("--queue-max", type=click.IntRange(min=1), default=8192, help="Requests waiting for one model.")
@click.option(
    "--response-cache-bytes",
    "--response-cache-byte-size",
    type=BytesType(),
    show_default="64MiB",
    help="For answers of models that enable `response_cache`, such as 256MiB; 0: none.",
)
@click.option("--cache-config", multiple=True, metavar="local,size=BYTES", help="The same, as Triton writes it.")
@click.option(
    "--rate-limit",
    type=click.Choice([mode.value for mode in RateLimit]),
    default=RateLimit.OFF.value,
    help="Whether instances wait for the resources that their `rate_limiter` names.",
)
@click.option(
    "--rate-limit-resource",
    "rate_limit_resources",
    multiple=True,
    metavar="NAME:COUNT",
    help="How many there are; by itself: what the instance that wants most of it wants.",
)
@click.option("--llm-context", type=click.IntRange(min=0), default=0, show_default="the model's", help="Tokens.")
@click.option(
    "--llm-kv-memory",
    type=BytesType(),
    default=0,
    show_default="by free memory",
    help="For keys and values of language models, such as 2GB.",
)
@click.option(
    "--llm-weights",
    type=click.Choice([precision.value for precision in WeightsPrecision]),
    default=WeightsPrecision.AUTO.value,
    help="Precision of language models' weights; auto: q8.",
)
@click.option(
    "--llm-kv",
    type=click.Choice([precision.value for precision in KvPrecision]),
    default=KvPrecision.AUTO.value,
    help="Precision of their keys and values; auto: int8.",
)
@click.option("--llm-threads", type=click.IntRange(min=0), default=0, show_default="a core each", help="That compute.")
@click.option("--exit-timeout-secs", type=click.FloatRange(min=0), default=30.0, help="Draining after SIGTERM.")
@click.option("--hang-timeout-secs", type=click.FloatRange(min=0), default=60.0, help="A longer batch: not live.")
@click.option("--strict-readiness/--no-strict-readiness", default=True, help="Ready only if every model is.")
@click.option("--not-ready-status", type=click.Choice(["503", "400"]), default="503", help="Triton answers 400.")
@click.option(
    "--http-restricted-api",
    "restricted",
    multiple=True,
    metavar="CATEGORY[,...]:HEADER=VALUE",
    help="Endpoints that want a header, as in Triton: health, metadata, inference, model-config, model-repository, "
    "statistics, shared-memory, trace, logging.",
)
@click.option(
    "--grpc-restricted-protocol",
    "grpc_restricted",
    multiple=True,
    metavar="CATEGORY[,...]:HEADER=VALUE",
    help="The same over gRPC; clients send triton-grpc-protocol-HEADER.",
)
@click.option(
    "--http-header-forward-pattern", default="", metavar="REGEX", help="Headers that models see as parameters."
)
@click.option(
    "--grpc-header-forward-pattern", default="", metavar="REGEX", help="Metadata that models see as parameters."
)
@click.option("--access-log", is_flag=True, help="One log line a request.")
@click.option("--log-format", type=click.Choice(["auto", "json", "text"]), default="auto", help="auto: by terminal.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option("--otlp-endpoint", default="", help="Send traces there (needs `farthing[otel]`).")
@click.option("--ready-file", type=click.Path(path_type=Path), help="Write the address there, as JSON, once settled.")
def command(**options: object) -> None:
    """Serve models over KServe v2, language models over OpenAI's API too.

    MODEL is a model file (.onnx, OpenVINO .xml, LightGBM .txt or .json, XGBoost .json or .ubj, a Python model .py, a
    language model .gguf), a pipeline of models (pipeline.toml, pipeline.py), a model's folder (Hugging Face's too), a
    repository of such folders, or sample:NAME. Names, versions, inputs, outputs and batching are read from the model;
    nothing needs configuring.

    \b
    farthing serve model.onnx
    farthing serve sample:effnet-lite0 sample:minilm-l6
    farthing serve model.gguf
    farthing serve ocr/pipeline.toml models/
    farthing serve --repository models/ --model-control-mode poll

    SIGTERM or Ctrl-C drains: readiness turns red, requests under way are answered, then it ends. A second signal
    stops at once.
    """
    run(Options(options))


class Options(dict[str, object]):
    """The command line as click read it."""

    def config(self) -> ServerConfig:
        """As the server wants it. Raises `click.UsageError` for options that do not go together."""
        cert, key = self["tls_cert"], self["tls_key"]
        if bool(cert) != bool(key):
            raise click.UsageError("--tls-cert and --tls-key go together")
        grpc = self["grpc"] or GRPC_DEFAULT
        if self["grpc"] and self["no_grpc"]:
            raise click.UsageError("--grpc and --no-grpc contradict; give one of the two")
        values = self
        tls = None
        if isinstance(cert, Path) and isinstance(key, Path):
            client_ca = values["tls_client_ca"]
            tls = Tls(certificate=cert, key=key, client_ca=client_ca if isinstance(client_ca, Path) else None)
        limits = msgspec.convert(
            {"body_bytes_max": values["http_max_input_size"], "connections_max": values["connections_max"]}, HttpLimits
        )
        admission = msgspec.convert(
            {"inflight_bytes_max": values["inflight_bytes_max"], "queue_requests_max": values["queue_max"]},
            AdmissionLimits,
        )
        simple = msgspec.convert(
            {
                "model_control": values["model_control_mode"],
                "load_models": values["load_models"],
                "load_overrides": values["load_overrides"],
                "model_memory_bytes": values["model_memory"],
                "pinned_models": values["pinned_models"],
                "poll_s": values["repository_poll_secs"],
                "strict_readiness": values["strict_readiness"],
                "not_ready_status": int(str(values["not_ready_status"])),
                "hang_timeout_s": values["hang_timeout_secs"],
                "exit_timeout_s": values["exit_timeout_secs"],
                "restricted": values["restricted"],
                "header_forward_pattern": values["http_header_forward_pattern"],
                "grpc_restricted": values["grpc_restricted"],
                "grpc_header_forward_pattern": values["grpc_header_forward_pattern"],
                "access_log": values["access_log"],
            },
            ServerConfig,
        )
        language = msgspec.convert(
            {
                "context_tokens": values["llm_context"],
                "kv_memory_bytes": values["llm_kv_memory"],
                "weights": values["llm_weights"],
                "kv": values["llm_kv"],
                "threads": values["llm_threads"],
            },
            LanguageSettings,
        )
        scheduling = scheduling_settings(
            cache_bytes=values["response_cache_bytes"],  # type: ignore[arg-type]
            cache_config=values["cache_config"],  # type: ignore[arg-type]
            rate_limit=str(values["rate_limit"]),
            resources=values["rate_limit_resources"],  # type: ignore[arg-type]
        )
        http, metrics, keys = values["http"], values["metrics"], values["keys"]
        assert isinstance(http, Address)
        return msgspec.structs.replace(
            simple,
            http=http,
            grpc=grpc if isinstance(grpc, Address) and not self["no_grpc"] else None,
            metrics=metrics if isinstance(metrics, Address) else None,
            limits=limits,
            admission=admission,
            scheduling=scheduling,
            language=language,
            tls=tls,
            keys=keys if isinstance(keys, Path) else None,
        )


def run(options: Options) -> None:
    """Runs the server until a signal ends it; exits with 1 if a request had to be given up."""
    from farthing.telemetry.logs import configure

    output = configure(str(options["log_level"]), options["log_format"], access=bool(options["access_log"]))  # type: ignore[arg-type]
    # A thread coming back from an engine must not wait 5 ms for the interpreter while the loop is busy.
    sys.setswitchinterval(0.0005)
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            is_clean = runner.run(_serve(options, output))
    finally:
        output.stop()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not `sys.exit`: it would wait for threads that are still loading a model or stuck in an engine.
    os._exit(0 if is_clean else 1)


async def _serve(options: Options, output: "LogOutput") -> bool:
    from farthing.engines.registry import default_filenames
    from farthing.repository import Repository
    from farthing.server.server import Server
    from farthing.telemetry.otel import open_span_sink, ratio_of

    config = options.config()
    spans = open_span_sink(setting=str(options["otlp_endpoint"]), environ=os.environ, version=__version__)
    paths = await asyncio.get_running_loop().run_in_executor(None, _paths, options)
    server = Server(
        config,
        Repository(paths, default_filenames=default_filenames(), has_namespaces=bool(options["model_namespacing"])),
        spans=spans,
        trace_ratio=ratio_of(os.environ),
        log_records_dropped=lambda: output.dropped,
    )
    await server.listen()
    assert server.http is not None
    scheme = "https" if config.tls else "http"
    click.echo(f"farthing {__version__} listens on {scheme}://{server.http}", err=True)

    await _listen_grpc(server, is_asked_for=bool(options["grpc"]))

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loading = loop.create_task(server.load())

    def on_signal() -> None:
        if stop.is_set():
            click.echo("stopped at once", err=True)
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    stopping = loop.create_task(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        loading.result()
        from farthing.cli.serve_told import say_what_is_served, write_ready_file

        say_what_is_served(server, f"{scheme}://{server.http}")
        ready_file = options["ready_file"]
        if isinstance(ready_file, Path):
            write_ready_file(ready_file, server)
        await stopping
    else:
        loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loading
    click.echo("draining: answering what is under way (a second signal stops now)", err=True)
    is_clean = await server.drain()
    if is_clean:  # else something hangs, and unloading would only wait for it again
        await server.close()
    if spans is not None:
        spans.close()
    return is_clean


async def _listen_grpc(server: "Server", *, is_asked_for: bool) -> None:
    """Opens gRPC. Where nobody asked for it and it cannot be had, HTTP alone is served, and a line says why."""
    try:
        await server.listen_grpc()
    except CannotListen as error:
        if is_asked_for:
            await server.close()
            raise
        click.echo(f"HTTP only: {error.message}; {error.hint}", err=True)
    if server.grpc is not None:
        click.echo(f"gRPC on {server.grpc}", err=True)


def _paths(options: Options) -> list[Path]:
    """Everything to serve as paths; samples are fetched if they are not here yet. Blocks."""
    paths: list[Path] = []
    repositories, models = options["repositories"], options["models"]
    assert isinstance(repositories, tuple)
    assert isinstance(models, tuple)
    for repository in repositories:
        if not repository.is_dir():
            raise LoadFailed(f"{repository}: no such folder", hint="--repository wants a folder of models")
        paths.append(repository)
    for model in models:
        if model.startswith("sample:"):
            from farthing.cli.progress import progress_shown
            from farthing.repository.samples import sample_paths

            with progress_shown() as progress:
                paths += sample_paths(model.removeprefix("sample:"), progress=progress)
        elif not Path(model).exists():
            raise LoadFailed(
                f"{model}: no such file or folder", hint="sample:NAME fetches one; see farthing pull --list"
            )
        else:
            paths.append(Path(model))
    return paths
