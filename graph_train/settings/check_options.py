"""The settings of a check of a data set: flags, defaults and help. Nothing heavy is imported here."""

import argparse
import math
from dataclasses import dataclass
from typing import Any

from graph_train.settings.flag_table import (
    DATA_DOWNLOAD_HELP,
    SWITCH,
    check_flags,
    check_ranges,
    dashed,
    flag,
    options_of,
    parser_of,
)
from graph_train.settings.train_options import RANGES
from models.loss_config import LossConfig

_ABOUT = (
    "Reports on a data set (counts, sizes, labels, every problem with file and line), or with `env` on this machine. "
    "Reads only. `graph-check convert` makes a YOLO data set of Pascal VOC or COCO annotations; see its --help."
)


@dataclass(frozen=True)
class CheckOptions:
    """All settings of `graph-check`; a value that no check can use is refused when the object is made."""

    data: str = flag("", "dataset yaml, or `shapes` for the built-in set")
    imgsz: int = flag(640, "training size in px", kind=int, aliases=("--img", "--img-size"))
    cfg: str = flag("yolov5s.yaml", "model yaml whose anchors are compared with the boxes")
    anchor_t: float = flag(LossConfig.anchor_t, "hyper-parameter anchor_t", kind=float)
    single_cls: bool = flag(False, "count all classes as one", kind=SWITCH)
    allow_download: bool = flag(False, DATA_DOWNLOAD_HELP, kind=SWITCH)
    workers: int = flag(0, "threads that decode images, 0 for one per core, at most 8", kind=int)
    json: str = flag("", "file for the report as JSON")
    plots: str = flag("", "folder for plots of the labels of each split")
    problems: str = flag("", "file for the problems, one in a line")
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data: name the data set, or ask about this machine with `graph-check env`")
        check_flags(self)
        check_ranges(self, {name: RANGES[name] for name in ("imgsz", "workers")})
        if not 1 < self.anchor_t < math.inf:
            raise ValueError(f"{dashed('anchor_t')} {self.anchor_t}: must be above 1, or no box would match")


def check_options(**flags: Any) -> CheckOptions:
    """Return the options from flag names with underscores.

    Raises:
        ValueError: a name that is no flag (with the nearest match), or a value that cannot be used.
    """
    return options_of(CheckOptions, flags)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; flags that are not given are left out of the namespace."""
    parser = parser_of(
        CheckOptions, prog="graph-check", description=_ABOUT, exit_codes="0 no errors, 1 errors found, 2 user error"
    )
    parser.add_argument("subject", nargs="?", choices=("data", "env"), default="data", help="what to check")
    return parser
