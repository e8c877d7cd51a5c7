"""Reading of files of `torch.save` without PyTorch and without executing anything.

A file is a zip archive: `data.pkl` describes the objects and refers to raw storages `data/0`, `data/1`, …
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from models.pickle_reader import Allowed, Global, escaped, read_pickle
from models.saved_weights import PLAIN_REDUCERS, is_plain_or_module

_ELEMENTS: Mapping[str, str] = {
    # storage class of PyTorch -> NumPy type; bfloat16 is read as its bits
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_NAMES = {"f8": "float64", "f4": "float32", "f2": "float16", "u2": "bfloat16", "i8": "int64", "i4": "int32"}
_TENSOR_FUNCTIONS = frozenset(
    {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
)
_MORE_GLOBALS = frozenset(
    {"torch.Size", "torch.device", "torch.float32", "torch.float16", "torch.float64", "torch.int64"}
)
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Start of the file format before PyTorch 1.6, a pickled number."""
_ZIP_MAGIC = b"PK\x03\x04"
_EXPORTED_SUFFIXES = frozenset({".onnx", ".engine", ".xml", ".tflite", ".pb", ".mlmodel"})
"""Formats of YOLOv5's `export.py` that are single files."""
_MAX_PICKLE_BYTES = 256 * 1024 * 1024
_FAILURES = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    MemoryError,
    UnicodeError,
    OSError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
)
"""Exceptions of the standard library for damaged archives."""


@dataclass(frozen=True)
class StoredTensor:
    """Metadata of a tensor in the file; `PyTorchFile.array` reads its data."""

    storage: str
    element: str
    numel: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype_name(self) -> str:
        """Name of the data type, such as float16."""
        return _NAMES.get(self.element, np.dtype(self.element).name)


@dataclass(frozen=True)
class _Storage:
    key: str
    element: str
    numel: int


class PyTorchFile:
    """An open file of `torch.save`; `content` is the saved object, with inert classes and `StoredTensor`s.

    Raises:
        ValueError: not such a file, damaged, in an old format, or not plain data.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_bytes = path.stat().st_size
        # Tensors may share storages, but only to a limit.
        self._bytes_left = 4 * self._file_bytes + 1024
        with path.open("rb") as file:
            _check_format(file, path)
        try:
            self._archive = zipfile.ZipFile(path)
            self._root, self._big_endian = self._find_root()
            allowed = Allowed(_is_allowed, {**PLAIN_REDUCERS, **_TENSOR_REDUCERS})
            self.content = read_pickle(self._read(f"{self._root}data.pkl", _MAX_PICKLE_BYTES), allowed, _storage)
        except _FAILURES as error:
            raise ValueError(f"{path}: damaged archive ({type(error).__name__}: {escaped(error)})") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def close(self) -> None:
        """Close the archive; tensors can no longer be read."""
        self._archive.close()

    def _find_root(self) -> tuple[str, bool]:
        names = self._archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("a zip archive, but not written by torch.save; give the .pt file written by a training")
        if f"{roots[0]}constants.pkl" in names:
            raise ValueError("a TorchScript program, not weights; give the .pt file written by a training")
        order = f"{roots[0]}byteorder"
        return roots[0], order in names and self._read(order, 16) == b"big"

    def _read(self, name: str, limit: int) -> bytes:
        entry = self._archive.getinfo(name)
        # torch.save never compresses, so the stored size is bounded by the file size.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > min(limit, self._file_bytes):
            raise ValueError(f"damaged archive: {escaped(name)} is compressed or too large")
        return self._archive.read(entry)

    def array(self, tensor: StoredTensor) -> npt.NDArray[Any]:
        """Return a tensor as an array, bfloat16 as float32.

        Raises:
            ValueError: its storage is missing, damaged or too short.
        """
        try:
            return self._array(tensor)
        except _FAILURES as error:
            raise ValueError(f"{self._path}: damaged archive ({type(error).__name__}: {escaped(error)})") from None
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None

    def _array(self, tensor: StoredTensor) -> npt.NDArray[Any]:
        element = np.dtype(tensor.element).newbyteorder(">" if self._big_endian else "<")
        count = math.prod(tensor.shape)
        self._bytes_left -= count * element.itemsize
        if self._bytes_left < 0:
            raise ValueError("damaged archive: its tensors have more elements than the file")
        raw = self._read(f"{self._root}data/{tensor.storage}", tensor.numel * element.itemsize)
        storage = np.frombuffer(raw, element)
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        if (count and last >= storage.size) or tensor.offset > storage.size or count > max(storage.size, 1):
            raise ValueError(f"damaged archive: a tensor of shape {tensor.shape} exceeds its storage")
        steps = tuple(step * element.itemsize for step in tensor.strides)
        if count == 0:
            return np.zeros(tensor.shape, tensor.element)
        view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, steps, writeable=False)
        if tensor.element == "u2":
            return (view.astype(np.uint32) << 16).view(np.float32)
        return np.array(view, tensor.element, order="C")


def _check_format(file: BinaryIO, path: Path) -> None:
    start = file.read(512)
    if start.startswith(_ZIP_MAGIC):
        return
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    if path.suffix == ".safetensors":  # complete ones are recognised by their header
        raise ValueError(f"{path}: empty, truncated or not a safetensors file; use another copy")
    if start.startswith(_LEGACY_MAGIC) or start[257:262] == b"ustar":
        raise ValueError(
            f"{path}: written by torch.save in its format before version 1.6; get the weights in a newer one, or, if "
            "you trust where they are from, load them with torch.load(..., weights_only=True) and save them again"
        )
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        raise ValueError(
            f"{path}: a plain pickle, not written by torch.save; loading it executes code, so do not load it anywhere; "
            "get the weights as .safetensors or as a .pt that training wrote"
        )
    if path.suffix.lower() in _EXPORTED_SUFFIXES:
        raise ValueError(f"{path}: an exported model; give the .pt or .safetensors file that it was exported from")
    raise ValueError(f"{path}: not written by torch.save; give a .pt, a .safetensors or a OneFlow checkpoint folder")


def _is_allowed(name: Global) -> bool:
    return (
        is_plain_or_module(name)
        or str(name) in _TENSOR_FUNCTIONS
        or str(name) in _MORE_GLOBALS
        or (name.module == "torch" and name.name in _ELEMENTS)
    )


def _storage(reference: Any) -> _Storage:
    """Parse PyTorch's persistent id: ("storage", storage class, key, device, number of elements)."""
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        raise ValueError("refers to something that is not a tensor storage")
    _, kind, key, _, numel = reference
    if not isinstance(kind, Global) or kind.name not in _ELEMENTS or not isinstance(key, str):
        raise ValueError("has a tensor storage of an unknown type")
    return _Storage(key, _ELEMENTS[kind.name], _size(numel))


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
        raise ValueError("has a tensor with an invalid size")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > 8:
        raise ValueError("has a tensor of more than 8 dimensions")
    return tuple(_size(value) for value in values)


def _rebuild_tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, _Storage):
        raise ValueError("has a tensor without a storage")
    sizes, steps = _sizes(shape), _sizes(strides)
    if len(sizes) != len(steps):
        raise ValueError(f"has a tensor with shape {sizes} and strides {steps}")
    return StoredTensor(storage.key, storage.element, storage.numel, _size(offset), sizes, steps)


_TENSOR_REDUCERS = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda arguments: arguments[0],
    "torch._utils._rebuild_parameter_with_state": lambda arguments: arguments[0],
}
