"""Checkpoints: a safetensors file with all arrays of the state, and everything else in a JSON header.

Loading executes no code, and a checksum over the whole content is verified.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from kernels.host.files import replacing
from models.safetensors_file import checksum, in_order, write_safetensors

FORMAT = "graph-train checkpoint"
FORMAT_VERSION = 1
_HEADER_KEY = "graph_train"
PENDING_GRADIENTS = "gradient_sum/"
"""Name prefix of accumulated gradients."""
_SECOND_MOMENT, _VARIANCE = "second_moment/", ".running_var"
"""Name prefix and ending of arrays of which square roots are taken."""


@dataclass(frozen=True)
class Checkpoint:
    """Arrays by name (`model/…`, `ema/…`, `first_moment/…`, …) and the header."""

    arrays: Mapping[str, np.ndarray]
    header: Mapping[str, Any]

    def first_not_finite(self) -> str:
        """Return the name of the first weight, average or moment that is not finite; "" if all are finite.

        Accumulated gradients are not checked, because an update with a non-finite gradient is skipped.
        """
        for name, value in self.arrays.items():
            if not name.startswith(PENDING_GRADIENTS) and value.dtype.kind == "f" and not np.isfinite(value).all():
                return name
        return ""

    def first_negative(self) -> str:
        """Return the name of the first variance or second moment with a negative value; "" if there is none."""
        for name, value in self.arrays.items():
            if (name.startswith(_SECOND_MOMENT) or name.endswith(_VARIANCE)) and (value < 0).any():
                return name
        return ""


class _NoStateError(ValueError):
    """The file is valid, but not a checkpoint."""


def _header(text: str) -> dict[str, Any]:
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError(f"header is a {type(header).__name__}")
    return header


def _digest(arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> str:
    """Return the checksum of the arrays and of the header, excluding the checksum entry itself."""
    return checksum(arrays, {key: value for key, value in header.items() if key != "checksum"})


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, keep: int = 0) -> None:
    """Write a checkpoint atomically; equal states give equal files.

    Args:
        keep: number of generations to keep, see `files.replacing`.
    Raises:
        OSError: the file cannot be written; the old files are kept.
    """
    arrays = {name: in_order(value) for name, value in checkpoint.arrays.items()}
    header = {"format": FORMAT, "version": FORMAT_VERSION, **checkpoint.header}
    header["checksum"] = _digest(arrays, header)
    with replacing(path, keep=keep) as temporary, temporary.open("wb") as file:
        write_safetensors(file, arrays, {_HEADER_KEY: json.dumps(header)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not a training checkpoint of graph-train.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if _HEADER_KEY not in metadata:
                raise _NoStateError(f"{path}: contains no training state; use --weights to start a new run from it")
            header = _header(metadata[_HEADER_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except _NoStateError:
        raise
    except (SafetensorError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged checkpoint ({reason}); use an older one") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}: not a checkpoint of graph-train (format {header.get('format')!r:.60})")
    if header.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: checkpoint format {header.get('version')!r:.60} is not supported (expected {FORMAT_VERSION}); "
            "use the release that wrote it"
        )
    if header.get("checksum") != _digest(arrays, header):
        raise ValueError(f"{path}: damaged checkpoint (checksum differs); use an older one")
    checkpoint = Checkpoint(arrays=arrays, header=header)
    if bad := checkpoint.first_not_finite():
        raise ValueError(f"{path}: damaged checkpoint ({bad} is not finite); use an older one")
    if bad := checkpoint.first_negative():
        raise ValueError(f"{path}: damaged checkpoint ({bad} is negative); use an older one")
    return checkpoint
