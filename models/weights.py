"""Loading and saving weights: Ultralytics `.pt`, `.safetensors` and OneFlow folders, transferred by name and shape.

Nothing in a file is executed; files with anything but plain weights are rejected.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from kernels.framework.global_rows import local_shard
from kernels.host.files import replacing
from kernels.host.paths import printable, why_missing
from kernels.runtime import flow
from models.network import DetectionModel
from models.oneflow_folder import is_oneflow_folder, is_oneflow_tensor, read_oneflow_folder, read_tensor, read_tensors
from models.pickle_reader import escaped
from models.pytorch_file import PyTorchFile, StoredTensor
from models.safetensors_file import checksum, write_safetensors
from models.saved_weights import FoundWeights, Part, as_float32, find_weights, plain_config, shown_names
from models.spec import CONFIG_KEYS

Array = npt.NDArray[Any]
Prefer = Literal["model", "ema"]
Format = Literal["pytorch", "safetensors", "oneflow"]

_CHECKSUM = "graph_train_checksum"
_TRAINING_HEADER = "graph_train"
"""Metadata key of our own training checkpoints; their arrays are `model/…`, `ema/…` and optimizer state."""
_MAX_STRIDE_PX = 1 << 20
_SHOWN = 8
"""Names of each category printed by a transfer report; its attributes have all."""


@dataclass(frozen=True)
class LoadedWeights:
    """The weights of one network, read from a file.

    Attributes:
        arrays: name in the state dictionary -> values; floating types are converted to float32.
        path, format: the file and its format.
        part: the part of the file used: "model", "ema", or a plain "state_dict".
        stored_dtypes: name -> type in the file, such as "float16".
        epoch: epoch of the checkpoint.
        class_names: class names of the training data.
        config: the network's yaml, for `load_model_spec`.
        stride: px per cell of each level.
        anchors_px: (levels, anchors, 2) in px.
        Each of the last five is None if the file does not contain it.
    """

    arrays: Mapping[str, Array]
    path: Path
    format: Format
    part: Part
    stored_dtypes: Mapping[str, str]
    epoch: int | None = None
    class_names: tuple[str, ...] | None = None
    config: Mapping[str, Any] | None = None
    stride: tuple[int, ...] | None = None

    @property
    def anchors_px(self) -> npt.NDArray[np.float32] | None:
        """Anchor sides in px, from the head's buffer and the strides."""
        found = [value for name, value in self.arrays.items() if name.endswith(".anchors") and value.ndim == 3]
        if len(found) != 1 or self.stride is None or len(self.stride) != len(found[0]):
            return None
        return found[0] * np.asarray(self.stride, np.float32).reshape(-1, 1, 1)


@dataclass(frozen=True)
class TransferReport:
    """Result of a weight transfer; `str()` gives a summary and a line for each category of skipped items."""

    path: Path
    transferred: tuple[str, ...]
    total: int
    missing: tuple[str, ...]
    """Items of the network that are missing in the file."""
    mismatched: tuple[str, ...]
    """Items whose shape differs, with both shapes."""
    excluded: tuple[str, ...]
    """Items excluded on request."""
    unused: tuple[str, ...] = field(default=())
    """Items of the file that the network does not have."""

    def __str__(self) -> str:
        lines = [f"Transferred {len(self.transferred)}/{self.total} items from {printable(self.path)}"]
        for title, names in (
            ("not in the file", self.missing),
            ("of another shape", self.mismatched),
            ("excluded", self.excluded),
            ("in the file only", self.unused),
        ):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"  {title} ({len(names)}): {', '.join(names[:_SHOWN])}{more}")
        return "\n".join(lines)


def load_weights(path: str | Path, *, prefer: Prefer = "model") -> LoadedWeights:
    """Load weights; the format is detected from the content, not from the name.

    Args:
        path: `.pt` of YOLOv5 (network pickled in half or single precision, or a state dictionary), `.safetensors`
            (also our training checkpoints), or a folder of `oneflow.save`.
        prefer: the network of a training checkpoint to load; the other one if it is missing. YOLOv5 starts training
            from "model" and validates "ema".

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of an unknown format, without weights, or with code.
    """
    path = Path(path)
    if path.is_dir():
        if not is_oneflow_folder(path):
            raise ValueError(f"{path}: a folder not written by oneflow.save; give a weight file")
        return _from_oneflow(path, prefer)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {why_missing(path, 'weight file')}")
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return _from_safetensors(path, prefer)
    return _from_pytorch(path, prefer)


