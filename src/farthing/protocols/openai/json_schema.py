"""What is asked of a JSON schema before anyone compiles it: that it is of a size, and that something finite can fit it.

Which keywords are understood is for the compiler to say (`llm.grammar`).
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from farthing.types.errors import InvalidField

SCHEMA_BYTES_MAX: Final = 1 << 17
"""Of one schema; OpenAI's own bound is 120,000 characters."""
NESTING_MAX: Final = 64
PASSES_MAX: Final = 16
"""Over all references of a schema, to find those that lead nowhere. Each pass settles a whole chain of them; a schema
that needs more was written to."""

_encode = msgspec.json.Encoder().encode


def checked_schema(schema: Any, field: str) -> Mapping[str, Any]:
    """The schema, if it is one to try. Raises `InvalidField`."""
    if not isinstance(schema, Mapping):
        raise InvalidField(f"{field}: expected a JSON schema, which is an object", field=field)
    if _nesting(schema) > NESTING_MAX:
        raise InvalidField(f"{field}: nested deeper than {NESTING_MAX}", field=field, hint="use $defs and $ref")
    if len(_encode(schema)) > SCHEMA_BYTES_MAX:
        raise InvalidField(f"{field}: larger than {SCHEMA_BYTES_MAX} bytes", field=field)
    if not _Ends(schema).is_finite():
        raise InvalidField(f"{field}: nothing finite fits it, for it refers to itself without end", field=field)
    return schema


def _nesting(value: Any) -> int:
    """Depth of objects and arrays, level by level: a deep one must not be the end of us."""
    depth, level = 0, [value]
    while level and depth <= NESTING_MAX:
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
            if isinstance(inner, Mapping | list)
        ]
        depth += 1
    return depth


class _Ends:
    """Can a value that fits ever be complete? The least answer that agrees with itself: at first no reference ends."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._known: dict[str, bool] = {}

    def is_finite(self) -> bool:
        answer = self._ends(self._schema)
        for _ in range(PASSES_MAX):
            before = dict(self._known)
            for reference in reversed(before):  # chains are found from their beginning
                if not before[reference]:
                    self._known[reference] = self._ends(self._target(reference))
            answer = self._ends(self._schema)
            if self._known == before:
                return answer
        return True

    def _target(self, reference: str) -> Any:
        """What it points to; True (anything) for what the compiler will refuse anyway."""
        value: Any = self._schema
        if not reference.startswith("#"):
            return True
        for part in reference[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")  # noqa: PLW2901
            value = value.get(part, True) if isinstance(value, Mapping) else True
        return value

    def _ends(self, schema: Any) -> bool:
        if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
            return True
        reference = schema.get("$ref")
        if isinstance(reference, str) and not self._known.setdefault(reference, False):
            return False
        if not all(map(self._ends, _list(schema, "allOf"))):
            return False
        for name in ("anyOf", "oneOf"):
            ways = [self._ends(way) for way in _list(schema, name)]
            if ways and not any(ways):
                return False
        kinds = schema.get("type")
        if kinds == "object":
            return self._object_ends(schema)
        return self._array_ends(schema) if kinds == "array" else True

    def _object_ends(self, schema: Mapping[str, Any]) -> bool:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping):
            properties = {}
        others = schema.get("additionalProperties", True)
        ends = [self._ends(properties.get(name, others)) for name in _list(schema, "required") if isinstance(name, str)]
        return all(ends)  # of all of them, so that one pass meets all references

    def _array_ends(self, schema: Mapping[str, Any]) -> bool:
        least = schema.get("minItems")
        if not isinstance(least, int) or least < 1:
            return True
        first = _list(schema, "prefixItems")[:least]
        rest = [schema.get("items", True)] if least > len(first) else []
        ends = [self._ends(item) for item in [*first, *rest]]
        return all(ends)


def _list(schema: Mapping[str, Any], name: str) -> list[Any]:
    value = schema.get(name)
    return value if isinstance(value, list) else []
