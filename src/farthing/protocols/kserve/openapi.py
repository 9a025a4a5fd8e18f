"""The published OpenAPI 3.1 document of the KServe endpoints.

Exact enough to generate clients from and to fuzz the server with. What JSON Schema cannot say is said in words: that
`data` must fill `shape`, and that names, datatypes and shapes are the model's.
"""

from typing import Any, Final

from farthing.protocols.kserve.limits import DIMENSIONS_MAX, ID_CHARACTERS_MAX, TENSORS_MAX
from farthing.protocols.kserve.parameters import SEQUENCE_ID_BYTES_MAX, SHARED_MEMORY
from farthing.types.models import ModelState
from farthing.types.tensors import NUMPY_DTYPES

Json = dict[str, Any]

_INTEGERS: Final = tuple(name for name in NUMPY_DTYPES if "INT" in name)
_ERRORS: Final = {
    "400": "The request is malformed, does not fit the model, or is over a limit.",
    "401": "A key is needed, or this one is not known.",
    "403": "This key may not do this, or the operator keeps this closed.",
    "404": "No such model, version or path.",
    "405": "The path exists, the method does not.",
    "408": "The request took too long to arrive.",
    "429": "This tenant is over its limit; `Retry-After` says when to come back.",
    "431": "Request line or headers are too large.",
    "500": "The model failed.",
    "501": "Understood and not supported, such as shared memory or an unknown Content-Encoding.",
    "503": "Not now: overloaded, past the deadline, loading or stopping.",
}


def openapi_document(version: str) -> Json:
    """Every KServe path this server has, with the shapes of bodies and errors."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Farthing: KServe v2 (Open Inference Protocol)",
            "version": version,
            "description": "Inference, health, metadata, statistics and model repository.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"bearer": []}, {"key": []}],
        "paths": {
            "/v2": {"get": _get("server_metadata", "Name, version and extensions", _ref("ServerMetadata"))},
            "/v2/health/live": {"get": _get("live", "Whether work makes progress", _ref("Live"))},
            "/v2/health/ready": {"get": _get("ready", "Whether requests should be sent here", _ref("Ready"))},
            "/v2/models": {"get": _get("models", "Names of all models", _ref("Models"))},
            "/v2/models/stats": {"get": _get("statistics", "Statistics of all models", _ref("Statistics"))},
            **_model_paths("/v2/models/{model_name}", "", [_parameter("model_name", {"minLength": 1})]),
            **_model_paths(
                "/v2/models/{model_name}/versions/{model_version}",
                "_version",
                [_parameter("model_name", {"minLength": 1}), _parameter("model_version", {"pattern": "^[0-9]{1,18}$"})],
            ),
            "/v2/repository/index": {
                "post": _post("repository_index", "Models and their states", _ref("IndexRequest"), _ref("Index"))
            },
            "/v2/systemsharedmemory/status": {"get": _get("regions", "Shared memory registered", _ref("Regions"))},
            "/v2/systemsharedmemory/unregister": {"post": _post("unregister_all", "Forget all regions", {}, None)},
            "/v2/systemsharedmemory/region/{region_name}/status": {
                "parameters": [_parameter("region_name", {"minLength": 1})],
                "get": _get("region", "One region", _ref("Regions")),
            },
            "/v2/systemsharedmemory/region/{region_name}/register": {
                "parameters": [_parameter("region_name", {"minLength": 1})],
                "post": _post("register", "Make a region known", _ref("RegisterRequest"), None),
            },
            "/v2/systemsharedmemory/region/{region_name}/unregister": {
                "parameters": [_parameter("region_name", {"minLength": 1})],
                "post": _post("unregister", "Forget a region", {}, None),
            },
            "/v2/logging": {
                "get": _get("log_settings", "What is logged", _ref("LogSettings")),
                "post": _post("change_log_settings", "Log more or less", _ref("LogSettings"), _ref("LogSettings")),
            },
            **{
                path: {
                    **({"parameters": [_parameter("model_name", {"minLength": 1})]} if of else {}),
                    "get": _get(f"{of}trace_settings", "What is traced", _ref("TraceSettings")),
                    "post": _post(
                        f"change_{of}trace_settings", "Trace more or less", _ref("TraceChanges"), _ref("TraceSettings")
                    ),
                }
                for path, of in (("/v2/trace/setting", ""), ("/v2/models/{model_name}/trace/setting", "model_"))
            },
            **{
                f"/v2/repository/models/{{model_name}}/{verb}": {
                    "parameters": [_parameter("model_name", {"minLength": 1})],
                    "post": _post(f"model_{verb}", summary, _ref(f"{verb.title()}Request"), None),
                }
                for verb, summary in (("load", "Load a model, or load it again"), ("unload", "Unload a model"))
            },
        },
        "components": {
            "schemas": _schemas(),
            "responses": {
                f"Error{status}": {
                    "description": text,
                    "content": {"application/json": {"schema": _ref("Error")}},
                }
                for status, text in _ERRORS.items()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _model_paths(path: str, suffix: str, parameters: list[Json]) -> Json:
    """A model's endpoints; `suffix` keeps the operation names of the two forms of a path apart."""
    gets = (
        ("", "metadata", "Inputs, outputs and versions", "ModelMetadata"),
        ("/ready", "ready", "Whether the model can be used now", "ModelReady"),
        ("/config", "config", "The model configuration after defaults", "ModelConfig"),
        ("/stats", "statistics", "Statistics of the model", "Statistics"),
    )
    paths: Json = {
        path + ending: {"parameters": parameters, "get": _get(f"model_{name}{suffix}", summary, _ref(schema))}
        for ending, name, summary, schema in gets
    }
    stream = {
        "101": {"description": "A WebSocket from here on: each message an inference request, each answered in order."},
        "426": {**_answer(_ref("Error")), "description": "Frames are streamed over WebSocket."},
        **_errors(),
    }
    about = {"operationId": f"model_stream{suffix}", "summary": "A stream of frames with deadlines"}
    paths[f"{path}/stream"] = {
        "parameters": parameters,
        "get": {**about, "responses": stream},
    }
    paths[f"{path}/infer"] = {"parameters": parameters, "post": _infer(f"infer{suffix}")}
    return paths


