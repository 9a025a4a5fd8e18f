"""Bodies of the model repository extension: index, load, unload. Whether they are allowed is the runtime's."""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import Final

import msgspec

from farthing.protocols.kserve.messages import BodyParser, malformed
from farthing.repository.upload_paths import check_paths
from farthing.types.errors import InvalidInput
from farthing.types.requests import Parameter

_FILE: Final = "file:"

FILES_MAX: Final = 1024
"""Files in one load request."""


class IndexRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`ready`: only models that can be used now."""

    ready: bool = False


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A load, perhaps with a configuration and files that take the place of those in the repository."""

    config: str = ""
    """A model configuration as JSON text (checked to be an object); empty: as in the repository."""
    files: Mapping[str, bytes] = {}
    """Path within the model's folder, such as `1/model.onnx`, to content. Never empty without `config`."""


class UnloadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`unload_dependents`: also the models an ensemble is made of."""

    unload_dependents: bool = False


class _IndexBody(msgspec.Struct):
    ready: bool = False


class _ParametersBody(msgspec.Struct):
    parameters: dict[str, Parameter] | None = None


_index: Final = BodyParser(_IndexBody, "repository index")
_load: Final = BodyParser(_ParametersBody, "model load")
_unload: Final = BodyParser(_ParametersBody, "model unload")
_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse_index_request(body: bytes | memoryview) -> IndexRequest:
    """The body of `POST /v2/repository/index`; empty means everything."""
    return IndexRequest(ready=_index.parse(body).ready)


def parse_load_request(body: bytes | memoryview) -> LoadRequest:
    """The body of a load. Paths are relative, stay in the model's folder and are not over 255 bytes a part."""
    return load_request(_load.parse(body).parameters or {})


def load_request(parameters: Mapping[str, Parameter | bytes]) -> LoadRequest:
    """What a load's parameters ask for; files come as bytes, or as base64 where the wire has only text."""
    config = ""
    files: dict[str, bytes] = {}
    for name, value in parameters.items():
        if name == "config":
            config = _config(value)
        elif name.startswith(_FILE):
            if len(files) == FILES_MAX:
                raise InvalidInput(f"a load request brings at most {FILES_MAX} files")
            files[name.removeprefix(_FILE)] = _content(name, value)
        else:
            raise InvalidInput(
                f"parameters.{name[:80]}: a load takes no such parameter",
                hint="parameters are `config` and `file:<version>/<path>`",
            )
    check_paths(files)
    if files and not config:
        raise InvalidInput(
            "a load that brings files must bring their configuration",
            hint="put the model configuration as JSON text into `parameters.config`",
        )
    return LoadRequest(config=config, files=files)


def parse_unload_request(body: bytes | memoryview) -> UnloadRequest:
    """The body of an unload."""
    return unload_request(_unload.parse(body).parameters or {})


def unload_request(parameters: Mapping[str, Parameter | bytes]) -> UnloadRequest:
    """What an unload's parameters ask for."""
    unload_dependents = False
    for name, value in parameters.items():
        if name != "unload_dependents":
            raise InvalidInput(
                f"parameters.{name[:80]}: an unload takes no such parameter", hint="it takes `unload_dependents`"
            )
        if not isinstance(value, bool):
            raise InvalidInput("parameters.unload_dependents: expected true or false")
        unload_dependents = value
    return UnloadRequest(unload_dependents=unload_dependents)


def _config(value: Parameter | bytes) -> str:
    if not isinstance(value, str):
        raise InvalidInput("parameters.config: expected a model configuration as JSON text in a string")
    try:
        _object.decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise malformed(error, "parameters.config: the text is not a JSON object") from None
    return value


def _content(name: str, value: Parameter | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InvalidInput(f"parameters.{name[:80]}: expected the file's content as base64 text in a string")
    try:
        return b64decode(value, validate=True)
    except (Base64Error, ValueError) as error:
        raise InvalidInput(f"parameters.{name[:80]}: not base64 ({error})") from None
