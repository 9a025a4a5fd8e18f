"""The published OpenAPI 3.1 document of the KServe endpoints."""

from typing import Any


def openapi_document(version: str) -> dict[str, Any]:
    """Every KServe path this server has, with the shapes of bodies and errors."""
    raise NotImplementedError