def _from_pytorch(path: Path, prefer: Prefer) -> LoadedWeights:
    file = PyTorchFile(path)
    try:
        found = _find_weights(path, file.content, lambda value: isinstance(value, StoredTensor), prefer)
        arrays = {name: as_float32(file.array(tensor)) for name, tensor in found.tensors.items()}
        stride = file.array(found.stride) if isinstance(found.stride, StoredTensor) else None
        return LoadedWeights(
            arrays=arrays,
            path=path,
            format="pytorch",
            stored_dtypes={name: tensor.dtype_name for name, tensor in found.tensors.items()},
            stride=_strides(stride),
            **_common_fields(found),
        )
    finally:
        file.close()


def _from_oneflow(path: Path, prefer: Prefer) -> LoadedWeights:
    try:
        found = _find_weights(path, read_oneflow_folder(path), is_oneflow_tensor, prefer)
        raw = read_tensors(path, found.tensors)
        stride = read_tensor(path, found.stride) if is_oneflow_tensor(found.stride) else None
    except (OSError, MemoryError) as error:
        raise ValueError(f"{path}: damaged checkpoint folder ({escaped(error) or 'out of memory'})") from None
    return LoadedWeights(
        arrays={name: as_float32(value) for name, value in raw.items()},
        path=path,
        format="oneflow",
        stored_dtypes={name: value.dtype.name for name, value in raw.items()},
        stride=_strides(stride),
        **_common_fields(found),
    )


def _find_weights(path: Path, content: Any, is_tensor: Any, prefer: Prefer) -> FoundWeights:
    try:
        return find_weights(content, is_tensor, prefer)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _common_fields(weights: FoundWeights) -> dict[str, Any]:
    return {
        "part": weights.part,
        "epoch": weights.epoch,
        "class_names": weights.class_names,
        "config": plain_config(weights.config, CONFIG_KEYS),
    }


def _strides(values: Array | None) -> tuple[int, ...] | None:
    if values is None or values.ndim != 1 or not np.all((values >= 1) & (values <= _MAX_STRIDE_PX)):
        return None
    return tuple(int(value) for value in values)


