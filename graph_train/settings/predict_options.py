"""Settings of `graph-predict`: flags, defaults and help, as in YOLOv5's `detect.py`. Imports nothing heavy."""

import argparse
import os
from dataclasses import dataclass

from graph_train.settings.flag_table import (
    DOWNLOAD_HELP,
    KERNELS_HELP,
    NUMBERS,
    SWITCH,
    TEXTS,
    check_flags,
    check_ranges,
    dashed,
    flag,
    parser_of,
)
from graph_train.settings.val_options import NO_DNN, NO_HALF, NUMBER_RANGES, THRESHOLDS

_WEIGHTS_HELP = "trained weights (.safetensors, .pt, a OneFlow folder); several form an ensemble"
_SOURCE_HELP = (
    "images, videos, folders (searched recursively), globs such as 'photos/**/*.jpg', .txt lists of these, - for a "
    "list on standard input, http(s) URLs of images and videos, one camera (0, 1 ...) or stream (rtsp://...)"
)
MAX_LINE_PX, MAX_STRIDE = 1000, 1_000_000
_DRAWING = ("hide_labels", "hide_conf", "line_thickness")


@dataclass(frozen=True)
class DetectorOptions:
    """The settings of a detector: arguments of `graph_train.load(...)` and flags of `graph-predict`."""

    weights: tuple[str, ...] = flag((), _WEIGHTS_HELP, kind=TEXTS)
    data: str = flag("", "dataset yaml with the class names to use instead of those of the weights")
    imgsz: tuple[int, ...] = flag(
        (640,),
        "image size in px, one number or height and width (default: 640)",
        kind=NUMBERS,
        aliases=("--img", "--img-size"),
    )
    conf_thres: float = flag(0.25, "confidence threshold", kind=float)
    iou_thres: float = flag(0.45, "NMS IoU threshold", kind=float)
    max_det: int = flag(1000, "maximum detections per image", kind=int)
    classes: tuple[int, ...] | None = flag(None, "filter by class: --classes 0, or --classes 0 2 3", kind=NUMBERS)
    agnostic_nms: bool = flag(False, "class-agnostic NMS", kind=SWITCH)
    augment: bool = flag(False, "augmented inference: three scales, one of them flipped left-right", kind=SWITCH)
    batch_size: int = flag(8, "images per batch; images in a batch have the same shape", kind=int, aliases=("--batch",))
    device: str = flag("", "CUDA device such as 0, or cpu; '' uses the GPU if there is one")
    workers: int = flag(8, "threads for reading and writing images", kind=int)
    graph: bool | None = flag(
        None,
        "compile a graph for each image shape at its first batch (default: at its 17th, because a few batches take "
        "less time than compiling)",
        kind=SWITCH,
        off="--eager",
    )
    kernels: str = flag("auto", KERNELS_HELP, choices=("auto", "off", "require"))
    allow_download: bool = flag(False, DOWNLOAD_HELP, kind=SWITCH)

    def __post_init__(self) -> None:
        if not self.weights or not all(self.weights):
            raise ValueError("--weights: give trained weights, such as runs/train/exp/weights/best.safetensors")
        check_flags(self)
        check_ranges(self, NUMBER_RANGES, fractions=THRESHOLDS)
        if len(self.imgsz) not in (1, 2):
            raise ValueError(f"--imgsz {' '.join(map(str, self.imgsz))}: give one number, or height and width")
        if self.classes is not None and min(self.classes, default=-1) < 0:
            raise ValueError(f"--classes {' '.join(map(str, self.classes))}: classes count from 0")


@dataclass(frozen=True)
class PredictOptions(DetectorOptions):
    """All settings of `graph-predict`, validated on construction."""

    source: tuple[str, ...] = flag((), _SOURCE_HELP, kind=TEXTS)
    view_img: bool = flag(False, "show the annotated images on the screen", kind=SWITCH)
    save_txt: bool = flag(False, "save detections as label files", kind=SWITCH)
    save_conf: bool = flag(False, "add confidences to the label files", kind=SWITCH)
    save_json: bool = flag(False, "save all detections to predictions.json, in COCO results format", kind=SWITCH)
    save_csv: bool = flag(False, "save all detections to predictions.csv, one per row", kind=SWITCH)
    save_crop: bool = flag(False, "save a cropped image of each detection", kind=SWITCH)
    nosave: bool = flag(False, "do not save annotated images and videos", kind=SWITCH)
    visualize: bool = flag(False, "save the feature maps of each layer, as images and arrays", kind=SWITCH)
    update: bool = flag(False, "", kind=SWITCH, rejected="not supported, weights are never modified; remove it")
    project: str = flag("runs/detect", "save to project/name")
    name: str = flag("exp", "save to project/name")
    exist_ok: bool = flag(False, "reuse an existing project/name", kind=SWITCH)
    line_thickness: int = flag(3, "box line thickness in px", kind=int)
    hide_labels: bool = flag(False, "draw boxes without labels", kind=SWITCH)
    hide_conf: bool = flag(False, "draw labels without confidences", kind=SWITCH)
    half: bool = flag(False, "", kind=SWITCH, rejected=NO_HALF)
    dnn: bool = flag(False, "", kind=SWITCH, rejected=NO_DNN)
    vid_stride: int = flag(1, "process every n-th video frame", kind=int)
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.source) or not self.source:
            raise ValueError("--source: give images, a folder, a glob, a .txt list, or - for a list on standard input")
        check_ranges(self, {"line_thickness": (1, MAX_LINE_PX), "vid_stride": (1, MAX_STRIDE)})
        self._reject_inapplicable_flags()

    def _reject_inapplicable_flags(self) -> None:
        if self.save_conf and not self.save_txt:
            raise ValueError("--save-conf: requires --save-txt")
        if self.nosave and not self.view_img:
            for name in _DRAWING:
                if getattr(self, name) != getattr(PredictOptions, name):
                    raise ValueError(f"{dashed(name)}: has no effect with --nosave; remove one of them")
        if self.hide_labels and self.hide_conf:
            raise ValueError("--hide-conf: redundant with --hide-labels; remove one of them")
        if self.visualize and (self.augment or len(self.weights) > 1):
            raise ValueError(
                "--visualize: not supported with "
                + ("--augment; remove one of them" if self.augment else "an ensemble; give one weight file")
            )
        if self.view_img and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise ValueError("--view-img: no display available; open the images in the results folder instead")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the namespace contains only the flags that were given."""
    return parser_of(PredictOptions, prog="graph-predict", description="Detect objects in images and videos.")
