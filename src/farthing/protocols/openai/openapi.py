"""The OpenAI endpoints in the published OpenAPI document.

What a request may hold is made from the very structs that parse it, so the two cannot drift apart. What JSON Schema
cannot say (which fields go together, what fits a model) is said in docs/reference/openai.md.
"""

from typing import Any, Final

import msgspec

from farthing.protocols.kserve.generate import GenerateFields
from farthing.protocols.openai.chat import ChatBody
from farthing.protocols.openai.completions import CompletionBody
from farthing.protocols.openai.tokens import DetokenizeBody, TokenizeBody

Json = dict[str, Any]

_ERRORS: Final = {
    "400": "The request is malformed, does not fit the model, or asks for what is not supported.",
    "401": "A key is needed, or this one is not known.",
    "403": "This key may not do this.",
    "404": "No such model.",
    "405": "The path exists, the method does not.",
    "408": "The request took too long to arrive.",
    "413": "The body is over its limit.",
    "429": "This tenant is over its limit; `Retry-After` says when to come back.",
    "431": "Request line or headers are too large.",
    "500": "The model failed.",
    "503": "Not now: overloaded, loading or stopping.",
}
_REF: Final = "#/components/schemas/{name}"


def with_openai(document: Json) -> Json:
    """The document with OpenAI's endpoints, tokenization and Triton's generate extension in it."""
    components = document["components"]
    bodies, schemas = msgspec.json.schema_components(
        [ChatBody, CompletionBody, TokenizeBody, DetokenizeBody, GenerateFields], ref_template=_REF
    )
    chat, completion, tokenize, detokenize, generate = bodies
    paths = {
        "/v1/models": {"get": _operation("openai_models", "Models that generate text", answer="OpenAiModels")},
        "/v1/models/{model_name}": {
            "parameters": [_NAME],
            "get": _operation("openai_model", "One of them", answer="OpenAiModel"),
        },
        "/v1/chat/completions": {
            "post": _operation(
                "chat_completion", "Continue a conversation", chat, answer="OpenAiChoices", is_streamed=True
            )
        },
        "/v1/completions": {
            "post": _operation("completion", "Continue a text", completion, answer="OpenAiChoices", is_streamed=True)
        },
        "/tokenize": {"post": _operation("tokenize", "Text or messages to token ids", tokenize, answer="OpenAiTokens")},
        "/detokenize": {"post": _operation("detokenize", "Token ids to text", detokenize, answer="OpenAiText")},
        "/v2/models/{model_name}/generate": {
            "parameters": [_NAME],
            "post": _operation("generate", "Continue a text (Triton's extension)", generate, answer="Generated"),
        },
        "/v2/models/{model_name}/generate_stream": {
            "parameters": [_NAME],
            "post": _operation(
                "generate_stream", "The same, as it comes", generate, answer="Generated", is_streamed=True
            ),
        },
    }
    errors = {f"OpenAiError{status}": _answer(text, "OpenAiError") for status, text in _ERRORS.items()}
    return {
        **document,
        "info": {
            **document["info"],
            "title": "Farthing: KServe v2 (Open Inference Protocol) and OpenAI",
            "description": "Inference, text generation, health, metadata, statistics and model repository.",
        },
        "paths": {**document["paths"], **paths},
        "components": {
            **components,
            "schemas": {**components["schemas"], **schemas, **_SCHEMAS},
            "responses": {**components["responses"], **errors},
        },
    }


def _operation(name: str, summary: str, body: Json | None = None, *, answer: str, is_streamed: bool = False) -> Json:
    ok = _answer("The answer.", answer)
    if is_streamed:
        ok["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    is_kserve = name.startswith("generate")
    responses = {
        status: {"$ref": f"#/components/responses/{'' if is_kserve else 'OpenAi'}Error{status}"}
        for status in _ERRORS
        if not (is_kserve and status == "413")
    }
    operation: Json = {"operationId": name, "summary": summary, "responses": {"200": ok, **responses}}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _answer(text: str, schema: str) -> Json:
    return {"description": text, "content": {"application/json": {"schema": {"$ref": _REF.format(name=schema)}}}}


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


_NAME: Final = {
    "name": "model_name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
}
_STRING: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}

_FINISH: Final = {"enum": ["stop", "length", "tool_calls", "function_call"]}
_CALLED: Final = _object(name=_STRING, arguments={"type": "string", "description": "A JSON object, as text."})

_SCHEMAS: Final = {
    "OpenAiError": _object(
        error=_object(message=_STRING, type=_STRING, param=_TEXT_OR_NULL, code=_TEXT_OR_NULL),
    ),
    "OpenAiModel": _object(
        id=_STRING, object={"const": "model"}, created=_COUNT, owned_by=_STRING, max_model_len=_COUNT
    ),
    "OpenAiModels": _object(
        object={"const": "list"}, data={"type": "array", "items": {"$ref": _REF.format(name="OpenAiModel")}}
    ),
    "OpenAiChoices": _object(
        id=_STRING,
        object={"enum": ["chat.completion", "text_completion"]},
        created=_COUNT,
        model=_STRING,
        choices={"type": "array", "items": {"$ref": _REF.format(name="OpenAiChoice")}},
        usage=_object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT),
    ),
    "OpenAiChoice": {
        **_object(index=_COUNT, finish_reason=_FINISH),
        "properties": {
            "index": _COUNT,
            "finish_reason": _FINISH,
            "text": _STRING,
            "message": {
                **_object(role={"const": "assistant"}, content=_TEXT_OR_NULL),
                "properties": {
                    "role": {"const": "assistant"},
                    "content": _TEXT_OR_NULL,
                    "refusal": {"type": "null"},
                    "tool_calls": {
                        "type": "array",
                        "items": _object(id=_STRING, type={"const": "function"}, function=_CALLED),
                    },
                    "function_call": _CALLED,
                },
            },
        },
    },
    "OpenAiTokens": _object(count=_COUNT, max_model_len=_COUNT, tokens={"type": "array", "items": _COUNT}),
    "OpenAiText": _object(prompt=_STRING),
    "Generated": _object(model_name=_STRING, model_version=_STRING, text_output=_STRING),
}