def _infer(operation: str) -> Json:
    binary = {"type": "string", "format": "binary"}
    header = {
        "name": "Inference-Header-Content-Length",
        "description": "Bytes of JSON before binary tensors. Without it the whole body is JSON; 0 makes the whole "
        "body the bytes of the model's only input.",
        "schema": {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1},
    }
    answer = {
        "description": "The outputs; as JSON, or as JSON of the given length followed by binary tensors.",
        "headers": {
            header["name"]: {"description": "Bytes of JSON before binary tensors.", "schema": header["schema"]}
        },
        "content": {
            "application/json": {"schema": _ref("InferResponse")},
            "application/octet-stream": {"schema": binary},
        },
    }
    return {
        "operationId": operation,
        "summary": "Run the model",
        "parameters": [{**header, "in": "header"}],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref("InferRequest")},
                "application/octet-stream": {"schema": binary},
            },
        },
        "responses": {"200": answer, **_errors()},
    }


def _get(operation: str, summary: str, schema: Json) -> Json:
    return {"operationId": operation, "summary": summary, "responses": {"200": _answer(schema), **_errors()}}


def _post(operation: str, summary: str, request: Json, answer: Json | None) -> Json:
    return {
        "operationId": operation,
        "summary": summary,
        "requestBody": {"required": False, "content": {"application/json": {"schema": request}}},
        "responses": {"200": _answer(answer) if answer else {"description": "Done."}, **_errors()},
    }


def _answer(schema: Json) -> Json:
    return {"description": "The answer.", "content": {"application/json": {"schema": schema}}}


