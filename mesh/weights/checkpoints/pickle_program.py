"""What the pickle inside a file of ``torch.save`` describes, found without unpickling it.

A pickle is a program for a stack machine that may call anything. This is no such machine: it knows the opcodes that
describe texts, numbers, dictionaries and tuples, and the names that torch's tensors need; it looks no name up, calls
nothing, and refuses anything else by name.

    described(program)     # {"model.norm.weight": PickledTensor(...), ...}

Follows ``pickletools.py`` for the opcodes, ``torch/_utils.py`` (``_rebuild_tensor_v2``) and ``torch/serialization.py``
(``persistent_id``) for what torch writes. Knows nothing of files.
"""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Storages by what we call their type and bytes per element; those that no weight has may lie in a file and stay unused.
_STORAGES: Mapping[str, tuple[str, int]] = {
    "torch FloatStorage": ("F32", 4),
    "torch HalfStorage": ("F16", 2),
    "torch BFloat16Storage": ("BF16", 2),
    "torch DoubleStorage": ("F64", 8),
    "torch LongStorage": ("I64", 8),
    "torch IntStorage": ("I32", 4),
    "torch ShortStorage": ("I16", 2),
    "torch CharStorage": ("I8", 1),
    "torch ByteStorage": ("U8", 1),
    "torch BoolStorage": ("BOOL", 1),
}
_REBUILD, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
_ALLOWED = frozenset({*_STORAGES, _REBUILD, _PARAMETER, _ORDERED_DICT})


@dataclass(frozen=True, slots=True)
class _Name:
    """A class or function that the pickle asks for; never looked up."""

    text: str


@dataclass(frozen=True, slots=True)
class PickledStorage:
    type: str
    element_size: int
    key: str  # the name of its record
    num_elements: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    storage: PickledStorage
    start: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements


class Forbidden(Exception):
    """What the pickle may not ask for, by name."""


_MARK = object()


def described(program: bytes) -> Any:
    """What the pickle describes: texts, numbers, dictionaries, tuples and tensors. Nothing it names is called."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def last(count: int) -> list[Any]:
        if len(stack) < count:
            raise ValueError("an empty stack")
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(last(int(opcode.name[-1]))))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case ("BININT" | "BININT1" | "BININT2" | "LONG1" | "INT" | "LONG" | "BINFLOAT"
                  | "BINUNICODE" | "SHORT_BINUNICODE" | "UNICODE"):  # fmt: skip
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[int(argument)])
            case "GLOBAL" | "INST":
                stack.append(_allowed(argument))
            case "STACK_GLOBAL":
                stack.append(_allowed(" ".join(_text(part) for part in last(2))))
            case "BINPERSID":
                stack.append(_storage(*last(1)))
            case "REDUCE":
                stack.append(_made(*last(2)))
            case "SETITEM":
                _set(stack[-3], last(2))
            case "SETITEMS":
                items = since_mark()
                _set(stack[-1], items)
            case "APPEND" | "APPENDS":
                items = last(1) if opcode.name == "APPEND" else since_mark()
                if not isinstance(stack[-1], list):
                    raise ValueError("items for something else than a list")
                stack[-1].extend(items)
            case "BUILD":  # attributes of a dictionary (``_metadata``): nothing that we need
                last(1)
                if not isinstance(stack[-1], dict | PickledTensor):
                    raise Forbidden("the state of an object")
            case "STOP":
                return stack[-1]
            case other:
                raise Forbidden(f"the instruction {other}")
    raise ValueError("no end")


def _allowed(name: str) -> _Name:
    if name not in _ALLOWED:
        raise Forbidden(name.replace(" ", ".", 1)[:100].encode("ascii", "backslashreplace").decode())
    return _Name(name)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a name that is not a text")
    return value


def _set(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("items for something else than a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):  # a nested tuple may take forever to hash
            raise ValueError("a key that is neither a text nor a number")
        target[key] = value


def _storage(identity: Any) -> PickledStorage:
    """``("storage", class, key, location, number of elements)``."""
    match identity:
        case ("storage", _Name(text), str(key), str(), int(num_elements)) if text in _STORAGES:
            return PickledStorage(*_STORAGES[text], key, num_elements)
    raise ValueError("a storage of another shape than torch writes")


def _made(name: Any, arguments: Any) -> Any:
    """What the call would have made."""
    called = name.text if isinstance(name, _Name) else "something"
    match arguments:
        case () if called == _ORDERED_DICT:
            return {}
        case (PickledTensor() as tensor, *_) if called == _PARAMETER:
            return tensor
        case (PickledStorage() as storage, int(start), tuple(shape), tuple(strides), *_) if (
            called == _REBUILD
        ):
            if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in (*shape, *strides)):
                raise ValueError("a tensor without a shape")
            if start < 0 or len(shape) > 8:
                raise ValueError("a tensor out of bounds")
            return PickledTensor(storage, start, shape, strides)
    raise ValueError(f"a call of {called.replace(' ', '.', 1)} unlike torch's")
