"""Hyper-parameters in the format of YOLOv5's `hyp` files, validated and frozen.

Keys missing from a file take the values of `hyp.scratch-low.yaml`, with a warning.
"""

import difflib
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kernels.host.files import write_atomically
from kernels.host.paths import printable, why_missing
from kernels.host.safe_yaml import load_yaml
from models.loss_config import LossConfig
from pipelines.augmentation.augment_config import AugmentConfig, upper_bound

_LOG = logging.getLogger(__name__)
_SHIPPED_FOLDER = Path(__file__).parent / "hyp"


class _Range(NamedTuple):
    """Allowed range of a hyper-parameter; an open end excludes its bound."""

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
"""Hyper-parameters of the augmentation; `AugmentConfig` has the same names."""

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
    # With a ratio of 1 or less, no box would match.
    "anchor_t": _Range(1, math.inf, open_low=True),
    "anchors": _NOT_NEGATIVE,
    "fl_gamma": _NOT_NEGATIVE,
    **{name: _Range(0, upper_bound(name)) for name in AUGMENTATIONS},
}


@dataclass(frozen=True)
class Hyperparameters:
    """Training hyper-parameters, named and ordered as in YOLOv5; the defaults are those of `hyp.scratch-low.yaml`.

    `LossConfig` and `AugmentConfig` define the defaults of the loss and the augmentation.

    Raises:
        ValueError: a value is not a finite number or is out of range.
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
    """Unused, as in YOLOv5, but present in its files."""
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
        """`anchors` rounded half to even, as in YOLOv5; None if absent or 0, so that the model's anchors are used."""
        return round(self.anchors) if self.anchors else None

    def as_dict(self) -> dict[str, float]:
        """Return the values by name in file order; `anchors` only if it is set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def save(self, path: Path) -> None:
        """Write a yaml file that `load_hyperparameters` and YOLOv5 can read."""
        write_atomically(path, yaml.safe_dump(self.as_dict(), sort_keys=False))


KNOWN_KEYS: tuple[str, ...] = tuple(part.name for part in fields(Hyperparameters))
"""All keys of a hyper-parameter file, in file order."""


def shipped_names() -> list[str]:
    """Return the names of the hyper-parameter files in the package."""
    return sorted(path.name for path in _SHIPPED_FOLDER.glob("*.yaml"))


def load_hyperparameters(path_or_name: str | Path) -> Hyperparameters:
    """Load a hyper-parameter file in YOLOv5's format, by its path or by the name of a shipped file.

    Args:
        path_or_name: an existing file, which takes precedence, or a shipped name such as `hyp.scratch-low.yaml`, also
            with leading folders or without `.yaml`.

    Raises:
        FileNotFoundError: there is neither such a file nor such a shipped name.
        ValueError: invalid yaml, an unknown or duplicate key, or an invalid value; names file, line and remedy.
    """
    path = _resolve(path_or_name)
    values: dict[str, float | None] = {}
    file = load_yaml(path)
    for key, value in file.data.items():
        where = file.line(key)
        _reject_unknown(where, str(key))
        if key == "anchors" and value is None:
            continue
        problem = _problem(key, value)
        if problem:
            raise ValueError(f"{where}: {problem}")
        values[key] = float(value)
    if values.get("iou_t", Hyperparameters.iou_t) != Hyperparameters.iou_t:
        _LOG.warning(
            "%s: iou_t=%g has no effect, as in YOLOv5; labels are matched by anchor_t",
            file.line("iou_t"),
            values["iou_t"],
        )
    missing = [name for name in KNOWN_KEYS if name not in values and name != "anchors"]
    if missing:
        _LOG.warning("%s: missing %s; using the values of hyp.scratch-low.yaml", printable(path), ", ".join(missing))
    return Hyperparameters(**values)  # type: ignore[arg-type] # only `anchors` may be None, and it was skipped


def _resolve(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    for name in (path.name, f"{path.name}.yaml"):
        if name in shipped_names():
            return _SHIPPED_FOLDER / name
    raise FileNotFoundError(
        f"hyper-parameters {str(path_or_name)!r}: {why_missing(path, 'file')}; give a path or one of "
        f"{', '.join(shipped_names())}"
    )


def _reject_unknown(where: str, key: str) -> None:
    if key in KNOWN_KEYS:
        return
    if key == "label_smoothing":
        raise ValueError(f"{where}: 'label_smoothing' is not a hyper-parameter; use the flag --label-smoothing")
    close = difflib.get_close_matches(key, KNOWN_KEYS, n=1, cutoff=0.5)
    remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(KNOWN_KEYS)}"
    raise ValueError(f"{where}: unknown hyper-parameter {key!r}; {remedy}")


def _problem(name: str, value: Any) -> str | None:
    """Return the problem with a value and the remedy; None if it is valid."""
    allowed = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        exponent = isinstance(value, str) and "e" in value.lower()
        hint = " (yaml reads 1e-4 as a string, 1.0e-4 as a number)" if exponent else ""
        return f"{name}={value!r:.60} is not a number; write a number {allowed}{hint}"
    if not abs(value) <= sys.float_info.max:  # JSON has integers of any size, which no float can hold
        return f"{name}={value!r:.20} is not finite; write a number {allowed}"
    if not allowed.holds(value):
        return f"{name}={value:g} is out of range; it must be {allowed}"
    return None
