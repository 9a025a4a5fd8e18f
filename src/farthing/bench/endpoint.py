"""Who is measured: an address and the protocol spoken there, or a model in process; and what either says of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from farthing.bench.in_process import InProcess, is_in_process
from farthing.client import Client
from farthing.types.errors import InvalidInput, InvalidSetting
from farthing.types.tensors import NUMPY_DTYPES, TensorSpec

KINDS: Final = ("http", "grpc", "openai")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """`kind` is one of `KINDS`; `prefix` stands before every path."""

    kind: str
    host: str
    port: int
    prefix: str = ""
    is_tls: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http{'s' if self.is_tls else ''}://{self.netloc}{self.prefix}"


def parse_endpoint(text: str, kind: str, api_key: str = "") -> Endpoint:
    """From `http://HOST:PORT/prefix`, `grpc://HOST:PORT` or `HOST:PORT`. Raises `InvalidInput`."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError as error:
        raise InvalidInput(f"`{text}`: {error}") from error
    if parts.scheme not in {"http", "https", "grpc"} or not parts.hostname:
        raise InvalidInput(f"`{text}` is not the address of a server", hint="write http://HOST:PORT")
    kind = "grpc" if parts.scheme == "grpc" else kind
    is_tls = parts.scheme == "https"
    if is_tls and kind == "grpc":
        raise InvalidInput("gRPC over TLS is not measured", hint="measure the plain port, or HTTP over TLS")
    return Endpoint(
        kind=kind,
        host=parts.hostname,
        port=port or (443 if is_tls else 8001 if kind == "grpc" else 8000),
        prefix=parts.path.rstrip("/").removesuffix("/v1"),
        is_tls=is_tls,
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
    )


Measurable = Endpoint | InProcess


def open_target(text: str, kind: str, api_key: str = "") -> Measurable:
    """A server's address, parsed, or the models of `sample:NAME` or a path, loaded. Raises `InvalidInput`,
    `InvalidSetting` or `LoadFailed`.
    """
    if not is_in_process(text):
        return parse_endpoint(text, kind, api_key)
    if kind != "http":
        raise InvalidSetting(f"--kind {kind} is how to speak with a server, and {text} is measured in process")
    return InProcess(text)


def model_inputs(endpoint: Measurable, model: str) -> list[TensorSpec]:
    """What the model takes, as its server says. Raises what the server answers instead."""
    if isinstance(endpoint, InProcess):
        return endpoint.inputs(model)
    if endpoint.kind == "grpc":
        return _inputs_over_grpc(endpoint, model)
    api_key = endpoint.headers.get("Authorization", "").removeprefix("Bearer ")
    with Client(endpoint.url, api_key=api_key or None) as client:
        described = client.metadata(model)
    return [_spec(one["name"], one["datatype"], one["shape"]) for one in described["inputs"]]


def _inputs_over_grpc(endpoint: Endpoint, model: str) -> list[TensorSpec]:
    """One call of ModelMetadata over a connection of its own; its answer is read by the driver's own rules."""
    from farthing.bench.grpc_call import call
    from farthing.protocols.kserve_grpc.messages import message_class

    asked = message_class("ModelMetadataRequest")(name=model).SerializeToString()
    answer = message_class("ModelMetadataResponse").FromString(call(endpoint, "ModelMetadata", asked))
    return [_spec(one.name, one.datatype, list(one.shape)) for one in answer.inputs]


def _spec(name: str, datatype: str, shape: list[int]) -> TensorSpec:
    if datatype not in NUMPY_DTYPES:
        raise InvalidInput(f"input `{name}` is {datatype}, which has no place in the protocol")
    return TensorSpec(name=name, datatype=datatype, shape=tuple(int(size) for size in shape))
