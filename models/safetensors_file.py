"""Writing of safetensors files array by array, without copying large states in memory.

Format: 8 bytes with the length of the header (little endian), the header as JSON padded with spaces to a multiple of 8,
then the arrays in the order of the header. Source: the format description of the safetensors project.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

_TYPES = {
    "f8": "F64",
    "f4": "F32",
    "f2": "F16",
    "i8": "I64",
    "i4": "I32",
    "i2": "I16",
    "i1": "I8",
    "u8": "U64",
    "u4": "U32",
    "u2": "U16",
    "u1": "U8",
    "b1": "BOOL",
}
_ALIGNMENT = 8


def in_order(value: np.ndarray) -> np.ndarray:
    """Return the array in row-major order, copied only if needed.

    np.ascontiguousarray would add a dimension to scalars.
    """
    return np.array(value, order="C", copy=False)


def write_safetensors(file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a complete file to the stream; equal content gives equal bytes.

    Args:
        arrays: of any shape, little-endian numbers or booleans.
        metadata: texts for the header.
    Raises:
        OSError: the stream cannot be written.
        TypeError: an array of another type.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # Large element types first, so that every array is aligned.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    start = 0
    for name in names:
        value = arrays[name]
        if value.dtype.str[1:] not in _TYPES or value.dtype.byteorder == ">":
            raise TypeError(f"{name}: {value.dtype} is not supported by safetensors")
        end = start + value.nbytes
        header[name] = {"dtype": _TYPES[value.dtype.str[1:]], "shape": list(value.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        if arrays[name].size:
            file.write(in_order(arrays[name]).data)


def checksum(arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> str:
    """Return the hexadecimal 128-bit BLAKE2b of all arrays, their names and types, and a JSON header."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        value = in_order(arrays[name])
        digest.update(f"{name}:{value.dtype.str}:{value.shape}".encode())
        digest.update(value.data if value.size else b"")
    return digest.hexdigest()
