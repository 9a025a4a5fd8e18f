"""What an operator may set for a whole server, with every default, its unit and its reason.

Strict: an unknown name or a wrong type is an error that says where. A room receives its own small struct. What may be
set for one model belongs to `config.model`; reading the command line to `cli`.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import msgspec

MIB: Final = 1 << 20


class ModelControl(StrEnum):
    """Who decides which models are loaded (Triton's `--model-control-mode`)."""

    NONE = "none"
    """All models of the repositories, once, at start."""
    EXPLICIT = "explicit"
    """Those named at start, then whatever the load and unload endpoints are asked for."""
    POLL = "poll"
    """All, and the repositories are looked at again and again."""


class LoadOverrides(StrEnum):
    """What a client that may load models may bring with a load."""

    NONE = "none"
    CONFIG = "config"
    """A configuration in place of the repository's."""
    FILES = "files"
    """Model files too, in place of the repository's; of kinds that hold code only where there are API keys."""


class Address(msgspec.Struct, frozen=True):
    """Where a socket listens. Port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one HTTP client may cost. Whatever is over a limit is answered, then closed."""

    body_bytes_max: int = 64 * MIB
    """One request body, decompressed too (Triton's `--http-max-input-size` has the same default)."""
    head_bytes_max: int = 32 * 1024
    """Request line and headers together; proxies and browsers stay under 16 KiB."""
    headers_max: int = 100
    """Header lines of one request (as Apache's LimitRequestFields)."""
    connections_max: int = 8192
    """Open connections; the next one gets 503. About 3 KiB each when idle."""
    pipeline_max: int = 64
    """Requests one connection may send ahead of their answers; reading pauses beyond."""
    head_timeout_s: float = 10.0
    """From a request's first byte to the end of its headers; a person's slowest link needs under a second."""
    body_timeout_s: float = 20.0
    """From the end of the headers to the end of the body, plus the time `body_bytes_per_s_min` allows."""
    body_bytes_per_s_min: int = 16 * 1024
    """The slowest upload that is waited for: a 64 MiB body may take 69 minutes, a trickle of bytes may not."""
    idle_timeout_s: float = 75.0
    """A connection without a request; load balancers keep theirs for 60 s, and ours must be the longer."""
    write_timeout_s: float = 30.0
    """A client that reads none of its answer for so long is cut off."""
    stream_unread_bytes_max: int = MIB
    """Of a streamed answer, what a client may leave unread before it is cut off: some thousand tokens, beside what
    the kernel holds."""


class AdmissionLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much work may be inside the server at once."""

    inflight_bytes_max: int = 1024 * MIB
    """Bytes of request bodies accepted and not yet answered; the next one gets 503 with Retry-After."""
    queue_requests_max: int = 8192
    """Requests waiting for one model version, when its own configuration says nothing."""


RESPONSE_CACHE_BYTES: Final = 64 * MIB
"""Answers of models that enable the response cache, altogether: 60,000 small ones."""


class RateLimit(StrEnum):
    """Whether instances take turns at the resources their `rate_limiter` blocks name (Triton's `--rate-limit`)."""

    OFF = "off"
    EXECUTION_COUNT = "execution_count"


class SchedulingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all models share when it comes to who runs when."""

    response_cache_bytes: Annotated[int, msgspec.Meta(ge=0)] = RESPONSE_CACHE_BYTES
    """0: models that enable the cache go without."""
    rate_limit: RateLimit = RateLimit.OFF
    resources: Mapping[str, Annotated[int, msgspec.Meta(ge=1)]] = {}
    """How many there are of a resource; of one not named: as many as the instance that wants most of it wants."""


SCHEDULING_DEFAULT: Final = SchedulingSettings()


class WeightsPrecision(StrEnum):
    """How a language model's weights are held in memory."""

    AUTO = "auto"
    """8 bits: within 1 % of the perplexity of full precision, and half the bytes of bf16 to read a token."""
    Q8 = "q8"
    Q4 = "q4"
    F32 = "f32"
    """As the reference computes; slow."""


class KvPrecision(StrEnum):
    """How keys and values of what is being generated are held in memory."""

    AUTO = "auto"
    """8 bits with a scale for each token and head: no loss in perplexity could be measured, and half the memory and
    bandwidth; float32 beside float32 weights."""
    INT8 = "int8"
    BF16 = "bf16"
    F32 = "f32"


class LanguageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may set for language models; a model's own `parameters` say the same words for it alone."""

    context_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Prompt and completion together; 0: as many as the model was trained for, if the KV memory holds them."""
    kv_memory_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """For keys and values of what is being generated, and of prefixes that may be asked for again; 0: half of the
    memory that is free once the weights are in, but no more than `KV_CONTEXTS_MAX` full contexts take."""
    weights: WeightsPrecision = WeightsPrecision.AUTO
    kv: KvPrecision = KvPrecision.AUTO
    threads: int = 0
    """Threads that compute; 0: one a core this process may use."""


KV_CONTEXTS_MAX: Final = 32
"""Full contexts that the automatic KV memory holds at most: more than a machine of this kind generates at once."""


class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server's certificate, PEM files."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """When given, clients must show a certificate signed by it."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `farthing serve` can be told."""

    http: Address = Address("127.0.0.1", 8000)
    """Loopback: a model server without keys must not be found by the network by accident."""
    grpc: Address | None = None
    """gRPC's listener (Triton's port 8001); None: HTTP only."""
    metrics: Address | None = None
    """A second listener for `/metrics` alone (Triton's port 8002); it is on the HTTP port anyway."""
    limits: HttpLimits = HttpLimits()
    admission: AdmissionLimits = AdmissionLimits()
    scheduling: SchedulingSettings = SCHEDULING_DEFAULT
    language: LanguageSettings = LanguageSettings()
    tls: Tls | None = None
    keys: Path | None = None
    """API keys file; None: everyone may infer, nobody may control."""
    model_control: ModelControl = ModelControl.NONE
    load_models: tuple[str, ...] = ()
    """Models to load at start in explicit mode; `*` for all."""
    model_memory_bytes: int | None = None
    """What all models may hold together, as measured when they are loaded; None: all that is loaded stays."""
    pinned_models: tuple[str, ...] = ()
    """Not unloaded to make room."""
    load_overrides: LoadOverrides = LoadOverrides.CONFIG
    """Whoever may bring a model's files has an engine read what they like; whoever may bring its code runs it."""
    poll_s: float = 15.0
    """Seconds between looks at the repositories in poll mode (Triton's `--repository-poll-secs`)."""
    strict_readiness: bool = True
    """Ready only when every model that should be loaded is (Triton's `--strict-readiness`)."""
    not_ready_status: int = 503
    """What `/v2/health/ready` answers when not ready; Triton says 400, load balancers expect 503."""
    hang_timeout_s: float = 60.0
    """A batch that runs longer turns liveness red; no model here takes a second."""
    exit_timeout_s: float = 30.0
    """How long requests may drain after SIGTERM (Triton's `--exit-timeout-secs`)."""
    drain_notice_s: float = 0.5
    """How long after SIGTERM new requests are still served, while readiness is red already."""
    restricted: tuple[str, ...] = ()
    """`CATEGORY[,CATEGORY...]:HEADER=VALUE` (Triton's `--http-restricted-api`)."""
    header_forward_pattern: str = ""
    """Headers with such names become request parameters (Triton's `--http-header-forward-pattern`); none by default."""
    grpc_restricted: tuple[str, ...] = ()
    """As `restricted`, over gRPC (Triton's `--grpc-restricted-protocol`): clients send `triton-grpc-protocol-…`."""
    grpc_header_forward_pattern: str = ""
    """As `header_forward_pattern`, for metadata (Triton's `--grpc-header-forward-pattern`)."""
    access_log: bool = False
    """One log line a request: useful to people, 10 us of CPU each."""
