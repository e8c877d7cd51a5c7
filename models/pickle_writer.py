"""Writing of pickles of plain data and of objects whose classes need not be importable.

The standard library imports the class of an instance to pickle it, so it cannot write files for a program that is not
installed. Format: protocol 2, as documented in the standard library's `pickletools`.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.pickle_reader import Global, Instance


@dataclass(frozen=True)
class Call:
    """A function call that is evaluated when the pickle is loaded."""

    function: Global
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class PersistentId:
    """A reference to data outside the pickle, such as PyTorch's tensor storages."""

    value: Any


_ORDERED_DICT = Global("collections", "OrderedDict")
_CONSTANTS: Mapping[Any, bytes] = {None: b"N", True: b"\x88", False: b"\x89"}
_MAX_INT32 = (1 << 31) - 1


def write_pickle(value: Any, encode: Callable[[Any], Any]) -> bytes:
    """Pickle a tree of values.

    Args:
        value: None, truth values, numbers, text, tuples, lists, dicts, sets, `Global`, `Instance`, `Call` and
            `PersistentId`; no cycles.
        encode: converts values of any other type to one of these.
    Raises:
        TypeError: from `encode`, for an unsupported value.
    """
    return b"\x80\x02" + _pickled(value, encode) + b"."


def _pickled(value: Any, encode: Callable[[Any], Any]) -> bytes:
    writer = _WRITERS.get(type(value))
    return _pickled(encode(value), encode) if writer is None else writer(value, encode)


def _constant(value: Any, _: Any) -> bytes:
    return _CONSTANTS[value]


def _integer(value: int, _: Any) -> bytes:
    if abs(value) <= _MAX_INT32:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _float(value: float, _: Any) -> bytes:
    return b"G" + struct.pack(">d", value)


def _text(value: str, _: Any) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _tuple(values: Sequence[Any], encode: Any) -> bytes:
    return b"(" + b"".join(_pickled(value, encode) for value in values) + b"t" if values else b")"


def _list_opcodes(values: Sequence[Any], encode: Any) -> bytes:
    return b"](" + b"".join(_pickled(value, encode) for value in values) + b"e"


def _dict(values: Mapping[Any, Any], encode: Any) -> bytes:
    return b"}" + _items(values, encode)


def _ordered_dict(values: Mapping[Any, Any], encode: Any) -> bytes:
    return _global(_ORDERED_DICT, encode) + b")R" + _items(values, encode)


def _items(values: Mapping[Any, Any], encode: Any) -> bytes:
    pairs = (_pickled(key, encode) + _pickled(value, encode) for key, value in values.items())
    return b"(" + b"".join(pairs) + b"u"


def _set(values: set[Any], encode: Any) -> bytes:
    # Sorted, so that equal networks give equal bytes.
    return _call(Call(Global("builtins", "set"), (sorted(values),)), encode)


def _global(value: Global, _: Any) -> bytes:
    return b"c" + value.module.encode() + b"\n" + value.name.encode() + b"\n"


def _call(value: Call, encode: Any) -> bytes:
    return _global(value.function, encode) + _tuple(value.arguments, encode) + b"R"


def _instance(value: Instance, encode: Any) -> bytes:
    made = _global(value.kind, encode) + _tuple(value.arguments, encode) + b"\x81"
    return made + _pickled(value.state, encode) + b"b"


def _persistent(value: PersistentId, encode: Any) -> bytes:
    return _pickled(value.value, encode) + b"Q"


_WRITERS: Mapping[type, Callable[[Any, Callable[[Any], Any]], bytes]] = {
    type(None): _constant,
    bool: _constant,
    int: _integer,
    float: _float,
    str: _text,
    tuple: _tuple,
    list: _list_opcodes,
    dict: _dict,
    OrderedDict: _ordered_dict,
    set: _set,
    Global: _global,
    Call: _call,
    Instance: _instance,
    PersistentId: _persistent,
}
