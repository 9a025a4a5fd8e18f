"""What an answer that is no success means: the error its status stands for, in the server's own words."""

import json
import math
from http import HTTPStatus
from typing import Final

from farthing.client.connection import Reply
from farthing.types import errors
from farthing.types.errors import FarthingError

_ERRORS: Final[dict[int, type[FarthingError]]] = {
    400: errors.InvalidInput,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    408: errors.RequestTimeout,
    413: errors.TooLarge,
    422: errors.InvalidInput,
    429: errors.TenantLimited,
    431: errors.HeadersTooLarge,
    501: errors.Unsupported,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}
"""What a status means; others of the 400s are the request's fault, of the 500s the model's."""


def error_of(reply: Reply) -> FarthingError:
    """The error that an answer stands for: by its status, in the server's words."""
    default = errors.InvalidInput if reply.status < HTTPStatus.INTERNAL_SERVER_ERROR else errors.EngineFailed
    kind = _ERRORS.get(reply.status, default)
    retry_after_s = _seconds(reply.headers.get("retry-after", ""))
    if kind is errors.Unavailable and retry_after_s is not None:
        kind = errors.Overloaded
    message, _, hint = _message(reply).partition("\nhint: ")
    return kind(message, hint=hint, retry_after_s=retry_after_s)


def _message(reply: Reply) -> str:
    try:
        said = json.loads(bytes(reply.body))["error"]
        return str(said["message"] if isinstance(said, dict) else said)  # OpenAI's way, and KServe's
    except (ValueError, LookupError, TypeError, RecursionError):
        text = bytes(reply.body[:500]).decode("utf-8", "replace").strip()
        return f"status {reply.status}{': ' if text else ''}{text}"


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:  # or a date, which no inference server sends
        return None
    return seconds if math.isfinite(seconds) else None
