"""`graph-bench inference`: images per second of inference with trained weights.

`graph-val` and `graph-predict` run as whole commands, from loading the weights to writing the results, compared with
YOLOv5's `val.py` and `detect.py`; the network alone is compared with onnxruntime on our export.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.harness.flags import add_repeats
from benchmarks.harness.measure import calls_per_turn, ratios, summarise, take_turns
from benchmarks.harness.tables import Table, number
from benchmarks.harness.training_command import as_flags
from benchmarks.harness.workers import Worker, environment_for
from benchmarks.step.competitors import find_torch

VALIDATION, PREDICTION, NETWORK = "validation", "prediction", "network"
OURS, YOLOV5, ONNX = "graph-train", "YOLOv5", "onnxruntime"
_ALL_CLASSES = re.compile(r"^\s*all\s+(\d+)\s+(\d+)\s+(?:\S+\s+){2}(\S+)\s+(\S+)\s*$", re.MULTILINE)
"""Pattern of the output line with images, instances, P, R, mAP50 and mAP50-95."""
_TIME_LIMIT = "NMS time limit"
"""Part of a warning of YOLOv5's `val.py`."""
_TURN_SECONDS = 0.5
_AGREEMENT = 1e-3
NO_YOLOV5 = "YOLOv5 is skipped; to include it, give a checkout with --yolov5 and an interpreter with --torch-python."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of weights, data and peers."""
    add_repeats(parser)
    parser.add_argument("--weights", required=True, help="trained weights: .safetensors, .pt or a OneFlow folder")
    parser.add_argument("--data", default="shapes", help="dataset yaml, or `shapes`; its val split is used")
    parser.add_argument("--imgsz", type=int, default=640, help="image size in px")
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch of a validation")
    parser.add_argument("--yolov5", metavar="FOLDER", help="checkout of ultralytics/yolov5, v7.0")
    parser.add_argument("--torch-python", metavar="PATH", help="Python interpreter with YOLOv5's requirements")


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Run all sides in turn, the commands first.

    Raises:
        ValueError: a command failed, or weights or checkout cannot be used.
    """
    yolov5 = _yolov5(flags)
    with tempfile.TemporaryDirectory(prefix="graph-bench-") as folder:
        commands = _Commands(flags, Path(folder), yolov5)
        rows: list[dict[str, Any]] = []
        speedups: dict[str, Any] = {}
        for work, sides in commands.sides().items():
            seconds = take_turns(sides, repeats=flags.repeats, label=work)
            rows += [_row(work, side, commands.images, taken, commands) for side, taken in seconds.items()]
            speedups |= _speedup(work, seconds)
    for batch in sorted({1, flags.batch_size}):
        network = f"{NETWORK}, batch {batch}"
        seconds = _network_seconds(flags, batch)
        rows += [_row(network, side, batch, taken) for side, taken in seconds.items()]
        speedups |= _speedup(network, seconds)
    return {"rows": rows, "speedups": speedups, "notes": sorted(commands.notes) if yolov5 else [NO_YOLOV5]}


def _yolov5(flags: argparse.Namespace) -> Path | None:
    if flags.yolov5 is None:
        return None
    folder = Path(flags.yolov5).resolve()
    if not all((folder / name).is_file() for name in ("val.py", "detect.py")):
        raise ValueError(f"--yolov5 {flags.yolov5}: has no val.py and detect.py; give a checkout of ultralytics/yolov5")
    return folder


