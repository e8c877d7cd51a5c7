"""The numbers of a YOLOv5 `hyp` file as one frozen, checked value; the file format stays the reference's.

A file may leave keys out: they take the values of `hyp.scratch-low.yaml`, and the log says which ones did.
"""

import difflib
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kernels.host.files import write_atomically
from kernels.host.paths import missing
from kernels.host.safe_yaml import load_yaml
from models.loss_config import LossConfig
from pipelines.augmentation.augment_config import AugmentConfig, largest

_LOG = logging.getLogger(__name__)
_SHIPPED_FOLDER = Path(__file__).parent / "hyp"


class _Range(NamedTuple):
    """Values a hyper-parameter may take; an open end excludes its bound."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'>' if self.open_low else '>='} {self.low:g}"
        return low if self.high == math.inf else f"{low} and {'<' if self.open_high else '<='} {self.high:g}"


_POSITIVE = _Range(0, math.inf, open_low=True)
_NOT_NEGATIVE = _Range(0, math.inf)
_FRACTION = _Range(0, 1)
_BELOW_ONE = _Range(0, 1, open_high=True)

AUGMENTATIONS: tuple[str, ...] = tuple(
    "hsv_h hsv_s hsv_v degrees translate scale shear perspective flipud fliplr mosaic mixup copy_paste".split()
)
"""What is said to the data pipeline, under the names that it has there, too."""

_RANGES: Mapping[str, _Range] = {
    "lr0": _POSITIVE,
    "lrf": _NOT_NEGATIVE,
    "momentum": _BELOW_ONE,
    "weight_decay": _NOT_NEGATIVE,
    "warmup_epochs": _NOT_NEGATIVE,
    "warmup_momentum": _BELOW_ONE,
    "warmup_bias_lr": _NOT_NEGATIVE,
    "box": _NOT_NEGATIVE,
    "cls": _NOT_NEGATIVE,
    "cls_pw": _POSITIVE,
    "obj": _NOT_NEGATIVE,
    "obj_pw": _POSITIVE,
    "iou_t": _FRACTION,
    # A ratio of 1 or less would match no box at all.
    "anchor_t": _Range(1, math.inf, open_low=True),
    "anchors": _NOT_NEGATIVE,
    "fl_gamma": _NOT_NEGATIVE,
    **{name: _Range(0, largest(name)) for name in AUGMENTATIONS},
}


@dataclass(frozen=True)
class Hyperparameters:
    """One training's hyper-parameters under YOLOv5's names, in its file order; defaults are `hyp.scratch-low.yaml`.

    Those of the loss and of the augmentation belong to `LossConfig` and `AugmentConfig`.

    Raises:
        ValueError: a value is not a finite number or lies outside its range.
    """

    lr0: float = 0.01
    lrf: float = 0.01
    momentum: float = 0.937
    weight_decay: float = 0.0005
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    box: float = LossConfig.box
    cls: float = LossConfig.classes
    cls_pw: float = LossConfig.cls_pw
    obj: float = LossConfig.objectness
    obj_pw: float = LossConfig.obj_pw
    iou_t: float = 0.2
    """Nothing reads it, neither here nor in YOLOv5, whose files have it."""
    anchor_t: float = LossConfig.anchor_t
    anchors: float | None = None
    fl_gamma: float = LossConfig.fl_gamma
    hsv_h: float = AugmentConfig.hsv_h
    hsv_s: float = AugmentConfig.hsv_s
    hsv_v: float = AugmentConfig.hsv_v
    degrees: float = AugmentConfig.degrees
    translate: float = AugmentConfig.translate
    scale: float = AugmentConfig.scale
    shear: float = AugmentConfig.shear
    perspective: float = AugmentConfig.perspective
    flipud: float = AugmentConfig.flipud
    fliplr: float = AugmentConfig.fliplr
    mosaic: float = AugmentConfig.mosaic
    mixup: float = AugmentConfig.mixup
    copy_paste: float = AugmentConfig.copy_paste

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            if part.name == "anchors" and value is None:
                continue
            problem = _problem(part.name, value)
            if problem:
                raise ValueError(problem)

    @property
    def anchors_per_level(self) -> int | None:
        """`anchors` as YOLOv5 applies it: rounded half to even; None where absent or 0 (the model keeps its own)."""
        return round(self.anchors) if self.anchors else None

    def as_dict(self) -> dict[str, float]:
        """Return the values by name in file order, without `anchors` where it is not set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def save(self, path: Path) -> None:
        """Write a yaml file that `load_hyperparameters` and YOLOv5 itself read back unchanged."""
        write_atomically(path, yaml.safe_dump(self.as_dict(), sort_keys=False))


