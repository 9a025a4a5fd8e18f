"""`GET /v1/models`: which models answer here."""

from collections.abc import Sequence
from typing import Any

import msgspec

OWNER = "farthing"

_encode = msgspec.json.Encoder().encode


class ListedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as clients see it."""

    id: str
    created: int
    """Seconds since 1970: when it was loaded."""
    context_tokens: int


def models_json(models: Sequence[ListedModel]) -> bytes:
    """The list."""
    return _encode({"object": "list", "data": [_object(model) for model in models]})


def model_json(model: ListedModel) -> bytes:
    """One."""
    return _encode(_object(model))


def _object(model: ListedModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": OWNER,
        "root": model.id,
        "parent": None,
        "max_model_len": model.context_tokens,
    }
