"""Checkpoints: one safetensors file with every array of the state and a JSON header with everything else.

Nothing in it is code, loading never unpickles, and a checksum over all arrays is verified.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from graph_train.files import write_atomically

FORMAT = "graph-train checkpoint"
FORMAT_VERSION = 1
_HEADER_KEY = "graph_train"


@dataclass(frozen=True)
class Checkpoint:
    """Arrays by name (`model/…`, `ema/…`, `first_moment/…`, …) and the header's values."""

    arrays: Mapping[str, np.ndarray]
    header: Mapping[str, Any]


def _contiguous(value: np.ndarray) -> np.ndarray:
    # np.ascontiguousarray would give a scalar one dimension.
    return np.array(value, order="C", copy=False)


def _digest(arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> str:
    """Of all arrays and of the header without the digest itself."""
    digest = hashlib.blake2b(digest_size=16)
    plain = {key: value for key, value in header.items() if key != "checksum"}
    digest.update(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(arrays):
        value = _contiguous(arrays[name])
        digest.update(f"{name}:{value.dtype.str}:{value.shape}".encode())
        digest.update(value.data if value.size else b"")
    return digest.hexdigest()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes atomically: the file of that name is the old one or the complete new one.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file stays.
    """
    arrays = {name: _contiguous(value) for name, value in checkpoint.arrays.items()}
    header = {"format": FORMAT, "version": FORMAT_VERSION, **checkpoint.header}
    header["checksum"] = _digest(arrays, header)
    write_atomically(path, save(arrays, metadata={_HEADER_KEY: json.dumps(header)}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a training checkpoint of this program.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if _HEADER_KEY not in metadata:
                raise ValueError(f"{path}: holds no training state; give it to --weights to start a new run from it")
            header = json.loads(metadata[_HEADER_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged checkpoint ({error}); use an older one") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}: not a checkpoint of graph-train (format {header.get('format')!r})")
    if header.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: written by another release (checkpoint format {header.get('version')!r}, this one reads "
            f"{FORMAT_VERSION}); use that release"
        )
    if header.get("checksum") != _digest(arrays, header):
        raise ValueError(f"{path}: damaged checkpoint (checksum differs); use an older one")
    return Checkpoint(arrays=arrays, header=header)
