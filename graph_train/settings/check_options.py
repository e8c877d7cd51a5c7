"""Settings of `graph-check`: flags, defaults and help. Imports nothing heavy."""

import argparse
import math
from dataclasses import dataclass

from graph_train.settings.flag_table import (
    DATA_DOWNLOAD_HELP,
    SWITCH,
    check_flags,
    check_ranges,
    dashed,
    flag,
    parser_of,
    reject_empty,
)
from graph_train.settings.train_options import RANGES
from models.loss_config import LossConfig

_DESCRIPTION = (
    "Check a data set (counts, sizes, labels, every problem with file and line) or, with `env`, this machine. The data "
    "set is not modified. `graph-check convert` converts Pascal VOC or COCO annotations to YOLO; see its --help."
)


@dataclass(frozen=True)
class CheckOptions:
    """All settings of `graph-check`, validated on construction."""

    data: str = flag("", "dataset yaml, or `shapes` for the built-in set")
    imgsz: int = flag(640, "training size in px", kind=int, aliases=("--img", "--img-size"))
    cfg: str = flag("yolov5s.yaml", "model yaml with the anchors to compare with the boxes")
    anchor_t: float = flag(LossConfig.anchor_t, "anchor ratio threshold, the hyper-parameter anchor_t", kind=float)
    single_cls: bool = flag(False, "treat all classes as one", kind=SWITCH)
    allow_download: bool = flag(False, DATA_DOWNLOAD_HELP, kind=SWITCH)
    workers: int = flag(0, "image decoding threads; 0 uses one per core, up to 8", kind=int)
    json: str = flag("", "write the report to this JSON file")
    plots: str = flag("", "write label plots of each split to this folder")
    problems: str = flag("", "write the problems to this file, one per line")
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data: give a data set, or check this machine with `graph-check env`")
        check_flags(self)
        reject_empty(self, ("cfg",))
        check_ranges(self, {name: RANGES[name] for name in ("imgsz", "workers")})
        if not 1 < self.anchor_t < math.inf:
            raise ValueError(f"{dashed('anchor_t')} {self.anchor_t}: must be above 1, otherwise no box would match")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the namespace contains only the flags that were given."""
    parser = parser_of(
        CheckOptions,
        prog="graph-check",
        description=_DESCRIPTION,
        exit_codes="0 no errors, 1 errors found, 2 user error",
    )
    parser.add_argument("subject", nargs="?", choices=("data", "env"), default="data", help="what to check")
    return parser