def _from_safetensors(path: Path, prefer: Prefer) -> LoadedWeights:
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            names, part = _part_of(list(file.keys()), prefer)
            raw = {short: file.get_tensor(name) for name, short in names.items()}
            described = _metadata(metadata)
            valid = _has_valid_checksum(file, metadata, described)
    except (SafetensorError, TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        reason = escaped(error)
        raise ValueError(
            f"{path}: damaged, or of a type that NumPy does not support, such as bfloat16 ({reason})"
        ) from None
    if not raw:
        raise ValueError(f"{path}: contains no weights")
    if not valid:
        raise ValueError(f"{path}: damaged (checksum differs); use another copy")
    names_of_classes, config, epoch = (described.get(key) for key in ("class_names", "config", "epoch"))
    stride = described.get("stride")
    return LoadedWeights(
        arrays={name: as_float32(value) for name, value in raw.items()},
        path=path,
        format="safetensors",
        part=part,
        stored_dtypes={name: value.dtype.name for name, value in raw.items()},
        epoch=epoch if isinstance(epoch, int) else None,
        class_names=shown_names(names_of_classes) if isinstance(names_of_classes, list) else None,
        config=plain_config(config if isinstance(config, dict) else None, CONFIG_KEYS),
        stride=_strides(np.asarray(stride)) if _is_numbers(stride) else None,
    )


def _has_valid_checksum(file: Any, metadata: Mapping[str, str], described: Mapping[str, Any]) -> bool:
    """Return whether the checksum is valid or absent; only our own files have one."""
    if _TRAINING_HEADER in metadata:
        header = json.loads(metadata[_TRAINING_HEADER])
        if not isinstance(header, dict):
            return False
        absent, expected = "checksum" not in header, header.pop("checksum", None)
    else:
        header = dict(described)
        # An entry that is not JSON is absent from `described`.
        absent, expected = _CHECKSUM not in metadata, header.pop(_CHECKSUM, None)
    return absent or expected == checksum({name: file.get_tensor(name) for name in file.keys()}, header)  # noqa: SIM118


def _is_numbers(value: Any) -> bool:
    """Return whether a value is a list of numbers that fit into an array; JSON allows larger ones."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, (int, float)) and abs(item) <= _MAX_STRIDE_PX for item in value)
    )


def _part_of(keys: Sequence[str], prefer: Prefer) -> tuple[dict[str, str], Part]:
    """Return a mapping from names in the file to names in the network, and the part of the file used."""
    for part in (prefer, "ema" if prefer == "model" else "model"):
        names = {key: key.removeprefix(f"{part}/") for key in keys if key.startswith(f"{part}/")}
        if names:
            return names, part
    return {key: key for key in keys}, "state_dict"


def _metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Parse the JSON values of a safetensors header; values that are not JSON are skipped."""
    described: dict[str, Any] = {}
    for key, text in metadata.items():
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if key == _TRAINING_HEADER and isinstance(value, dict):
            described.update(value)
        else:
            described[key] = value
    return described


def transfer(model: DetectionModel, weights: LoadedWeights, *, exclude: Sequence[str] = ()) -> TransferReport:
    """Copy all items with matching name and shape into the network, in place; others keep their values.

    Args:
        model: the network.
        weights: from `load_weights`.
        exclude: substrings of names to skip, such as "anchor".

    Raises:
        ValueError: no item matches, so the file belongs to another network; or it has non-finite values.
    """
    transferred, missing, mismatched, excluded = [], [], [], []
    state = model.state_dict()
    with flow.no_grad():
        for name, tensor in state.items():
            value = weights.arrays.get(name)
            if any(part in name for part in exclude):
                excluded.append(name)
            elif value is None:
                missing.append(name)
            elif tuple(value.shape) != tuple(tensor.shape):
                mismatched.append(f"{name} ({_shape(value.shape)} in the file, {_shape(tensor.shape)} here)")
            elif value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ValueError(f"{weights.path}: {name} has non-finite values; use older weights")
            else:
                local_shard(tensor).copy_(flow.tensor(value, dtype=tensor.dtype, device=local_shard(tensor).device))
                transferred.append(name)
    if not transferred:
        raise ValueError(f"{weights.path}: none of its {len(weights.arrays)} items fits; it belongs to another network")
    unused = tuple(name for name in weights.arrays if name not in state)
    return TransferReport(
        path=weights.path,
        transferred=tuple(transferred),
        total=len(state),
        missing=tuple(missing),
        mismatched=tuple(mismatched),
        excluded=tuple(excluded),
        unused=unused,
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape) or "scalar"


@dataclass(frozen=True)
class WeightsCopy:
    """A copy of a network's weights, and the header of their file."""

    arrays: Mapping[str, Array]
    header: Mapping[str, Any]

    def write(self, path: str | Path) -> None:
        """Write a safetensors file with a checksum, atomically.

        Raises:
            OSError: it cannot be written; an existing file is kept.
        """
        path = Path(path)
        described = {**self.header, _CHECKSUM: checksum(self.arrays, self.header)}
        # Other frameworks expect the entry "format" as plain text.
        header = {"format": "pt", **{key: json.dumps(value) for key, value in described.items()}}
        with replacing(path) as temporary, temporary.open("wb") as file:
            write_safetensors(file, self.arrays, header)


def copy_weights(model: DetectionModel) -> WeightsCopy:
    """Copy the state dictionary of a network that is not fused; names and shapes match the reference.

    The header has class names, strides and configuration, so that the network can be rebuilt from the file alone.
    """
    header = {"class_names": list(model.names), "stride": list(model.stride), "config": dict(model.spec.config)}
    arrays = {name: np.array(local_shard(tensor).numpy(), order="C") for name, tensor in model.state_dict().items()}
    # As loaded from a file: tuples become lists.
    return WeightsCopy(arrays, json.loads(json.dumps(header)))


def save_weights(model: DetectionModel, path: str | Path) -> None:
    """Write the weights to a safetensors file, see `copy_weights` and `WeightsCopy.write`."""
    copy_weights(model).write(path)
