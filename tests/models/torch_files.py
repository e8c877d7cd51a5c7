"""Writing of files in the format of `torch.save`, opcode by opcode, including files PyTorch would never write."""

import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """Return a tensor over a whole storage; shape and offset may be inconsistent."""
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


def plain(value: Any) -> bytes:
    """Pickle numbers, strings, lists and dictionaries of them."""
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        return dict_of({key: plain(item) for key, item in value.items()})
    return b"](" + b"".join(map(plain, value)) + b"e"


def write_network(path: Path, network: Any) -> Path:
    """Write a whole `DetectionModel` in float32, as YOLOv5's `train.py` saves it.

    Class names of the modules are made up.
    """
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, own = name.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[own] = tensor(name, array)
    arrays["stride"] = np.asarray(network.stride, np.float32)
    facts = {
        "names": plain(list(network.names)),
        "stride": tensor("stride", arrays["stride"]),
        "yaml": plain(network.spec.config),
    }
    return write(
        path, dict_of({"epoch": plain(-1), "model": _module_of(tree, "models.yolo.DetectionModel", facts)}), arrays
    )


def _module_of(tree: Mapping[str, Any], kind: str, more: Mapping[str, bytes]) -> bytes:
    children = {
        name: _module_of(inner, "models.common.Part", {}) for name, inner in tree.items() if isinstance(inner, dict)
    }
    own = {name: item for name, item in tree.items() if not isinstance(item, dict)}
    return module(kind, parameters=own, children=children, **more)


def write(
    path: Path, pickle: bytes, arrays: Mapping[str, np.ndarray], *, compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickle + b".")
        archive.writestr("archive/version", "3\n")
        for key, array in arrays.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path
