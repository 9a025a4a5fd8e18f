"""How an error looks under `/v1`: OpenAI's object, of which clients read the status, `code` and `message`.

    {"error": {"message": "...", "type": "invalid_request_error", "param": "messages.0.content", "code": null}}

All four keys are always there. Raising errors belongs to whoever finds them; the table of statuses is `types.errors`.
"""

from http import HTTPStatus
from typing import Final

import msgspec

from farthing.types.errors import (
    FarthingError,
    InvalidField,
    ModelNotFound,
    Overloaded,
    TenantLimited,
    TooLarge,
    Unauthenticated,
)

_TYPES: Final = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
"""Others of the 400s are the request's fault, of the 500s the server's."""
_CODES: Final[dict[type[FarthingError], str]] = {
    Unauthenticated: "invalid_api_key",
    TenantLimited: "rate_limit_exceeded",
    Overloaded: "server_overloaded",
    ModelNotFound: "model_not_found",
}

FAILED: Final = "the server failed to answer this request\nhint: its log says why"
"""All that clients hear of a failure that is not theirs."""

_encode = msgspec.json.Encoder().encode


def status_of(error: FarthingError) -> int:
    """The HTTP status under `/v1`: as everywhere, but 413 for a body over its limit, where Triton says 400."""
    return HTTPStatus.REQUEST_ENTITY_TOO_LARGE.value if isinstance(error, TooLarge) else error.http_status


def error_object(error: FarthingError) -> dict[str, str | None]:
    """What stands under the key `error`."""
    status = status_of(error)
    param = error.field if isinstance(error, InvalidField) else "model" if isinstance(error, ModelNotFound) else ""
    return {
        # A failure of ours may quote anything; other messages may quote a path or a header that was no UTF-8.
        "message": FAILED if status == 500 else str(error).encode(errors="backslashreplace").decode(),
        "type": _TYPES.get(HTTPStatus(status), "server_error" if status >= 500 else "invalid_request_error"),
        "param": param or None,
        "code": (error.code or None) if isinstance(error, InvalidField) else _CODES.get(type(error)),
    }


def encode_error(error: FarthingError) -> bytes:
    """The whole body."""
    return _encode({"error": error_object(error)})


def unsupported(field: str, what: str, *, hint: str = "") -> InvalidField:
    """A field that OpenAI's API has and this server does not honour: said, rather than ignored."""
    return InvalidField(f"{what} is not supported here", field=field, code="unsupported_parameter", hint=hint)
