"""Writes files in the format of `torch.save`, opcode by opcode: what a test wants, also what PyTorch never would."""

import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

KINDS = {"float16": "HalfStorage", "float32": "FloatStorage", "int64": "LongStorage", "uint16": "BFloat16Storage"}


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def dict_of(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


def instance(kind: bytes, state: bytes) -> bytes:
    return kind + b")\x81" + state + b"b"


def tensor(key: str, array: np.ndarray, *, shape: Sequence[int] | None = None, offset: int = 0) -> bytes:
    """A tensor over a whole storage; shape and offset may lie."""
    shape = array.shape if shape is None else shape
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    storage = tuple_of(
        text("storage"), named("torch", KINDS[array.dtype.name]), text(key), text("cpu"), integer(array.size)
    )
    return called(
        named("torch._utils", "_rebuild_tensor_v2"),
        storage + b"Q",
        integer(offset),
        tuple_of(*map(integer, shape)),
        tuple_of(*map(integer, strides)),
        b"\x89",
        called(named("collections", "OrderedDict")),
    )


def module(kind: str, *, parameters: Mapping[str, bytes], children: Mapping[str, bytes], **more: bytes) -> bytes:
    package, name = kind.rsplit(".", 1)
    state = {"_parameters": dict_of(parameters), "_buffers": dict_of({}), "_modules": dict_of(children), **more}
    return instance(named(package, name), dict_of(state))


def write(
    path: Path, pickle: bytes, arrays: Mapping[str, np.ndarray], *, compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickle + b".")
        archive.writestr("archive/version", "3\n")
        for key, array in arrays.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path
