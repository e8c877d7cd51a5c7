"""The settings of a validation run: flags, defaults and help. Names and defaults are those of YOLOv5's `val.py`.

Nothing heavy is imported here: `--help` and argument errors answer at once.
"""

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from graph_train.cli.parser import CommandParser
from graph_train.options import MAX_BATCH, RANGES, check_range

TASKS = ("val", "test", "train", "speed", "study")
MAX_DETECTIONS = 1 << 20
_SWITCH = "switch"
_SEVERAL = "several"
_WEIGHTS_HELP = (
    "trained weights (.safetensors, .pt, a OneFlow folder); several are joined to an ensemble, but measured one by one "
    "by the tasks speed and study"
)


def _flag(default: Any, help: str, *, kind: Any = str, aliases: Sequence[str] = (), **extra: Any) -> Any:
    """Declares one flag; kind is the type of its value, or a switch, or several texts."""
    return field(default=default, metadata={"help": help, "kind": kind, "aliases": aliases, **extra})


@dataclass(frozen=True)
class ValOptions:
    """All settings of `graph-val`; a value that no run can use is refused when the object is made."""

    weights: tuple[str, ...] = _flag((), _WEIGHTS_HELP, kind=_SEVERAL)
    data: str = _flag("shapes", "dataset yaml, or `shapes` for the built-in set")
    imgsz: int = _flag(640, "image size in px", kind=int, aliases=("--img", "--img-size"))
    batch_size: int = _flag(32, "images per batch", kind=int, aliases=("--batch",))
    conf_thres: float = _flag(0.001, "detections need a confidence above this", kind=float)
    iou_thres: float = _flag(0.6, "a box is suppressed when it overlaps a better one by more than this", kind=float)
    max_det: int = _flag(300, "most detections per image", kind=int)
    task: str = _flag("val", "split to measure; or speed (conf 0.25, IoU 0.45, square images), or study (image sizes "
                      "256 to 1536)", choices=TASKS)  # fmt: skip
    device: str = _flag("", "cuda device, i.e. 0, or cpu; '' takes the GPU where there is one")
    workers: int = _flag(8, "data loading threads", kind=int)
    allow_download: bool = _flag(False, "fetch missing data from the yaml's `download`, if it gives a SHA-256",
                                 kind=_SWITCH)  # fmt: skip
    single_cls: bool = _flag(False, "count all classes as one", kind=_SWITCH)
    augment: bool = _flag(False, "augmented inference: three scales, one of them flipped", kind=_SWITCH)
    verbose: bool = _flag(False, "table of all classes, also where there are 50 or more", kind=_SWITCH)
    save_txt: bool = _flag(False, "write detections as label files", kind=_SWITCH)
    save_hybrid: bool = _flag(False, "write labels and detections together as label files", kind=_SWITCH)
    save_conf: bool = _flag(False, "add the confidence to label files", kind=_SWITCH)
    save_json: bool = _flag(False, "write a COCO result file, evaluate it if there are annotations", kind=_SWITCH)
    project: str = _flag("runs/val", "save to project/name")
    name: str = _flag("exp", "save to project/name")
    exist_ok: bool = _flag(False, "an existing project/name is used again", kind=_SWITCH)
    half: bool = _flag(False, "refused: validation computes in float32", kind=_SWITCH)
    dnn: bool = _flag(False, "refused: OpenCV DNN runs ONNX files only", kind=_SWITCH)
    graph: bool = _flag(True, "run the network as compiled graphs (default)", kind=_SWITCH, off="--eager")
    kernels: str = _flag("auto", "our kernel plugin", choices=("auto", "off", "require"))
    noplots: bool = _flag(False, "write no plots", kind=_SWITCH)
    debug: bool = _flag(False, "show tracebacks", kind=_SWITCH)

    def __post_init__(self) -> None:
        self._refuse_what_cannot_apply()
        for item in fields(self):
            choices, value = item.metadata.get("choices"), getattr(self, item.name)
            if choices and value not in choices:
                raise ValueError(f"{_dashed(item)} {value!r}: choose one of {', '.join(choices)}")
        for name in ("imgsz", "workers"):
            check_range(name, getattr(self, name), *RANGES[name])
        check_range("batch_size", self.batch_size, 1, MAX_BATCH)
        check_range("max_det", self.max_det, 1, MAX_DETECTIONS)
        for name in ("conf_thres", "iou_thres"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must lie between 0 and 1")

    def _refuse_what_cannot_apply(self) -> None:
        if not self.weights:
            raise ValueError("--weights: name the weights to measure, such as runs/train/exp/weights/best.safetensors")
        if self.half:
            raise ValueError(
                "--half: validation computes in float32 (OneFlow has no half-precision kernels on CPU); leave it out"
            )
        if self.dnn:
            raise ValueError("--dnn: OpenCV DNN runs ONNX files only, this command runs weights; leave it out")
        if self.save_conf and not (self.save_txt or self.save_hybrid):
            raise ValueError("--save-conf: adds to label files; give --save-txt or --save-hybrid too")
        if self.save_hybrid and self.save_json:
            raise ValueError("--save-hybrid: puts the labels among the detections, a COCO result would be meaningless; "
                             "leave out --save-json")  # fmt: skip
        if self.task in ("speed", "study"):
            for name in ("save_txt", "save_hybrid", "save_json"):
                if getattr(self, name):
                    raise ValueError(
                        f"--{name.replace('_', '-')}: --task {self.task} writes no detections; use --task val"
                    )


def _dashed(item: "Field[Any]") -> str:
    return "--" + item.name.replace("_", "-")


def val_options(**flags: Any) -> ValOptions:
    """Options from flag names with underscores, as `validate(...)` takes them; `weights` may be one path.

    Raises:
        ValueError: a name that is no flag (with the nearest match), or a value that cannot be used.
    """
    known = [item.name for item in fields(ValOptions)]
    for name in flags:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"unknown setting {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}")
            )
    weights = flags.get("weights", ())
    paths = weights if isinstance(weights, list | tuple) else (weights,)
    return ValOptions(**{**flags, "weights": tuple(str(path) for path in paths)})


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags that are not given are left out of the namespace."""
    parser = CommandParser(
        prog="graph-val",
        description="Measures trained weights on a data set.",
        epilog="Exit codes: 0 done, 1 internal error, 2 user error, 130 interrupted.",
    )
    for item in fields(ValOptions):
        about = dict(item.metadata)
        names = list(dict.fromkeys([_dashed(item), *about["aliases"], "--" + item.name]))
        common: dict[str, Any] = {"dest": item.name, "help": about["help"], "default": argparse.SUPPRESS}
        if about["kind"] == _SWITCH:
            parser.add_argument(*names, action="store_true", **common)
            if "off" in about:
                common["help"] = f"the opposite of {names[0]}"
                parser.add_argument(about["off"], action="store_false", **common)
        elif about["kind"] == _SEVERAL:
            parser.add_argument(*names, nargs="+", **common)
        else:
            if item.default is not MISSING and item.default != "":
                common["help"] += f" (default: {item.default})"
            parser.add_argument(*names, type=about["kind"], choices=about.get("choices"), **common)
    return parser
