"""Arguments of the CUDA kernels as ctypes structures, read from the headers that the kernels themselves include."""

import ctypes
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kernels.build.plugin_build import SOURCE_FOLDER

_TYPES: Mapping[str, Any] = {
    "int64_t": ctypes.c_int64,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "bool": ctypes.c_bool,
}
_CONSTANT = re.compile(r"constexpr (?:int|int64_t) (k\w+) = (\d+);")
_FIELD = re.compile(r"(?:const )?([\w ]+?)\s*(\*?)\s*((?:\w+(?:\[\w+\])?(?:, )?)+)$")


def structure(header: str, name: str) -> type[ctypes.Structure]:
    """The struct of that name in a header, e.g. "ops/bias/bias.h".

    Raises:
        KeyError: a type that none of the headers had when this was written.
    """
    return _structure(SOURCE_FOLDER / header, name)


@cache
def _structure(header: Path, name: str) -> type[ctypes.Structure]:
    text = re.sub(r"//[^\n]*", "", header.read_text(encoding="utf-8"))
    body = re.search(rf"struct {name} {{(.*?)\n}};", text, re.DOTALL)
    if body is None:
        raise KeyError(f"{header}: no struct {name}")
    fields = []
    for declaration in (part.strip() for part in body[1].split(";")):
        if not declaration:
            continue
        found = _FIELD.match(declaration)
        if found is None:
            raise KeyError(f"{header}: {name}: {declaration!r} is not understood")
        kind = ctypes.c_void_p if found[2] else _TYPES[found[1].split()[-1]]
        for field in found[3].split(", "):
            plain, _, count = field.rstrip("]").partition("[")
            fields.append((plain, kind * constant(header, count) if count else kind))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def constant(header: str | Path, name: str) -> int:
    """The value of a `constexpr` number of a header."""
    return int(dict(_CONSTANT.findall((SOURCE_FOLDER / header).read_text(encoding="utf-8")))[name])
