"""Checkpoints: one safetensors file with every array of the state and a JSON header with everything else.

Nothing in it is code, loading never unpickles, and a checksum over all arrays is verified.
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
"""How the names of the gradients begin that are still being summed up."""


@dataclass(frozen=True)
class Checkpoint:
    """Arrays by name (`model/…`, `ema/…`, `first_moment/…`, …) and the header's values."""

    arrays: Mapping[str, np.ndarray]
    header: Mapping[str, Any]

    def first_not_finite(self) -> str:
        """Return the name of the first weight, average or moment with a NaN or an infinity; "" where all are sound.

        Gradients that no update has used yet do not count: the update that meets such a one is left out.
        """
        for name, value in self.arrays.items():
            if not name.startswith(PENDING_GRADIENTS) and value.dtype.kind == "f" and not np.isfinite(value).all():
                return name
        return ""


class _NoStateError(ValueError):
    """A sound file of another kind."""


def _header(text: str) -> dict[str, Any]:
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__}")
    return header


def _digest(arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> str:
    """Return the digest of all arrays and of the header without the digest itself."""
    return checksum(arrays, {key: value for key, value in header.items() if key != "checksum"})


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, keep: int = 0) -> None:
    """Write atomically: the file of that name is the old one or the complete new one; equal states give equal bytes.

    Args:
        keep: how many generations stay, see `files.replacing`.
    Raises:
        OSError: the disk is full or the folder cannot be written; the old files stay.
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
        ValueError: it is damaged, or not a training checkpoint of this program.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if _HEADER_KEY not in metadata:
                raise _NoStateError(f"{path}: holds no training state; give it to --weights to start a new run from it")
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
            f"{path}: written by another release (checkpoint format {header.get('version')!r:.60}, this one reads "
            f"{FORMAT_VERSION}); use that release"
        )
    if header.get("checksum") != _digest(arrays, header):
        raise ValueError(f"{path}: damaged checkpoint (checksum differs); use an older one")
    return Checkpoint(arrays=arrays, header=header)