KNOWN_KEYS: tuple[str, ...] = tuple(part.name for part in fields(Hyperparameters))
"""Every key a hyper-parameter file may hold, in file order."""


def shipped_names() -> list[str]:
    """Return the file names of the sets that come with the package."""
    return sorted(path.name for path in _SHIPPED_FOLDER.glob("*.yaml"))


def load_hyperparameters(path_or_name: str | Path) -> Hyperparameters:
    """Read a hyper-parameter file in YOLOv5's format, by path or by the name of a shipped one.

    Args:
        path_or_name: an existing file, or e.g. `hyp.scratch-low.yaml` (also `data/hyps/hyp.scratch-low.yaml`, and
            without `.yaml`); an existing file wins over a shipped one.

    Raises:
        FileNotFoundError: neither a file nor a shipped name.
        ValueError: broken yaml, an unknown or repeated key, a value that is no number or out of range; one line that
            names file, line, key, value and remedy.
    """
    path = _resolve(path_or_name)
    values: dict[str, float | None] = {}
    file = load_yaml(path)
    for key, value in file.data.items():
        where = file.line(key)
        _refuse_unknown(where, str(key))
        if key == "anchors" and value is None:
            continue
        problem = _problem(key, value)
        if problem:
            raise ValueError(f"{where}: {problem}")
        values[key] = float(value)
    if values.get("iou_t", Hyperparameters.iou_t) != Hyperparameters.iou_t:
        _LOG.warning(
            "%s: iou_t=%g has no effect, as in YOLOv5: labels are matched by anchor_t",
            file.line("iou_t"),
            values["iou_t"],
        )
    missing = [name for name in KNOWN_KEYS if name not in values and name != "anchors"]
    if missing:
        _LOG.warning("%s leaves out %s: using the values of hyp.scratch-low.yaml", path, ", ".join(missing))
    return Hyperparameters(**values)  # type: ignore[arg-type] # only `anchors` may be None, and it was skipped


def _resolve(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    for name in (path.name, f"{path.name}.yaml"):
        if name in shipped_names():
            return _SHIPPED_FOLDER / name
    raise FileNotFoundError(
        f"hyper-parameters {str(path_or_name)!r}: {missing(path, 'file')}; give a path or one of "
        f"{', '.join(shipped_names())}"
    )


def _refuse_unknown(where: str, key: str) -> None:
    if key in KNOWN_KEYS:
        return
    if key == "label_smoothing":
        raise ValueError(f"{where}: 'label_smoothing' is no hyper-parameter file key; use the flag --label-smoothing")
    close = difflib.get_close_matches(key, KNOWN_KEYS, n=1, cutoff=0.5)
    remedy = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(KNOWN_KEYS)}"
    raise ValueError(f"{where}: unknown hyper-parameter {key!r}; {remedy}")


def _problem(name: str, value: Any) -> str | None:
    """Return what is wrong with a value and the remedy; None when it is fine."""
    allowed = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = " (yaml takes 1e-4 for text, 1.0e-4 for a number)" if isinstance(value, str) else ""
        return f"{name}={value!r:.60} is not a number; write a number {allowed}{hint}"
    if not math.isfinite(value):
        return f"{name}={value} is not finite; write a number {allowed}"
    if not allowed.holds(value):
        return f"{name}={value:g} is out of range; it must be {allowed}"
    return None
