"""Every error a user can meet, with the HTTP and gRPC status it answers with.

An error says what went wrong, where, what was found or allowed, and (in `hint`) what to do next. Raising is
the only thing other rooms do with these; turning one into bytes belongs to `protocols`.
"""

from typing import ClassVar, Final

GRPC_INVALID_ARGUMENT: Final = 3
GRPC_DEADLINE_EXCEEDED: Final = 4
GRPC_NOT_FOUND: Final = 5
GRPC_ALREADY_EXISTS: Final = 6
GRPC_PERMISSION_DENIED: Final = 7
GRPC_RESOURCE_EXHAUSTED: Final = 8
GRPC_UNIMPLEMENTED: Final = 12
GRPC_INTERNAL: Final = 13
GRPC_UNAVAILABLE: Final = 14
GRPC_UNAUTHENTICATED: Final = 16
GRPC_CANCELLED: Final = 1


class FarthingError(Exception):
    """The root: a message for a person, a hint what to do, and when to come back (seconds) if waiting helps."""

    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[int] = GRPC_INTERNAL

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class InvalidInput(FarthingError):
    """The request cannot be understood or does not fit the model."""

    http_status = 400
    grpc_status = GRPC_INVALID_ARGUMENT


class TooLarge(InvalidInput):
    """Something is over a stated limit (400 as Triton answers it, see docs/reference)."""


class MessageTooLarge(TooLarge):
    """A gRPC message is over the limit on messages, which gRPC's own libraries answer with this status."""

    grpc_status = GRPC_RESOURCE_EXHAUSTED


class InvalidField(InvalidInput):
    """One field of a request is wrong. `field` is its path (`messages.0.content`), `code` what programs look at."""

    def __init__(self, message: str, *, field: str = "", code: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.code = code


class AlreadyExists(InvalidInput):
    """A name is taken."""

    grpc_status = GRPC_ALREADY_EXISTS


class Unauthenticated(FarthingError):
    """No key, or a key nobody issued."""

    http_status = 401
    grpc_status = GRPC_UNAUTHENTICATED


class Forbidden(FarthingError):
    """A known key that may not do this, or a door the operator keeps closed."""

    http_status = 403
    grpc_status = GRPC_PERMISSION_DENIED


class NotFound(FarthingError):
    """No such model, version, path or region."""

    http_status = 404
    grpc_status = GRPC_NOT_FOUND


class ModelNotFound(NotFound):
    """No model of that name here."""


class MethodNotAllowed(FarthingError):
    """The path exists, the HTTP method does not; `allowed` are those that do."""

    http_status = 405
    grpc_status = GRPC_UNIMPLEMENTED

    def __init__(self, message: str, *, hint: str = "", allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.allowed = allowed


class RequestTimeout(FarthingError):
    """The client took too long to send its own request."""

    http_status = 408
    grpc_status = GRPC_DEADLINE_EXCEEDED


class HeadersTooLarge(FarthingError):
    """Request line or headers over the limit."""

    http_status = 431
    grpc_status = GRPC_INVALID_ARGUMENT


class TenantLimited(FarthingError):
    """This tenant is over its share; others are served."""

    http_status = 429
    grpc_status = GRPC_RESOURCE_EXHAUSTED


class Cancelled(FarthingError):
    """The client gave up before the model ran."""

    http_status = 400
    grpc_status = GRPC_CANCELLED


class EngineFailed(FarthingError):
    """The model was run and failed: our side or the model's, never the request's shape."""

    http_status = 500
    grpc_status = GRPC_INTERNAL


class Unsupported(FarthingError):
    """Understood, legal, and not offered here."""

    http_status = 501
    grpc_status = GRPC_UNIMPLEMENTED


class Unavailable(FarthingError):
    """Not now: loading, unloading, stopping."""

    http_status = 503
    grpc_status = GRPC_UNAVAILABLE


class NotReady(Unavailable):
    """As Triton's health endpoints say it, for those who need its status."""

    http_status = 400


def not_ready_error(http_status: int) -> type[Unavailable]:
    """What health endpoints raise when the answer is no; load balancers expect 503, Triton's tests 400."""
    return NotReady if http_status == NotReady.http_status else Unavailable


class Overloaded(Unavailable):
    """A bounded queue is full; `retry_after_s` says when to come back."""


class DeadlineExceeded(Unavailable):
    """The request's own deadline passed, or cannot be met, before it could run."""

    grpc_status = GRPC_DEADLINE_EXCEEDED


class LoadFailed(FarthingError):
    """A model could not be loaded; the message names the file and the reason."""

    http_status = 400
    grpc_status = GRPC_INVALID_ARGUMENT


class CannotListen(FarthingError):
    """The address is taken, or not ours."""


class InvalidSetting(FarthingError):
    """What the operator set, on the command line or in the environment, cannot be understood or cannot be had."""
