"""The settings of a check of a data set. Nothing heavy is imported here."""

import math
from dataclasses import dataclass

from graph_train.options import RANGES, check_range
from models.loss_config import LossConfig


@dataclass(frozen=True)
class CheckOptions:
    """What to check and where to write it; file and folder names are optional.

    Raises:
        ValueError: a number that cannot be used.
    """

    data: str
    imgsz: int = 640
    cfg: str = "yolov5s.yaml"
    anchor_t: float = LossConfig.anchor_t
    single_cls: bool = False
    allow_download: bool = False
    workers: int = 0
    json: str | None = None
    plots: str | None = None
    problems: str | None = None

    def __post_init__(self) -> None:
        check_range("imgsz", self.imgsz, *RANGES["imgsz"])
        check_range("workers", self.workers, *RANGES["workers"])
        if not 1 < self.anchor_t < math.inf:
            raise ValueError(f"--anchor-t {self.anchor_t}: must be above 1, or no box would match")
