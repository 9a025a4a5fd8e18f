"""KServe v2 (Open Inference Protocol) over gRPC with Triton's extensions: messages to types and back.

No sockets, no models, and no grpcio: messages are protobuf's. What a request may say is checked by the same code as
over HTTP (`protocols.kserve`); this room knows field numbers and the rules of the raw and the typed tensor contents.
"""

from farthing.protocols.kserve_grpc.decode import decode_infer
from farthing.protocols.kserve_grpc.encode import config_message, encode_infer, message_of
from farthing.protocols.kserve_grpc.messages import (
    HEALTH_SERVICE,
    REFLECTION_SERVICES,
    SERVICE,
    health_message_class,
    message_class,
    parse_message,
    pool,
    reflection_message_class,
)
from farthing.protocols.kserve_grpc.repository_requests import asked_load, asked_unload, check_repository_name
from farthing.protocols.kserve_grpc.settings import (
    asked_log_settings,
    asked_trace_settings,
    log_settings_message,
    trace_settings_message,
)
from farthing.protocols.kserve_grpc.status import STATUS_DETAIL_BYTES_MAX, status_detail
from farthing.protocols.kserve_grpc.stream import (
    DecoupledStream,
    GenerateStream,
    stream_answer,
    stream_error,
    wants_empty_final,
)

__all__ = [
    "HEALTH_SERVICE",
    "REFLECTION_SERVICES",
    "SERVICE",
    "STATUS_DETAIL_BYTES_MAX",
    "DecoupledStream",
    "GenerateStream",
    "asked_load",
    "asked_log_settings",
    "asked_trace_settings",
    "asked_unload",
    "check_repository_name",
    "config_message",
    "decode_infer",
    "encode_infer",
    "health_message_class",
    "log_settings_message",
    "message_class",
    "message_of",
    "parse_message",
    "pool",
    "reflection_message_class",
    "status_detail",
    "stream_answer",
    "stream_error",
    "trace_settings_message",
    "wants_empty_final",
]
