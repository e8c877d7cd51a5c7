"""Settings of `graph-val`: flags, defaults and help, as in YOLOv5's `val.py`. Imports nothing heavy."""

import argparse
from dataclasses import dataclass

from graph_train.settings.flag_table import (
    DATA_DOWNLOAD_HELP,
    DOWNLOAD_HELP,
    KERNELS_HELP,
    SWITCH,
    TEXTS,
    check_flags,
    check_ranges,
    dashed,
    flag,
    parser_of,
    reject_changed,
    reject_empty,
)
from graph_train.settings.train_options import MAX_BATCH, RANGES

SPLIT_TASKS = ("val", "test", "train")
TASKS = (*SPLIT_TASKS, "speed", "study")
MAX_DETECTIONS = 1 << 20
THRESHOLDS = ("conf_thres", "iou_thres")
NUMBER_RANGES = {
    "imgsz": RANGES["imgsz"],
    "workers": RANGES["workers"],
    "batch_size": (1, MAX_BATCH),
    "max_det": (1, MAX_DETECTIONS),
}
"""Allowed ranges of the integers common to validation, prediction and export."""
NO_HALF = "not supported, this command computes in float32; remove it"
NO_DNN = "OpenCV DNN supports ONNX models only; remove it"
_WEIGHTS_HELP = (
    "trained weights (.safetensors, .pt, a OneFlow folder); several form an ensemble, except that the tasks speed and "
    "study measure them one by one"
)


@dataclass(frozen=True)
class ValOptions:
    """All settings of `graph-val`, validated on construction."""

    weights: tuple[str, ...] = flag((), _WEIGHTS_HELP, kind=TEXTS)
    data: str = flag("shapes", "dataset yaml, or `shapes` for the built-in set")
    imgsz: int = flag(640, "image size in px", kind=int, aliases=("--img", "--img-size"))
    batch_size: int = flag(32, "images per batch", kind=int, aliases=("--batch",))
    conf_thres: float = flag(0.001, "confidence threshold", kind=float)
    iou_thres: float = flag(0.6, "NMS IoU threshold", kind=float)
    max_det: int = flag(300, "maximum detections per image", kind=int)
    task: str = flag(
        "val",
        "split to validate; or speed (conf 0.25, IoU 0.45, square images), or study (image sizes 256 to 1536)",
        choices=TASKS,
    )
    device: str = flag("", "CUDA device such as 0, or cpu; '' uses the GPU if there is one")
    workers: int = flag(8, "data loading threads", kind=int)
    allow_download: bool = flag(False, f"{DOWNLOAD_HELP}; and {DATA_DOWNLOAD_HELP}", kind=SWITCH)
    single_cls: bool = flag(False, "treat all classes as one", kind=SWITCH)
    augment: bool = flag(False, "augmented inference: three scales, one of them flipped left-right", kind=SWITCH)
    verbose: bool = flag(False, "print results per class even for 50 or more classes", kind=SWITCH)
    save_txt: bool = flag(False, "save detections as label files", kind=SWITCH)
    save_hybrid: bool = flag(False, "save labels and detections together as label files", kind=SWITCH)
    save_conf: bool = flag(False, "add confidences to the label files", kind=SWITCH)
    save_json: bool = flag(
        False, "save a COCO results file, evaluated if there are COCO annotations; always on with COCO", kind=SWITCH
    )
    project: str = flag("runs/val", "save to project/name")
    name: str = flag("exp", "save to project/name")
    exist_ok: bool = flag(False, "reuse an existing project/name", kind=SWITCH)
    half: bool = flag(False, "", kind=SWITCH, rejected=NO_HALF)
    dnn: bool = flag(False, "", kind=SWITCH, rejected=NO_DNN)
    graph: bool = flag(True, "run the network as compiled graphs (default)", kind=SWITCH, off="--eager")
    kernels: str = flag("auto", KERNELS_HELP, choices=("auto", "off", "require"))
    noplots: bool = flag(False, "do not save plots", kind=SWITCH)
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)

    def __post_init__(self) -> None:
        self._reject_inapplicable_flags()
        check_flags(self)
        reject_empty(self, ("data",))
        check_ranges(self, NUMBER_RANGES, fractions=THRESHOLDS)

    @property
    def may_save_json(self) -> bool:
        """Whether a COCO results file makes sense: detections are saved, and contain no labels."""
        return self.task in SPLIT_TASKS and not self.save_hybrid

    def _reject_inapplicable_flags(self) -> None:
        if not self.weights or not all(self.weights):
            raise ValueError("--weights: give trained weights, such as runs/train/exp/weights/best.safetensors")
        if self.save_conf and not (self.save_txt or self.save_hybrid):
            raise ValueError("--save-conf: requires --save-txt or --save-hybrid")
        if self.save_hybrid and self.save_json:
            raise ValueError("--save-hybrid: adds labels to the detections and so invalidates --save-json; remove one")
        if self.task not in SPLIT_TASKS:
            for name in ("save_txt", "save_hybrid", "save_json"):
                if getattr(self, name):
                    raise ValueError(f"{dashed(name)}: --task {self.task} saves no detections; use --task val")
        if self.task == "speed":
            reject_changed(self, THRESHOLDS, "--task speed always uses 0.25 and 0.45; remove it, or use --task val")
        if self.task == "study":
            reject_changed(self, ("imgsz",), "--task study uses its own image sizes; remove it")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the namespace contains only the flags that were given."""
    return parser_of(ValOptions, prog="graph-val", description="Validate trained weights on a data set.")
