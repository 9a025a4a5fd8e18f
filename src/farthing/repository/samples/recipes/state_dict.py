"""Weights out of a `.pth` file of the old kind (before PyTorch 1.6), without torch and without unpickling.

Such a file is five pickles and then raw numbers. Unpickling calls whatever the file says, so we do not: the opcodes
are read with `pickletools`, which only parses, and the few that a dictionary of tensors needs are carried out here on
plain values. There are four names in the whole machine, none is looked up anywhere, and none runs code. Any other
opcode or name is refused.

    magic | protocol | sizes | state dict, tensors pointing into storages | storage names | each storage's numbers
"""

import io
import math
import pickletools
import struct
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.types.errors import LoadFailed

MAGIC: Final = 0x1950A86A20F9469CFC6C
PROTOCOL: Final = 1001

ELEMENT_TYPES: Final = {"torch FloatStorage": "<f4", "torch LongStorage": "<i8"}
REBUILD_TENSOR: Final = "torch._utils _rebuild_tensor_v2"
ORDERED_DICT: Final = "collections OrderedDict"
KNOWN_NAMES: Final = frozenset({*ELEMENT_TYPES, REBUILD_TENSOR, ORDERED_DICT})

OPCODES_MAX: Final = 1_000_000
"""A state dict of a thousand tensors takes about a hundred thousand."""

Weights = dict[str, NDArray[Any]]


class Unreadable(Exception):
    """The file is not what this module reads; the text says where."""


class _Name(msgspec.Struct, frozen=True):
    name: str


class _Storage(msgspec.Struct, frozen=True):
    key: str
    dtype: str
    elements: int


class _View(msgspec.Struct, frozen=True):
    """A tensor: a window into a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK: Final = object()


def read_state_dict(path: Path) -> Weights:
    """Names and arrays. Raises `LoadFailed` naming the file and the reason for anything unexpected."""
    try:
        # In memory, where reading "four gigabytes" of a small file gives what there is: a file object allocates first.
        return _read(io.BytesIO(path.read_bytes()))
    except (Unreadable, ArithmeticError, LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise LoadFailed(f"{path}: not a state dict this reads: {error}") from error


def _read(file: io.BytesIO) -> Weights:
    if _plain_pickle(file) != MAGIC or _plain_pickle(file) != PROTOCOL:
        raise Unreadable("it does not begin as PyTorch's old format does")
    sizes = _plain_pickle(file)
    if not isinstance(sizes, dict) or sizes.get("little_endian") is not True:
        raise Unreadable("its numbers are not little-endian")
    views = _plain_pickle(file)
    keys = _plain_pickle(file)
    if not isinstance(views, dict) or not isinstance(keys, list):
        raise Unreadable("it holds no dictionary of tensors")
    declared = {view.storage.key: view.storage for view in views.values() if isinstance(view, _View)}
    numbers = {key: _read_storage(file, declared[key]) for key in keys}
    return {name: _tensor(name, view, numbers) for name, view in views.items()}


def _read_storage(file: io.BytesIO, storage: _Storage) -> NDArray[Any]:
    (elements,) = struct.unpack("<q", file.read(8))
    dtype = np.dtype(storage.dtype)
    if elements != storage.elements or elements < 0:
        raise Unreadable(f"storage {storage.key} says {elements} elements, its tensor {storage.elements}")
    return np.frombuffer(file.read(elements * dtype.itemsize), dtype, elements)


def _tensor(name: object, view: object, numbers: dict[str, NDArray[Any]]) -> NDArray[Any]:
    if not isinstance(view, _View):
        raise Unreadable(f"{name!r} is not a tensor")
    flat = numbers[view.storage.key]
    if len(view.shape) != len(view.strides) or min(*view.shape, *view.strides, view.offset, 0) < 0:
        raise Unreadable(f"{name!r} has a shape that cannot be")
    elements = math.prod(view.shape)
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    # Strides may permute axes but not repeat numbers: a few bytes must not become an array of any size.
    if elements > flat.size or (elements and last >= flat.size):
        raise Unreadable(f"{name!r} reaches outside its storage")
    steps = [stride * flat.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, steps).copy()


def _plain_pickle(file: io.BytesIO) -> Any:
    """The value a pickle stands for, if it is built of plain data and the four known names."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > OPCODES_MAX:
            raise Unreadable(f"more than {OPCODES_MAX} opcodes in one pickle")
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                break
            case "MARK":
                stack.append(_MARK)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                stack.append(tuple(_pop(stack) for _ in range(length))[::-1])
            case "TUPLE":
                stack.append(tuple(_pop_to_mark(stack)))
            case "APPEND":
                value = _pop(stack)
                _top(stack, list).append(value)
            case "APPENDS":
                items = _pop_to_mark(stack)
                _top(stack, list).extend(items)
            case "SETITEM":
                value, key = _pop(stack), _pop(stack)
                _set(_top(stack, dict), key, value)
            case "SETITEMS":
                items = _pop_to_mark(stack)
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _set(_top(stack, dict), key, value)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = _top(stack, object)
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                if argument not in KNOWN_NAMES:
                    raise Unreadable(f"it wants `{str(argument)[:80]}`, which is refused")
                stack.append(_Name(str(argument)))
            case "BINPERSID":
                stack.append(_storage(_pop(stack)))
            case "REDUCE":
                arguments, name = _pop(stack), _pop(stack)
                stack.append(_reduce(name, arguments))
            case "BUILD":  # a module's version numbers, hung on the dictionary; of no use here
                _pop(stack)
                _top(stack, dict)
            case refused:
                raise Unreadable(f"it uses opcode {refused}, which is refused")
    if len(stack) != 1 or stack[0] is _MARK:
        raise Unreadable("a pickle in it is not one value")
    return stack[0]


def _reduce(name: Any, arguments: Any) -> Any:
    match name, arguments:
        case _Name(name="collections OrderedDict"), ():
            return {}
        case _Name(name="torch._utils _rebuild_tensor_v2"), (_Storage() as storage, int(offset), shape, strides, *_):
            if all(isinstance(sizes, tuple) and all(type(n) is int for n in sizes) for sizes in (shape, strides)):
                return _View(storage, offset, shape, strides)
    raise Unreadable("it calls something in a way that is refused")


def _storage(identity: Any) -> _Storage:
    match identity:
        case ("storage", _Name(name=kind), str(key), str(), int(elements), None) if kind in ELEMENT_TYPES:
            return _Storage(key, ELEMENT_TYPES[kind], elements)
    raise Unreadable("a storage in it is described in a way that is refused")


def _set(target: dict[Any, Any], key: Any, value: Any) -> None:
    if not isinstance(key, Hashable) or not isinstance(key, str | int):
        raise Unreadable("a dictionary in it has keys that are not names")
    target[key] = value


def _pop(stack: list[Any]) -> Any:
    value = stack.pop()
    if value is _MARK:
        raise Unreadable("a pickle in it ends a group that holds too little")
    return value


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while (value := stack.pop()) is not _MARK:
        items.append(value)
    return items[::-1]


def _top(stack: list[Any], kind: type) -> Any:
    if not stack or stack[-1] is _MARK or not isinstance(stack[-1], kind):
        raise Unreadable("a pickle in it fills something that is not there")
    return stack[-1]
