import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.pytorch_file import PyTorchFile, StoredTensor
from models.pytorch_writer import Parameter, write_pytorch

ARRAYS: dict[str, np.ndarray] = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "float": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "swapped": np.arange(3, dtype=">f4"),
    "scalar": np.asarray(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "truth": np.asarray([True, False]),
}


def contents(path: Path) -> Any:
    file = PyTorchFile(path)
    try:
        return {name: file.array(tensor) for name, tensor in file.content.items() if isinstance(tensor, StoredTensor)}
    finally:
        file.close()


def test_arrays_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "arrays.pt"
    write_pytorch(path, {**ARRAYS, "parameter": Parameter(ARRAYS["float"]), "text": "x"})
    read = contents(path)
    assert read.keys() == ARRAYS.keys() | {"parameter"}
    for name, value in ARRAYS.items():
        assert read[name].shape == value.shape
        assert read[name].dtype == value.dtype.newbyteorder("=")
        np.testing.assert_array_equal(read[name], value)
    np.testing.assert_array_equal(read["parameter"], ARRAYS["float"])


def test_records_are_stored_uncompressed_and_aligned(tmp_path: Path) -> None:
    path = tmp_path / "arrays.pt"
    write_pytorch(path, ARRAYS)
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/version") == b"3\n"
        for entry in archive.infolist():
            lengths = np.frombuffer(raw[entry.header_offset + 26 : entry.header_offset + 30], "<u2")
            assert (entry.header_offset + 30 + int(lengths.sum())) % 64 == 0
            assert entry.compress_type == zipfile.ZIP_STORED


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        write_pytorch(tmp_path / name, {**ARRAYS, "set": {"b", "a"}})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_unsupported_dtype_raises_and_keeps_old_file(tmp_path: Path) -> None:
    path = tmp_path / "arrays.pt"
    path.write_bytes(b"old")
    for value in (np.asarray(["text"]), object()):
        with pytest.raises(TypeError):
            write_pytorch(path, {"x": value})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