def _errors() -> Json:
    return {status: {"$ref": f"#/components/responses/Error{status}"} for status in _ERRORS}


def _parameter(name: str, schema: Json) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", **schema}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str = "", /, **properties: Json) -> Json:
    """An object that may have more members than these: unknown ones are ignored, here and by clients."""
    schema: Json = {"type": "object", "properties": properties}
    return {**schema, "required": required.split()} if required else schema


def _list(items: Json, **limits: int) -> Json:
    return {"type": "array", "items": items, **limits}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _schemas() -> Json:
    string, boolean = {"type": "string"}, {"type": "boolean"}
    uint = {"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}
    int64 = {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}
    shape = _list(uint, maxItems=DIMENSIONS_MAX)
    return {
        "Error": {**_object("error", error=string), "additionalProperties": False},
        "ServerMetadata": _object("name version extensions", name=string, version=string, extensions=_list(string)),
        "Live": _object("live", live={"const": True}),
        "Ready": _object("ready", ready={"const": True}),
        "Models": _object("models", models=_list(string)),
        "ModelReady": _object("name ready", name=string, ready={"const": True}),
        "ModelMetadata": _object(
            "name versions platform inputs outputs",
            name=string,
            versions=_list(string),
            platform=string,
            inputs=_list(_ref("TensorMetadata")),
            outputs=_list(_ref("TensorMetadata")),
        ),
        "TensorMetadata": _object(
            "name datatype shape",
            name=string,
            datatype=_ref("Datatype"),
            shape=_list({"type": "integer", "minimum": -1, "description": "-1 is any size"}),
        ),
        "ModelConfig": {
            **_object("name max_batch_size input output", name=string, max_batch_size=uint),
            "description": "Triton's ModelConfig message as JSON, with the field names of its definition.",
        },
        "Datatype": {"enum": list(NUMPY_DTYPES)},
        "InferRequest": _object(
            "inputs",
            id=_or_null({"type": "string", "maxLength": ID_CHARACTERS_MAX}),
            parameters=_or_null(_ref("RequestParameters")),
            inputs=_list(_ref("RequestInput"), maxItems=TENSORS_MAX),
            outputs=_or_null(_list(_ref("RequestedOutput"), maxItems=TENSORS_MAX)),
        ),
        "RequestParameters": {
            **_object(
                priority={"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1},
                timeout={**uint, "description": "Microseconds the request may wait"},
                binary_data_output=boolean,
                sequence_id={"anyOf": [uint, {**string, "maxLength": SEQUENCE_ID_BYTES_MAX}]},
                sequence_start=boolean,
                sequence_end=boolean,
            ),
            "propertyNames": {"not": {"anyOf": [{"pattern": "^triton_"}, {"const": "headers"}]}},
            "additionalProperties": _ref("Parameter"),
        },
        "RequestInput": {
            "description": "`data` has as many elements as `shape` says. FP16 and BF16 travel as binary tensors only.",
            "oneOf": [
                _input(["BOOL"], "BoolData"),
                _input([*_INTEGERS], "IntegerData"),
                _input(["FP32", "FP64"], "NumberData"),
                _input(["BYTES"], "StringData"),
                _object(
                    "name datatype shape parameters",
                    name=string,
                    datatype=_ref("Datatype"),
                    shape=shape,
                    parameters=_object("binary_data_size", binary_data_size=uint),
                    data={"type": "null"},
                ),
            ],
        },
        "TensorParameters": {
            "type": "object",
            "description": "None that say the values are elsewhere; others are ignored.",
            "propertyNames": {"not": {"enum": ["binary_data_size", *SHARED_MEMORY]}},
            "additionalProperties": _ref("Parameter"),
        },
        "Parameter": {"anyOf": [string, boolean, int64, {"type": "number"}]},
        "BoolData": _data("BoolData", {"anyOf": [boolean, {"enum": [0, 1]}]}),
        "IntegerData": _data("IntegerData", {"type": "integer"}),
        "NumberData": _data("NumberData", {"type": "number"}),
        "StringData": _data("StringData", string),
        "RequestedOutput": _object(
            "name",
            name=string,
            parameters=_or_null(
                _object(
                    binary_data=boolean,
                    classification={"type": "integer", "minimum": 0, "maximum": 999_999},
                )
            ),
        ),
        "InferResponse": _object(
            "model_name model_version outputs",
            model_name=string,
            model_version=string,
            id=string,
            parameters={"type": "object"},
            outputs=_list(
                _object(
                    "name datatype shape",
                    name=string,
                    datatype=_ref("Datatype"),
                    shape=shape,
                    parameters=_object(binary_data_size=uint),
                    data=_list({"type": ["boolean", "number", "string"]}),
                )
            ),
        ),
        "IndexRequest": _object(ready=boolean),
        "Index": _list(
            _object(
                "name",
                name=string,
                namespace=string,
                version=string,
                state={"enum": [str(state) for state in ModelState]},
                reason=string,
            )
        ),
        "LoadRequest": _object(
            parameters=_or_null(
                {
                    "type": "object",
                    "properties": {"config": {**string, "description": "A model configuration as JSON text"}},
                    "patternProperties": {"^file:": {**string, "contentEncoding": "base64"}},
                    "additionalProperties": False,
                }
            )
        ),
        "UnloadRequest": _object(
            parameters=_or_null({**_object(unload_dependents=boolean), "additionalProperties": False})
        ),
        "Regions": _list(_object("name key offset byte_size", name=string, key=string, offset=uint, byte_size=uint)),
        "RegisterRequest": _object("key byte_size", key=string, offset=uint, byte_size=uint),
        "LogSettings": _object(
            "",
            log_file=string,
            log_info=boolean,
            log_warning=boolean,
            log_error=boolean,
            log_verbose_level=uint,
            log_format=string,
        ),
        "TraceSettings": _object(
            "trace_level",
            trace_level=_list(string),
            trace_rate=string,
            trace_count=string,
            trace_file=string,
            trace_mode=string,
            log_frequency=string,
        ),
        "TraceChanges": {
            "type": "object",
            "additionalProperties": {"anyOf": [string, _list(string), {"type": "null"}]},
        },
        "Statistics": _object("model_stats", model_stats=_list(_ref("ModelStatistics"))),
        "ModelStatistics": _object(
            "name version last_inference inference_count execution_count inference_stats batch_stats",
            name=string,
            version=string,
            last_inference={**uint, "description": "Milliseconds since 1970"},
            inference_count=uint,
            execution_count=uint,
            inference_stats=_durations(
                "success fail queue compute_input compute_infer compute_output cache_hit cache_miss"
            ),
            response_stats={"type": "object"},
            batch_stats=_list(_durations("compute_input compute_infer compute_output", batch_size=uint)),
            namespace={**string, "description": "With --model-namespacing"},
            memory_usage=_list(_object("type id byte_size", type=string, id=uint, byte_size=uint)),
        ),
        "Duration": _object("count ns", count=uint, ns=uint),
    }


def _input(datatypes: list[str], data: str) -> Json:
    """An input whose values are in the JSON."""
    return _object(
        "name datatype shape data",
        name={"type": "string"},
        datatype={"enum": datatypes},
        shape=_list({"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}, maxItems=DIMENSIONS_MAX),
        data=_ref(data),
        parameters=_or_null(_ref("TensorParameters")),
    )


def _data(name: str, element: Json) -> Json:
    """An array of elements, or of such arrays."""
    return {"type": "array", "anyOf": [{"items": element}, {"items": _ref(name)}]}


def _durations(names: str, **more: Json) -> Json:
    return _object(" ".join([*more, names]), **more, **{name: _ref("Duration") for name in names.split()})
