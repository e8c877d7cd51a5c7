"""The settings of a prediction: flags, defaults and help. Names and defaults are those of YOLOv5's `detect.py`.

Nothing heavy is imported here: `--help` and argument errors answer at once.
"""

import argparse
import os
from dataclasses import dataclass
from typing import Any

from graph_train.settings.flag_table import (
    DOWNLOAD_HELP,
    NUMBERS,
    SWITCH,
    TEXTS,
    check_flags,
    check_ranges,
    dashed,
    flag,
    options_of,
    parser_of,
)
from graph_train.settings.val_options import NO_DNN, NO_HALF, NUMBER_RANGES, THRESHOLDS

_WEIGHTS_HELP = "trained weights (.safetensors, .pt, a OneFlow folder); several are joined to an ensemble"
_SOURCE_HELP = (
    "images, videos, folders (with those below), globs such as 'photos/**/*.jpg', .txt lists of them, or - for a list "
    "on standard input"
)
MAX_LINE_PX, MAX_STRIDE = 1000, 1_000_000
_DRAWING = ("hide_labels", "hide_conf", "line_thickness")


@dataclass(frozen=True)
class DetectorOptions:
    """The settings of a detector, as `graph_train.load(...)` takes them and `graph-predict` has them among its own."""

    weights: tuple[str, ...] = flag((), _WEIGHTS_HELP, kind=TEXTS)
    data: str = flag("", "dataset yaml whose class names are shown instead of those of the weights")
    imgsz: tuple[int, ...] = flag(
        (640,),
        "image size in px, one number or height and width (default: 640)",
        kind=NUMBERS,
        aliases=("--img", "--img-size"),
    )
    conf_thres: float = flag(0.25, "detections need a confidence above this", kind=float)
    iou_thres: float = flag(0.45, "a box is suppressed when it overlaps a better one by more than this", kind=float)
    max_det: int = flag(1000, "most detections per image", kind=int)
    classes: tuple[int, ...] | None = flag(None, "keep only these class numbers", kind=NUMBERS)
    agnostic_nms: bool = flag(False, "boxes of different classes suppress one another", kind=SWITCH)
    augment: bool = flag(False, "augmented inference: three scales, one of them flipped", kind=SWITCH)
    batch_size: int = flag(
        8, "images per batch; only images of one shape share a batch", kind=int, aliases=("--batch",)
    )
    device: str = flag("", "cuda device, i.e. 0, or cpu; '' takes the GPU where there is one")
    workers: int = flag(8, "threads that read and write images", kind=int)
    graph: bool | None = flag(
        None,
        "run the network as compiled graphs (default, but for a few images alone, which "
        "are done before a graph is compiled)",
        kind=SWITCH,
        off="--eager",
    )
    kernels: str = flag("auto", "our kernel plugin", choices=("auto", "off", "require"))
    allow_download: bool = flag(False, DOWNLOAD_HELP, kind=SWITCH)

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("--weights: name trained weights, such as runs/train/exp/weights/best.safetensors")
        check_flags(self)
        check_ranges(self, NUMBER_RANGES, shares=THRESHOLDS)
        if len(self.imgsz) not in (1, 2):
            raise ValueError(f"--imgsz {' '.join(map(str, self.imgsz))}: give one number, or height and width")
        if self.classes is not None and min(self.classes, default=-1) < 0:
            raise ValueError(f"--classes {' '.join(map(str, self.classes))}: classes count from 0")


@dataclass(frozen=True)
class PredictOptions(DetectorOptions):
    """All settings of `graph-predict`; a value that no run can use is refused when the object is made."""

    source: tuple[str, ...] = flag((), _SOURCE_HELP, kind=TEXTS)
    view_img: bool = flag(False, "show the annotated images on the screen", kind=SWITCH)
    save_txt: bool = flag(False, "write detections as label files", kind=SWITCH)
    save_conf: bool = flag(False, "add the confidence to label files", kind=SWITCH)
    save_json: bool = flag(
        False, "write all detections into predictions.json, in the form of COCO results", kind=SWITCH
    )
    save_csv: bool = flag(False, "write all detections into predictions.csv, a row for each", kind=SWITCH)
    save_crop: bool = flag(False, "write each detected object as an image", kind=SWITCH)
    nosave: bool = flag(False, "write no annotated images or videos", kind=SWITCH)
    visualize: bool = flag(False, "write what each layer of the network puts out, as pictures and arrays", kind=SWITCH)
    update: bool = flag(False, "", kind=SWITCH, refused="weights are never changed by a prediction; leave it out")
    project: str = flag("runs/detect", "save to project/name")
    name: str = flag("exp", "save to project/name")
    exist_ok: bool = flag(False, "an existing project/name is used again", kind=SWITCH)
    line_thickness: int = flag(3, "thickness of the drawn boxes in px", kind=int)
    hide_labels: bool = flag(False, "draw boxes without text", kind=SWITCH)
    hide_conf: bool = flag(False, "draw class names without confidences", kind=SWITCH)
    half: bool = flag(False, "", kind=SWITCH, refused=NO_HALF)
    dnn: bool = flag(False, "", kind=SWITCH, refused=NO_DNN)
    vid_stride: int = flag(1, "look at every n-th frame of a video", kind=int)
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.source) or not self.source:
            raise ValueError("--source: name images, a folder, a glob, a .txt list, or - for a list on standard input")
        check_ranges(self, {"line_thickness": (1, MAX_LINE_PX), "vid_stride": (1, MAX_STRIDE)})
        self._refuse_inapplicable_flags()

    def _refuse_inapplicable_flags(self) -> None:
        if self.save_conf and not self.save_txt:
            raise ValueError("--save-conf: adds to label files; give --save-txt too")
        if self.nosave and not self.view_img:
            for name in _DRAWING:
                if getattr(self, name) != getattr(PredictOptions, name):
                    raise ValueError(f"{dashed(name)}: nothing is drawn with --nosave; leave one of them out")
        if self.hide_labels and self.hide_conf:
            raise ValueError("--hide-conf: --hide-labels hides confidences too; leave one of them out")
        if self.visualize and (self.augment or len(self.weights) > 1):
            raise ValueError(
                "--visualize: shows one network that sees each image once; leave out "
                + ("--augment" if self.augment else "all weights but one")
            )
        if self.view_img and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise ValueError("--view-img: there is no display here; look at the images in the results folder")


def detector_options(**flags: Any) -> DetectorOptions:
    """Options from flag names with underscores, as `load(...)` takes them; errors as of `predict_options`."""
    return options_of(DetectorOptions, flags)


def predict_options(**flags: Any) -> PredictOptions:
    """Options from flag names with underscores, as `predict(...)` takes them.

    Raises:
        ValueError: a name that is no flag (with the nearest match), or a value that cannot be used.
    """
    return options_of(PredictOptions, flags)


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags that are not given are left out of the namespace."""
    return parser_of(PredictOptions, prog="graph-predict", description="Finds objects in images and videos.")
