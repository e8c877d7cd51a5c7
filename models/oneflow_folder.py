"""Reading of folders written by `oneflow.save` without unpickling: raw tensors and a pickle that names them.

A tensor is a folder with `out` (raw data) and `meta` (shape and type as protobuf text). `pickled_data` has the saved
object, with each tensor as `{"path": folder}`. Folders written by OneFlow before 0.8 have no pickle; their tensors are
named by their folders. Links are rejected.
"""

import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.host.quantity import quantity
from models.pickle_reader import Allowed, Global, Instance, escaped, read_pickle
from models.saved_weights import PLAIN_REDUCERS, is_plain_or_module

PICKLE_NAME = "pickled_data"
_TYPES: Mapping[str, str] = {
    "kFloat": "f4",
    "kFloat16": "f2",
    "kDouble": "f8",
    "kInt64": "i8",
    "kInt32": "i4",
    "kInt8": "i1",
    "kUInt8": "u1",
    "kBool": "?",
}
_MAX_PICKLE_BYTES = 256 * 1024 * 1024
_MAX_META_BYTES = 4096
_MAX_SHARES = 4
_TENSOR_KINDS = frozenset({"oneflow.nn.Parameter", "oneflow.Tensor", "oneflow.nn.parameter.Parameter"})


def is_oneflow_folder(path: Path) -> bool:
    """Return whether a folder looks like the output of `oneflow.save`."""
    return (path / PICKLE_NAME).is_file() or any(path.glob("*/out"))


def read_oneflow_folder(path: Path) -> Any:
    """Read the saved object; tensors remain `Instance`s of `oneflow.Tensor`, for `read_tensor`.

    Raises:
        ValueError: damaged, or not plain data.
    """
    pickle_path = path / PICKLE_NAME
    if not os.path.lexists(pickle_path):
        return {entry.name: path_reference(entry.name) for entry in sorted(path.iterdir()) if (entry / "out").is_file()}
    if _file_bytes(pickle_path) > _MAX_PICKLE_BYTES:
        raise ValueError(f"{pickle_path}: too large for the index of a weight file")
    try:
        content = read_pickle(pickle_path.read_bytes(), Allowed(is_plain_or_module, PLAIN_REDUCERS))
    except ValueError as error:
        raise ValueError(f"{pickle_path}: {error}") from None
    if not isinstance(content, dict) or content.get("protocol_version") != 1 or "data" not in content:
        raise ValueError(f"{pickle_path}: not in the format of OneFlow 0.9 (protocol version 1)")
    return content["data"]


def path_reference(name: str) -> Instance:
    """Return the `Instance` that represents the tensor in a subfolder."""
    return Instance(Global("oneflow", "Tensor"), (), {"path": name})


def is_oneflow_tensor(value: Any) -> bool:
    """Return whether a value from `read_oneflow_folder` is a tensor."""
    return (
        isinstance(value, Instance)
        and str(value.kind) in _TENSOR_KINDS
        and isinstance(value.state, dict)
        and isinstance(value.state.get("path"), str)
    )


def _file_bytes(file: Path) -> int:
    """Return the size of a regular file.

    Raises:
        ValueError: not a regular file.
    """
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{file}: not a regular file; copy the folder with its files instead of links")
    return status.st_size


def read_tensors(folder: Path, tensors: Mapping[str, Instance]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of tensors by name.

    Raises:
        ValueError: as for `read_tensor`, or the same data is shared by too many names.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    seen: set[str] = set()
    bytes_left = 0
    for name, tensor in tensors.items():
        arrays[name] = read_tensor(folder, tensor)
        # Names may share a tensor, but in total at most `_MAX_SHARES` times the size of the files.
        bytes_left += arrays[name].nbytes * (-1 if tensor.state["path"] in seen else _MAX_SHARES - 1)
        seen.add(tensor.state["path"])
        if bytes_left < 0:
            raise ValueError(f"{folder}: damaged: its tensors have more elements than its files")
    return arrays


def read_tensor(folder: Path, tensor: Instance) -> npt.NDArray[Any]:
    """Return the array of one tensor.

    Raises:
        ValueError: its folder is missing, damaged, outside the checkpoint, or a link.
    """
    name = tensor.state["path"]
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name) or not (folder / name).is_dir():
        raise ValueError(f"{folder}: refers to a missing tensor folder {escaped(name)}")
    where = folder / name
    if where.is_symlink():
        raise ValueError(f"{where}: a link; copy the folder with its files instead of links")
    if _file_bytes(where / "meta") > _MAX_META_BYTES:
        raise ValueError(f"{where}/meta: too large for the description of a tensor")
    text = (where / "meta").read_text(encoding="utf-8", errors="replace")
    shape = tuple(int(size) for size in re.findall(r"\bdim:\s*(\d{1,12})\b", text))
    kinds = re.findall(r"\bdata_type:\s*(\w+)", text)
    if len(kinds) != 1 or kinds[0] not in _TYPES:
        raise ValueError(f"{where}/meta: tensor type {kinds} is unknown; known: {', '.join(_TYPES)}")
    element = np.dtype(_TYPES[kinds[0]])
    size = _file_bytes(where / "out")
    if size != math.prod(shape) * element.itemsize:
        raise ValueError(
            f"{where}/out: {quantity(size, 'byte')}, but its description has shape {shape} of {element.name}; damaged"
        )
    return np.fromfile(where / "out", element).reshape(shape)
