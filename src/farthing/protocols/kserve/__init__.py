"""KServe v2 (Open Inference Protocol) over HTTP with Triton's extensions: bytes to types and back.

No sockets, no models: `decode_infer` checks all that can be known from the bytes alone, and whether names,
datatypes and shapes fit the model is the runtime's to check.
"""

from farthing.protocols.kserve.binary import parse_header_length
from farthing.protocols.kserve.decode import decode_infer
from farthing.protocols.kserve.encode import check_outputs, encode_infer
from farthing.protocols.kserve.errors import encode_error
from farthing.protocols.kserve.limits import WireLimits
from farthing.protocols.kserve.metadata import (
    encode_json,
    index_json,
    live_json,
    model_metadata,
    model_ready_json,
    ready_json,
    server_metadata,
    statistics_json,
)
from farthing.protocols.kserve.openapi import openapi_document
from farthing.protocols.kserve.parameters import is_reserved_parameter
from farthing.protocols.kserve.repository_requests import (
    IndexRequest,
    LoadRequest,
    UnloadRequest,
    load_request,
    parse_index_request,
    parse_load_request,
    parse_unload_request,
    unload_request,
)
from farthing.protocols.kserve.settings import parse_log_settings, parse_trace_settings, trace_settings_json
from farthing.protocols.kserve.shared_memory import RegisterRequest, parse_register, regions_json

__all__ = [
    "IndexRequest",
    "LoadRequest",
    "RegisterRequest",
    "UnloadRequest",
    "WireLimits",
    "check_outputs",
    "decode_infer",
    "encode_error",
    "encode_infer",
    "encode_json",
    "index_json",
    "is_reserved_parameter",
    "live_json",
    "load_request",
    "model_metadata",
    "model_ready_json",
    "openapi_document",
    "parse_header_length",
    "parse_index_request",
    "parse_load_request",
    "parse_log_settings",
    "parse_register",
    "parse_trace_settings",
    "parse_unload_request",
    "ready_json",
    "regions_json",
    "server_metadata",
    "statistics_json",
    "trace_settings_json",
    "unload_request",
]
