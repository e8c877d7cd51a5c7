"""Writing of files in the zip format of `torch.save`, without PyTorch.

Layout since PyTorch 1.6: `archive/data.pkl` describes the objects, `archive/data/N` are the raw storages of
the tensors, uncompressed and aligned, `archive/version` is the version of the layout.
"""

import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.host.files import replacing
from models.pickle_reader import Global
from models.pickle_writer import Call, PersistentId, write_pickle
from models.safetensors_file import in_order

_STORAGES: Mapping[str, str] = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_FOLDER = "archive"
_VERSION = b"3\n"
_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
_PADDING_ID = b"FB"
"""Id of the extra field that PyTorch uses to align a record."""
_NO_HOOKS: OrderedDict[str, Any] = OrderedDict()


@dataclass(frozen=True)
class Parameter:
    """An array saved as a `torch.nn.Parameter` that requires no gradient."""

    values: npt.NDArray[Any]


def write_pytorch(path: Path, content: Any) -> None:
    """Write a file for `torch.load` atomically; equal content gives equal bytes.

    Args:
        path: target in an existing folder.
        content: values supported by `write_pickle`, NumPy arrays (as tensors) and `Parameter`s.
    Raises:
        OSError: the file cannot be written; an existing file is kept.
        TypeError: an array or another value that the format does not support.
    """
    arrays: list[npt.NDArray[Any]] = []

    def encode(value: Any) -> Any:
        if isinstance(value, Parameter):
            return Call(Global("torch._utils", "_rebuild_parameter"), (value.values, False, _NO_HOOKS))
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{type(value).__name__}: not supported in PyTorch files")
        arrays.append(value)
        return _tensor(value, str(len(arrays) - 1))

    pickle = write_pickle(content, encode)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", pickle)
        _add(archive, "byteorder", b"little")
        for number, value in enumerate(arrays):
            _add(archive, f"data/{number}", in_order(value).astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
        _add(archive, "version", _VERSION)


def _tensor(value: npt.NDArray[Any], key: str) -> Call:
    """Return a tensor with its own storage."""
    if value.dtype.name not in _STORAGES:
        raise TypeError(f"{value.dtype}: not supported by PyTorch tensors")
    kind = Global("torch", _STORAGES[value.dtype.name])
    storage = PersistentId(("storage", kind, key, "cpu", int(value.size)))
    steps = tuple(int(np.prod(value.shape[axis + 1 :], dtype=np.int64)) for axis in range(value.ndim))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 0, value.shape, steps, False, _NO_HOOKS))


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Append a record with aligned content and a fixed date."""
    entry = zipfile.ZipInfo(f"{_FOLDER}/{name}")
    assert archive.fp is not None
    start = archive.fp.tell() + _LOCAL_HEADER_BYTES + len(entry.filename) + 4
    padding = -start % _ALIGNMENT
    entry.extra = _PADDING_ID + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(entry, content)
