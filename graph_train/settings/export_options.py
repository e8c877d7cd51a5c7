"""Settings of `graph-export`: flags, defaults and help, named as in YOLOv5's `export.py`. Imports nothing heavy."""

import argparse
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from graph_train.settings.flag_table import (
    DOWNLOAD_HELP,
    KERNELS_HELP,
    NUMBERS,
    SWITCH,
    TEXTS,
    check_flags,
    check_ranges,
    flag,
    parser_of,
    reject_changed,
)
from graph_train.settings.val_options import NUMBER_RANGES, THRESHOLDS
from kernels.host.extras import install_command

FORMATS = ("safetensors", "pt", "onnx")
_OTHER_FORMATS: Mapping[str, str] = {
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
"""Formats of YOLOv5's export.py that are not supported, and how to get them instead."""
_ONNX_ONLY = ("dynamic", "nms", "agnostic_nms", "opset", "batch_size", "imgsz", "simplify", "graph")
_NMS_ONLY = ("agnostic_nms", "conf_thres", "iou_thres", "max_det")
_OTHER_FORMAT = "applies to an unsupported export format; remove it"


@dataclass(frozen=True)
class ExportOptions:
    """All settings of `graph-export`, validated on construction."""

    weights: tuple[str, ...] = flag(
        (), "trained weights: .safetensors, .pt or a OneFlow folder; several are exported one by one", kind=TEXTS
    )
    include: tuple[str, ...] = flag(
        ("safetensors",), f"formats to write: {', '.join(FORMATS)} (default: safetensors)", kind=TEXTS
    )
    output: str = flag(
        "", "output file (default: NAME.onnx, NAME.export.pt or NAME.export.safetensors next to the weights)"
    )
    part: str = flag("ema", "network to export from a training checkpoint", choices=("ema", "model"))
    data: str = flag("", "dataset yaml with the class names to store instead of those of the weights")
    imgsz: tuple[int, ...] = flag(
        (640,),
        "ONNX: image size in px, one number or height and width (default: 640)",
        kind=NUMBERS,
        aliases=("--img", "--img-size"),
    )
    batch_size: int = flag(1, "ONNX: images per batch", kind=int, aliases=("--batch",))
    dynamic: bool = flag(False, "ONNX: dynamic batch and image size", kind=SWITCH)
    opset: int = flag(17, "ONNX: opset version", kind=int)
    simplify: bool = flag(False, "ONNX: no effect, models are always exported in simplified form", kind=SWITCH)
    nms: bool = flag(False, "ONNX: add NMS to the model", kind=SWITCH)
    agnostic_nms: bool = flag(False, "with --nms: class-agnostic NMS", kind=SWITCH)
    conf_thres: float = flag(0.25, "with --nms: confidence threshold", kind=float)
    iou_thres: float = flag(0.45, "with --nms: NMS IoU threshold", kind=float)
    max_det: int = flag(300, "with --nms: maximum detections per image", kind=int, aliases=("--topk-all",))
    device: str = flag("", "device of the network that the ONNX model is compared with: CUDA device such as 0, or cpu")
    graph: bool = flag(
        True, "run the network that the ONNX model is compared with as a graph (default)", kind=SWITCH, off="--eager"
    )
    kernels: str = flag("auto", KERNELS_HELP, choices=("auto", "off", "require"))
    allow_download: bool = flag(False, DOWNLOAD_HELP, kind=SWITCH)
    half: bool = flag(False, "pt: store the weights in float16, as YOLOv5 does", kind=SWITCH)
    inplace: bool = flag(False, "", kind=SWITCH, rejected="applies to PyTorch only; remove it")
    train: bool = flag(False, "", kind=SWITCH, rejected="BatchNorm is always fused into the exported model; remove it")
    keras: bool = flag(False, "", kind=SWITCH, rejected=_OTHER_FORMAT)
    optimize: bool = flag(False, "", kind=SWITCH, rejected=_OTHER_FORMAT)
    int8: bool = flag(False, "", kind=SWITCH, rejected=_OTHER_FORMAT)
    workspace: int = flag(4, "", kind=int, rejected=_OTHER_FORMAT)
    topk_per_class: int = flag(100, "", kind=int, rejected="not supported; use --max-det, a limit over all classes")
    verbose: bool = flag(False, "", kind=SWITCH, rejected="applies to TensorRT only; remove it")
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)

    def __post_init__(self) -> None:
        if not self.weights or not all(self.weights):
            raise ValueError("--weights: give the weights to export, such as runs/train/exp/weights/best.safetensors")
        self._check_formats()
        check_flags(self)
        ranges = {name: NUMBER_RANGES[name] for name in ("imgsz", "batch_size", "max_det")}
        check_ranges(self, ranges, fractions=THRESHOLDS)
        if len(self.imgsz) not in (1, 2):
            raise ValueError(f"--imgsz {' '.join(map(str, self.imgsz))}: give one number, or height and width")
        self._reject_inapplicable_flags()

    def _check_formats(self) -> None:
        if not self.include:
            raise ValueError(f"--include: give one or more of {', '.join(FORMATS)}")
        for name in self.include:
            if name in _OTHER_FORMATS:
                raise ValueError(f"--include {name}: not supported; {_OTHER_FORMATS[name]}")
            if name not in FORMATS:
                raise ValueError(f"--include {name!r}: must be one of {', '.join(FORMATS)}")
        for package in ("onnx", "onnxruntime"):
            if "onnx" in self.include and importlib.util.find_spec(package) is None:
                raise ValueError(f"--include onnx: {package} is not installed: {install_command('onnx')}")
        for several in ("formats",) * (len(self.include) > 1) + ("weights",) * (len(self.weights) > 1):
            if self.output:
                raise ValueError(f"--output: cannot be used with several {several}; remove it, or export one at a time")

    def _reject_inapplicable_flags(self) -> None:
        if "onnx" not in self.include:
            reject_changed(self, _ONNX_ONLY, "applies to ONNX only; add --include onnx")
        if "pt" not in self.include:
            reject_changed(self, ("half",), "applies to .pt files only; add --include pt")
        if not self.nms:
            reject_changed(self, _NMS_ONLY, "applies to NMS only; add --nms")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the namespace contains only the flags that were given."""
    description = "Export trained weights to other formats."
    return parser_of(ExportOptions, prog="graph-export", description=description)
