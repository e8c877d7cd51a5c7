"""The settings of a validation run: flags, defaults and help. Names and defaults are those of YOLOv5's `val.py`.

Nothing heavy is imported here: `--help` and argument errors answer at once.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from graph_train.settings.flag_table import (
    DATA_DOWNLOAD_HELP,
    DOWNLOAD_HELP,
    SWITCH,
    TEXTS,
    check_flags,
    check_ranges,
    dashed,
    flag,
    options_of,
    parser_of,
    refuse_changed,
)
from graph_train.settings.train_options import MAX_BATCH, RANGES

TASKS = ("val", "test", "train", "speed", "study")
MAX_DETECTIONS = 1 << 20
THRESHOLDS = ("conf_thres", "iou_thres")
NUMBER_RANGES = {
    "imgsz": RANGES["imgsz"],
    "workers": RANGES["workers"],
    "batch_size": (1, MAX_BATCH),
    "max_det": (1, MAX_DETECTIONS),
}
"""Lowest and highest value of the whole numbers that validation, prediction and export share."""
NO_HALF = "this command computes in float32; leave it out"
NO_DNN = "OpenCV DNN runs ONNX files only, this command runs weights; leave it out"
_WEIGHTS_HELP = (
    "trained weights (.safetensors, .pt, a OneFlow folder); several are joined to an ensemble, but measured one by one "
    "by the tasks speed and study"
)


@dataclass(frozen=True)
class ValOptions:
    """All settings of `graph-val`; a value that no run can use is refused when the object is made."""

    weights: tuple[str, ...] = flag((), _WEIGHTS_HELP, kind=TEXTS)
    data: str = flag("shapes", "dataset yaml, or `shapes` for the built-in set")
    imgsz: int = flag(640, "image size in px", kind=int, aliases=("--img", "--img-size"))
    batch_size: int = flag(32, "images per batch", kind=int, aliases=("--batch",))
    conf_thres: float = flag(0.001, "detections need a confidence above this", kind=float)
    iou_thres: float = flag(0.6, "a box is suppressed when it overlaps a better one by more than this", kind=float)
    max_det: int = flag(300, "most detections per image", kind=int)
    task: str = flag(
        "val",
        "split to measure; or speed (conf 0.25, IoU 0.45, square images), or study (image sizes 256 to 1536)",
        choices=TASKS,
    )
    device: str = flag("", "cuda device, i.e. 0, or cpu; '' takes the GPU where there is one")
    workers: int = flag(8, "data loading threads", kind=int)
    allow_download: bool = flag(False, f"{DOWNLOAD_HELP}; and {DATA_DOWNLOAD_HELP}", kind=SWITCH)
    single_cls: bool = flag(False, "count all classes as one", kind=SWITCH)
    augment: bool = flag(False, "augmented inference: three scales, one of them flipped", kind=SWITCH)
    verbose: bool = flag(False, "table of all classes, also where there are 50 or more", kind=SWITCH)
    save_txt: bool = flag(False, "write detections as label files", kind=SWITCH)
    save_hybrid: bool = flag(False, "write labels and detections together as label files", kind=SWITCH)
    save_conf: bool = flag(False, "add the confidence to label files", kind=SWITCH)
    save_json: bool = flag(False, "write a COCO result file, evaluate it if there are annotations", kind=SWITCH)
    project: str = flag("runs/val", "save to project/name")
    name: str = flag("exp", "save to project/name")
    exist_ok: bool = flag(False, "an existing project/name is used again", kind=SWITCH)
    half: bool = flag(False, "", kind=SWITCH, refused=NO_HALF)
    dnn: bool = flag(False, "", kind=SWITCH, refused=NO_DNN)
    graph: bool = flag(True, "run the network as compiled graphs (default)", kind=SWITCH, off="--eager")
    kernels: str = flag("auto", "our kernel plugin", choices=("auto", "off", "require"))
    noplots: bool = flag(False, "write no plots", kind=SWITCH)
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)

    def __post_init__(self) -> None:
        self._refuse_inapplicable_flags()
        check_flags(self)
        check_ranges(self, NUMBER_RANGES, shares=THRESHOLDS)

    def _refuse_inapplicable_flags(self) -> None:
        if not self.weights:
            raise ValueError("--weights: name the weights to measure, such as runs/train/exp/weights/best.safetensors")
        if self.save_conf and not (self.save_txt or self.save_hybrid):
            raise ValueError("--save-conf: adds to label files; give --save-txt or --save-hybrid too")
        if self.save_hybrid and self.save_json:
            raise ValueError(
                "--save-hybrid: puts the labels among the detections, a COCO result would be meaningless; "
                "leave out --save-json"
            )
        if self.task in ("speed", "study"):
            for name in ("save_txt", "save_hybrid", "save_json"):
                if getattr(self, name):
                    raise ValueError(f"{dashed(name)}: --task {self.task} writes no detections; use --task val")
        if self.task == "speed":
            refuse_changed(self, THRESHOLDS, "--task speed measures at 0.25 and 0.45; leave it out, or use --task val")
        if self.task == "study":
            refuse_changed(self, ("imgsz",), "--task study measures at sizes of its own; leave it out")


def val_options(**flags: Any) -> ValOptions:
    """Return the options from flag names with underscores, as `validate(...)` takes them; `weights` may be one path.

    Raises:
        ValueError: a name that is no flag (with the nearest match), or a value that cannot be used.
    """
    return options_of(ValOptions, flags)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; flags that are not given are left out of the namespace."""
    return parser_of(ValOptions, prog="graph-val", description="Measures trained weights on a data set.")
