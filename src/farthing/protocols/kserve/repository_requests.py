"""Bodies of the model repository extension: index, load, unload. Whether they are allowed is the runtime's."""

import msgspec


class IndexRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`ready`: only models that can be used now."""

    ready: bool = False


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A load, perhaps with a configuration and files that take the place of those in the repository."""

    config: str = ""
    """A model configuration as JSON text (checked to be an object); empty: as in the repository."""
    files: dict[str, bytes] = {}
    """Path within the model's folder, such as `1/model.onnx`, to content. Never empty without `config`."""


class UnloadRequest(msgspec.Struct, frozen=True, kw_only=True):
    unload_dependents: bool = False


def parse_index_request(body: bytes | memoryview) -> IndexRequest:
    """The body of `POST /v2/repository/index`; empty means everything."""
    raise NotImplementedError


def parse_load_request(body: bytes | memoryview) -> LoadRequest:
    """The body of a load. Paths are relative, stay in the model's folder and are not over 255 bytes a part."""
    raise NotImplementedError


def parse_unload_request(body: bytes | memoryview) -> UnloadRequest:
    """The body of an unload."""
    raise NotImplementedError