@dataclass
class _Commands:
    """The commands of both sides on a copy of the val split made of links, and a folder for their output."""

    flags: argparse.Namespace
    folder: Path
    yolov5: Path | None

    def __post_init__(self) -> None:
        self._python = find_torch(self.flags.torch_python) if self.yolov5 else None
        if self.yolov5 and self._python is None:
            raise ValueError(
                f"--yolov5 {self.flags.yolov5}: requires an interpreter with PyTorch; give it with --torch-python"
            )
        self.images = self._link()
        self.map50: dict[str, float] = {}
        """mAP50 by side, as printed by its validation."""
        self.notes: set[str] = set()
        self._pt = self.folder / "weights.pt"
        if self.yolov5:
            words = as_flags(weights=self.flags.weights, include="pt", output=self._pt)
            _seconds_and_output([sys.executable, "-m", "graph_train.cli.export", *words], self.flags)

    def _link(self) -> int:
        from pipelines.data.dataset import load_dataset
        from pipelines.data.index import index_images

        dataset = load_dataset(self.flags.data, require=("val",))
        index = index_images(dataset.val, dataset.class_names)
        for name in ("images", "labels"):
            (self.folder / name).mkdir()
        for place, (path, rows) in enumerate(zip(index.paths, index.labels, strict=True)):
            (self.folder / "images" / f"{place:06d}{path.suffix}").symlink_to(path.resolve())
            np.savetxt(self.folder / "labels" / f"{place:06d}.txt", rows, fmt=["%d"] + ["%.9g"] * 4)
        data = {"path": str(self.folder), "train": "images", "val": "images", "names": list(dataset.class_names)}
        (self.folder / "data.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
        return len(index)

    def sides(self) -> dict[str, dict[str, Callable[[], float]]]:
        """Return functions that run a command and return its seconds, by work and side."""
        ours: dict[str, dict[str, Callable[[], float]]] = {
            VALIDATION: {OURS: lambda: self._validate(OURS, "val")},
            PREDICTION: {OURS: lambda: self._run(OURS, "predict")[0]},
        }
        if self.yolov5:
            ours[VALIDATION][YOLOV5] = lambda: self._validate(YOLOV5, "val")
            ours[PREDICTION][YOLOV5] = lambda: self._run(YOLOV5, "detect")[0]
        return ours

    def _common_flags(self, name: str) -> dict[str, object]:
        common: dict[str, object] = {
            "device": self.flags.device,
            "imgsz": self.flags.imgsz,
            "project": self.folder / "runs",
            "name": name,
            "exist_ok": True,
        }
        if name != "val":
            return {"source": self.folder / "images", **common}
        data = {"data": self.folder / "data.yaml", "batch_size": self.flags.batch_size}
        return {**data, "workers": self.flags.threads, **common}

    def _validate(self, side: str, name: str) -> float:
        seconds, printed = self._run(side, name)
        found = _ALL_CLASSES.search(printed)
        if found is None or int(found[1]) != self.images:
            raise ValueError(f"{side}: printed no metrics of {self.images} images")
        self.map50[side] = float(found[3])
        if _TIME_LIMIT in printed:
            self.notes.add(f"{side} reached its time limit for NMS and dropped detections: its mAP is lower for that.")
        return seconds

    def _run(self, side: str, name: str) -> tuple[float, str]:
        words = self._common_flags(name)
        if side == OURS:
            words["weights"] = Path(self.flags.weights).resolve()
            return _seconds_and_output(
                [sys.executable, "-m", f"graph_train.cli.{name}", *as_flags(**words)], self.flags
            )
        # Newer PyTorch does not unpickle whole networks by itself; the file is our own.
        variables = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
        command = [str(self._python), f"{name}.py", *as_flags(weights=self._pt, **words)]
        return _seconds_and_output(command, self.flags, variables, self.yolov5)


def _seconds_and_output(
    command: list[str], flags: argparse.Namespace, variables: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[float, str]:
    environment = environment_for(flags.threads) | dict(variables or {})
    started = time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd)
    seconds, printed = time.perf_counter() - started, ran.stdout + ran.stderr
    if ran.returncode:
        last = (printed.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"{' '.join(command[:3])} ended with exit code {ran.returncode}: {last}")
    return seconds, printed


def _network_seconds(flags: argparse.Namespace, batch: int) -> dict[str, list[float]]:
    """Return the seconds per batch in each turn, by side.

    Raises:
        ValueError: the predictions of the sides differ.
    """
    with ExitStack() as stack:
        runners: dict[str, Callable[[], float]] = {}
        means = {}
        for side in (OURS, ONNX):
            name = "benchmarks.inference.network_worker"
            worker = stack.enter_context(Worker(side, name, threads=flags.threads))
            means[side] = worker.call(
                "prepare",
                weights=str(Path(flags.weights).resolve()),
                onnx=side == ONNX,
                threads=flags.threads,
                image_px=flags.imgsz,
                batch=batch,
                device=flags.device,
            )
            count = calls_per_turn(worker.call("seconds", count=1), wanted_seconds=_TURN_SECONDS)
            runners[side] = lambda worker=worker, count=count: worker.call("seconds", count=count) / count  # type: ignore[misc]
        if not abs(means[OURS] - means[ONNX]) <= _AGREEMENT * abs(means[OURS]):
            raise ValueError(f"the predictions of the networks differ: on average {means[OURS]:g} and {means[ONNX]:g}")
        return take_turns(runners, repeats=flags.repeats, label=f"{NETWORK}, batch {batch}")


def _row(
    work: str, side: str, images: int, seconds: Sequence[float], commands: _Commands | None = None
) -> dict[str, Any]:
    speed = summarise(images / taken for taken in seconds)
    return {
        "work": work,
        "side": side,
        "images": images,
        "images_per_second": speed.median,
        **{key: value for key, value in speed.as_dict().items() if key != "median"},
        "seconds": summarise(seconds).median,
        "map50": commands.map50.get(side) if commands and work == VALIDATION else None,
    }


def _speedup(work: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Return our speedup over each of the other sides, from the ratios within each turn."""
    others = {side: taken for side, taken in seconds.items() if side != OURS}
    return {f"{work}, {side}": ratios(taken, seconds[OURS]).as_dict() for side, taken in others.items()}


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return one table row per task and side."""
    speedups = body["speedups"]
    cells = tuple(
        (
            row["work"],
            row["side"],
            number(row["images_per_second"]),
            f"{number(row['lower_quartile'])}–{number(row['upper_quartile'])}",
            number(row["seconds"]),
            number(row["map50"]),
            number(speedups.get(f"{row['work']}, {row['side']}", {}).get("median")),
        )
        for row in body["rows"]
    )
    settings = body["settings"]
    title = f"{settings['weights']} on the val split of {settings['data']}, {settings['imgsz']} px"
    columns = ("work", "side", "img/s", "quartiles", "seconds", "mAP50", "our speedup")
    notes = (
        "Commands: from start to end. Network alone: seconds per batch, from uint8 images to decoded boxes.",
        *body["notes"],
    )
    return [Table(title, columns, cells, notes)]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot images per second of each task."""
    from benchmarks.harness.plots import bars

    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in body["rows"]:
        group = groups.setdefault(row["work"], {})
        group[row["side"]] = (row["images_per_second"], row["lower_quartile"], row["upper_quartile"])
    bars(groups, path, title="Inference with trained weights", unit="images per second")
