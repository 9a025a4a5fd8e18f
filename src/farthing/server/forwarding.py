"""Headers a model may see: those whose names match the operator's pattern become request parameters.

Triton's `--http-header-forward-pattern`, and `--grpc-header-forward-pattern` for metadata. Names are matched whole and
in any case, and arrive in lower case.
"""

import re
from collections.abc import Mapping

from farthing.protocols.kserve import is_reserved_parameter
from farthing.types.errors import InvalidInput, InvalidSetting
from farthing.types.requests import InferRequest


class HeaderForwarding:
    """Copies matching headers into a request's parameters."""

    def __init__(self, pattern: str, *, option: str = "--http-header-forward-pattern") -> None:
        """Raises `InvalidSetting` for a pattern that is not a regular expression."""
        try:
            self._pattern = re.compile(pattern, re.IGNORECASE)
        except re.error as error:
            raise InvalidSetting(
                f"{option} `{pattern}` is not a regular expression: {error}",
                hint="such as `x-tenant-.*`",
            ) from None

    def forward(self, headers: Mapping[bytes, bytes], request: InferRequest) -> None:
        """Adds the headers as string parameters. Raises `InvalidInput` for a name that is reserved."""
        found = {}
        for raw, value in headers.items():
            name = raw.decode("latin-1")
            if self._pattern.fullmatch(name):
                if is_reserved_parameter(name):
                    raise InvalidInput(f"header '{name}' has the name of a reserved parameter and cannot be forwarded")
                found[name] = value.decode("latin-1")
        if found:
            request.parameters = {**request.parameters, **found}  # the decoder may share the old ones
