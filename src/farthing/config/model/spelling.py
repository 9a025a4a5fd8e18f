"""Other ways of writing the same configuration, brought to the one that `ModelConfig` knows.

Proto JSON may write `maxBatchSize` and `null`; people like `data_type = "FP32"`, `version_policy = "all"` and
`parameters.threads = 2`. Names that nobody knows end here, with their path and the name that was probably meant.
Values are checked by whoever converts the result.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin

import msgspec

from farthing.config.model.fields import Block, ModelParameter, VersionPolicy
from farthing.types.errors import LoadFailed


def canonical(value: Any, kind: Any, path: str) -> Any:
    """`value`, meant to become a `kind`, spelt the way msgspec converts it. Never changes what it was given."""
    kind = _bare(kind)
    if isinstance(kind, type):
        if issubclass(kind, Block):
            return _block(value, kind, path)
        if issubclass(kind, StrEnum) and isinstance(value, str):
            return _named(value, kind, path)
        if kind is float:
            return _finite(value, path)
        return value
    inner = get_args(kind)[-1] if get_args(kind) else None
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        element = get_args(kind)[0]
        return [canonical(item, element, f"{path}[{place}]") for place, item in enumerate(value)]
    if get_origin(kind) is Mapping and isinstance(value, Mapping):
        return {key: canonical(item, inner, f"{path}.{key}") for key, item in value.items()}
    return value


def _block(value: Any, kind: type[Block], path: str) -> Any:
    if kind is VersionPolicy:
        value = _version_policy(value)
    elif kind is ModelParameter:
        value = _parameter(value)
    if not isinstance(value, Mapping):
        return value
    fields = _fields(kind)
    spelt: dict[str, Any] = {}
    for key, item in value.items():
        name, field = fields.get(key, (key, None))
        if field is None or name in spelt:
            raise LoadFailed(_unknown(key, kind, path, is_twice=field is not None))
        if item is not None:
            spelt[name] = canonical(item, field, f"{path}.{name}")
    return spelt


def _named(value: str, kind: type[StrEnum], path: str) -> str:
    """`CPU` and `cpu` for `KIND_CPU`."""
    if value in kind._value2member_map_:
        return value
    member = kind.__members__.get(value.upper())
    if member is None:
        allowed = ", ".join(name for name in kind.__members__ if name != "INVALID")
        raise LoadFailed(f"`{value[:100]}` is none of {allowed} - at `{path}`")
    return member.value


def _finite(value: Any, path: str) -> Any:
    try:
        is_finite = isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return value
    if not is_finite:
        raise LoadFailed(f"{value} is not a finite number - at `{path}`")
    return value


def _version_policy(value: Any) -> Any:
    if value in ("all", "latest"):
        return {value: {}}
    if isinstance(value, list):
        return {"specific": {"versions": value}}
    if isinstance(value, int) and not isinstance(value, bool):
        return {"latest": {"num_versions": value}}
    return value


def _parameter(value: Any) -> Any:
    if isinstance(value, bool):
        return {"string_value": "true" if value else "false"}
    return {"string_value": str(value)} if isinstance(value, str | int | float) else value


def _unknown(key: Any, kind: type[Block], path: str, *, is_twice: bool) -> str:
    if is_twice:
        return f"field `{key}` is given twice - at `{path}`"
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    return f"unknown field `{str(key)[:100]}`; {meant(str(key), names)} - at `{path}`"


def meant(word: str, names: Sequence[str]) -> str:
    """The name that was probably meant, else all there are."""
    close = get_close_matches(word[:100], names, n=1)
    return f"did you mean `{close[0]}`?" if close else f"known: {', '.join(names)}"


@cache
def _fields(kind: type[Block]) -> dict[str, tuple[str, Any]]:
    """Every accepted spelling of a field -> its name and type."""
    spellings = {}
    for field in msgspec.structs.fields(kind):
        name = field.encode_name
        first, *others = name.split("_")
        spellings[first + "".join(word.capitalize() for word in others)] = (name, field.type)
        spellings[name] = (name, field.type)
    return spellings


@cache
def _bare(kind: Any) -> Any:
    """The type itself, without bounds and without `| None`."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) is UnionType or isinstance(kind, UnionType):
        return _bare(next(part for part in get_args(kind) if part is not NoneType))
    return kind
