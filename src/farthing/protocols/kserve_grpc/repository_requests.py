"""What load and unload messages ask for. Whether it is allowed is the runtime's."""

from collections.abc import Mapping
from typing import Any

from farthing.protocols.kserve import LoadRequest, UnloadRequest, load_request, unload_request
from farthing.types.errors import InvalidInput, Unsupported
from farthing.types.requests import Parameter


def asked_load(message: Any) -> LoadRequest:
    """The parameters of a `RepositoryModelLoadRequest`, whose names have been checked."""
    return load_request(_plain(message.parameters))


def asked_unload(message: Any) -> UnloadRequest:
    """The parameters of a `RepositoryModelUnloadRequest`, whose names have been checked."""
    return unload_request(_plain(message.parameters))


def check_repository_name(message: Any) -> None:
    """Raises unless a repository message names none; there is one repository, and it has no name.

    KServe's own .proto has the model's name at the number where Triton's has the repository's, so a client made from
    it seems to name a repository and no model.
    """
    if not message.repository_name:
        return
    if hasattr(message, "model_name") and not message.model_name:
        raise InvalidInput(
            f"repository_name is '{message.repository_name[:80]}' and model_name is empty",
            hint="if that is the model's name, the client was made from KServe's .proto, where the model's name is "
            "field 1; here, as in Triton's, it is field 2",
        )
    raise Unsupported("naming a repository is not supported", hint="leave repository_name empty")


def _plain(parameters: Mapping[str, Any]) -> dict[str, Parameter | bytes]:
    values: dict[str, Parameter | bytes] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidInput(f"parameters.{name[:80]}: the parameter has no value")
        values[name] = getattr(parameter, kind)
    return values
