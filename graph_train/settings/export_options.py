"""The settings of an export: flags, defaults and help. Names are those of YOLOv5's `export.py`.

Nothing heavy is imported here: `--help` and argument errors answer at once.
"""

import argparse
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graph_train.settings.flag_table import (
    DOWNLOAD_HELP,
    NUMBERS,
    SWITCH,
    TEXTS,
    check_flags,
    check_ranges,
    flag,
    options_of,
    parser_of,
    refuse_changed,
)
from graph_train.settings.val_options import NUMBER_RANGES, THRESHOLDS
from kernels.host.extras import install_command

FORMATS = ("safetensors", "pt", "onnx")
_ELSEWHERE: Mapping[str, str] = {
    "torchscript": "needs PyTorch; export pt and run YOLOv5's export.py on it",
    "openvino": "export onnx and convert it with OpenVINO's `ovc`",
    "engine": "export onnx and build the engine with TensorRT's `trtexec`",
    "coreml": "needs PyTorch; export pt and run YOLOv5's export.py on it",
    "saved_model": "export onnx and convert it with a tool for TensorFlow",
    "pb": "export onnx and convert it with a tool for TensorFlow",
    "tflite": "export onnx and convert it with a tool for TensorFlow",
    "edgetpu": "export onnx and convert it with a tool for TensorFlow",
    "tfjs": "export onnx, which onnxruntime-web runs in browsers",
    "paddle": "export onnx and convert it with a tool for Paddle",
}
"""Formats of YOLOv5 that are not written, and the way to them."""
_ONNX_ONLY = ("dynamic", "nms", "agnostic_nms", "opset", "batch_size", "imgsz", "simplify", "graph")
_NMS_ONLY = ("agnostic_nms", "conf_thres", "iou_thres", "max_det")
_OTHER_FORMAT = "belongs to a format that is not written; leave it out"


@dataclass(frozen=True)
class ExportOptions:
    """All settings of `graph-export`; a value that no export can use is refused when the object is made."""

    weights: str = flag("", "trained weights: .safetensors, .pt or a OneFlow folder")
    include: tuple[str, ...] = flag(
        ("safetensors",), f"formats to write: {', '.join(FORMATS)} (default: safetensors)", kind=TEXTS
    )
    output: str = flag(
        "", "file to write (default: beside the weights, NAME.onnx, NAME.export.pt or NAME.export.safetensors)"
    )
    part: str = flag("ema", "which network of a training checkpoint", choices=("ema", "model"))
    data: str = flag("", "dataset yaml whose class names go into the file instead of those of the weights")
    imgsz: tuple[int, ...] = flag(
        (640,),
        "ONNX: image size in px, one number or height and width (default: 640)",
        kind=NUMBERS,
        aliases=("--img", "--img-size"),
    )
    batch_size: int = flag(1, "ONNX: images per batch", kind=int, aliases=("--batch",))
    dynamic: bool = flag(False, "ONNX: leave batch and image size open", kind=SWITCH)
    opset: int = flag(17, "ONNX: operator set", kind=int)
    simplify: bool = flag(False, "ONNX: accepted; files are always written in their simplest form", kind=SWITCH)
    nms: bool = flag(False, "ONNX: put the suppression of overlapping boxes into the file", kind=SWITCH)
    agnostic_nms: bool = flag(False, "with --nms: boxes of different classes suppress one another", kind=SWITCH)
    conf_thres: float = flag(0.25, "with --nms: detections need a confidence above this", kind=float)
    iou_thres: float = flag(
        0.45, "with --nms: a box is suppressed when it overlaps a better one by more than this", kind=float
    )
    max_det: int = flag(300, "with --nms: most detections per image", kind=int, aliases=("--topk-all",))
    device: str = flag("", "what the ONNX file is checked against: cuda device, i.e. 0, or cpu")
    graph: bool = flag(True, "check against our network as a compiled graph (default)", kind=SWITCH, off="--eager")
    kernels: str = flag("auto", "our kernel plugin", choices=("auto", "off", "require"))
    allow_download: bool = flag(False, DOWNLOAD_HELP, kind=SWITCH)
    half: bool = flag(False, "pt: store the weights in half precision, as YOLOv5 does", kind=SWITCH)
    inplace: bool = flag(False, "", kind=SWITCH, refused="concerns PyTorch's head only; leave it out")
    train: bool = flag(False, "", kind=SWITCH, refused="BatchNorm is folded into the exported file; leave it out")
    keras: bool = flag(False, "", kind=SWITCH, refused=_OTHER_FORMAT)
    optimize: bool = flag(False, "", kind=SWITCH, refused=_OTHER_FORMAT)
    int8: bool = flag(False, "", kind=SWITCH, refused=_OTHER_FORMAT)
    workspace: int = flag(4, "", kind=int, refused=_OTHER_FORMAT)
    topk_per_class: int = flag(100, "", kind=int, refused="there is one limit for all classes, --max-det")
    verbose: bool = flag(False, "", kind=SWITCH, refused="belongs to TensorRT's log; leave it out")
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("--weights: name the weights to export, such as runs/train/exp/weights/best.safetensors")
        self._check_formats()
        check_flags(self)
        ranges = {name: NUMBER_RANGES[name] for name in ("imgsz", "batch_size", "max_det")}
        check_ranges(self, ranges, shares=THRESHOLDS)
        if len(self.imgsz) > 2:
            raise ValueError(f"--imgsz {' '.join(map(str, self.imgsz))}: give one number, or height and width")
        self._refuse_inapplicable_flags()

    def _check_formats(self) -> None:
        if not self.include:
            raise ValueError(f"--include: name the formats to write: {', '.join(FORMATS)}")
        for name in self.include:
            if name in _ELSEWHERE:
                raise ValueError(f"--include {name}: not written here; {_ELSEWHERE[name]}")
            if name not in FORMATS:
                raise ValueError(f"--include {name!r}: choose from {', '.join(FORMATS)}")
        for package in ("onnx", "onnxruntime"):
            if "onnx" in self.include and importlib.util.find_spec(package) is None:
                raise ValueError(f"--include onnx: {package} is not installed: {install_command('onnx')}")
        if self.output and len(self.include) > 1:
            raise ValueError("--output: one name for several formats; leave it out, or export one format at a time")

    def _refuse_inapplicable_flags(self) -> None:
        if "onnx" not in self.include:
            refuse_changed(self, _ONNX_ONLY, "concerns ONNX files only; add --include onnx")
        if "pt" not in self.include:
            refuse_changed(self, ("half",), "concerns .pt files only; add --include pt")
        if not self.nms:
            refuse_changed(self, _NMS_ONLY, "concerns the suppression; add --nms")


def export_options(**flags: Any) -> ExportOptions:
    """Return the options from flag names with underscores, as `export(...)` takes them.

    Raises:
        ValueError: a name that is no flag (with the nearest match), or a value that cannot be used.
    """
    return options_of(ExportOptions, flags)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; flags that are not given are left out of the namespace."""
    description = "Writes trained weights in a form that other programs read."
    return parser_of(ExportOptions, prog="graph-export", description=description)
