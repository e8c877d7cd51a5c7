"""Arguments of the CUDA kernels as ctypes structures, parsed from the kernels' own headers."""

import ctypes
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from kernels.build.plugin_build import SOURCE_FOLDER, included_files

_TYPES: Mapping[str, Any] = {
    "int64_t": ctypes.c_int64,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "bool": ctypes.c_bool,
}
_CONSTANT = re.compile(r"constexpr (?:int|int64_t) (k\w+) = (\d+);")
_METHOD = re.compile(r"^\s*GT_\w+ .*\{.*\} *$", re.MULTILINE)
_FIELD = re.compile(r"(?:const )?([\w<> ]+?)\s*(\*?)\s*((?:\w+(?:\[[\w +]+\])?(?:, )?)+)$")


@cache
def structure(header: str, name: str) -> type[ctypes.Structure]:
    """Return the struct `name` of a header, such as "ops/bias/bias.h", or of its includes.

    Raises:
        KeyError: a type that this parser does not know.
    """
    body = re.search(rf"struct {name} {{(.*?)\n}};", _text(header), re.DOTALL)
    if body is None:
        raise KeyError(f"{header}: no struct {name}")
    fields = []
    for declaration in (part.strip() for part in _METHOD.sub("", body[1]).split(";")):
        if not declaration:
            continue
        found = _FIELD.match(declaration)
        if found is None:
            raise KeyError(f"{header}: {name}: {declaration!r} is not understood")
        kind = ctypes.c_void_p if found[2] else _type(header, found[1].split()[-1])
        for field in found[3].split(", "):
            plain, _, count = field.rstrip("]").partition("[")
            fields.append((plain, kind * _count(header, count) if count else kind))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def constant(header: str, name: str) -> int:
    """Return the value of a `constexpr` number of a header or of its includes."""
    return int(dict(_CONSTANT.findall(_text(header)))[name])


@cache
def _text(header: str) -> str:
    texts = (path.read_text(encoding="utf-8") for path in included_files(SOURCE_FOLDER / header))
    return re.sub(r"//[^\n]*", "", "\n".join(texts))


def _type(header: str, name: str) -> Any:
    if re.search(rf"enum class {name} {{", _text(header)):
        return ctypes.c_int
    return _TYPES.get(name) or structure(header, name)


def _count(header: str, words: str) -> int:
    """Return an array length given as a sum of numbers and constants."""
    return sum(int(word) if word.isdigit() else constant(header, word) for word in words.split(" + "))
