"""`graph-bench end-to-end`: whole epochs by the command line, and by a PyTorch loop with an OpenCV loader."""

import argparse
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import add_quick, add_repeats, add_training
from benchmarks.harness.measure import ratios, summarise
from benchmarks.harness.points import Point, write_data
from benchmarks.harness.tables import Table, number
from benchmarks.harness.training_command import training_command, training_flags
from benchmarks.harness.workers import Worker, environment_for
from benchmarks.step.competitors import NO_TORCH, find_torch, peer_versions

OURS, TORCH = "graph-train", "pytorch channels-last + opencv"
_ROW = re.compile(r"^\s*(\d+)/\d+\s+(?:\S+\s+){5}(\d+(?:\.\d+)?)\s*$")
"""Pattern of an epoch's log line: number, three losses, instances, size, images per second."""


@dataclass(frozen=True)
class CompletedRun:
    """A finished run of one side."""

    epochs: tuple[float, ...]
    """Training speed of each epoch, in images per second."""
    seconds: float
    """Duration of the whole process; ours includes compilation, the final validation and saving."""
    prepared: Mapping[str, Any] = field(default_factory=dict)
    """Result of the peer's `prepare`, which includes versions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the training."""
    add_repeats(parser)
    add_quick(parser)
    add_training(parser, cfg="yolov5n", image_px=320, batch_size=16)
    parser.add_argument("--epochs", type=int, default=3, help="epochs per run (default: 3); the last one is compared")
    parser.add_argument("--torch-python", metavar="PATH", help="Python interpreter with PyTorch and OpenCV")


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Run both sides in turn; `--quick` trains two epochs, twice."""
    torch_python = find_torch(flags.torch_python, ("torch", "numpy", "cv2"))
    epochs, repeats = (2, min(flags.repeats, 2)) if flags.quick else (flags.epochs, flags.repeats)
    with tempfile.TemporaryDirectory(prefix="graph-bench-") as folder:
        sides: dict[str, Callable[[], CompletedRun]] = {OURS: lambda: _train_ours(flags, epochs, Path(folder))}
        if torch_python is not None:
            images = _describe(flags, epochs, Path(folder))
            sides[TORCH] = lambda: _train_torch(flags, epochs, folder, torch_python)
        else:
            images = None
        runs: dict[str, list[CompletedRun]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, train in sides.items():
                runs[name].append(train())
    rows = [_row(name, found, flags) for name, found in runs.items()]
    notes = [] if torch_python else [NO_TORCH]
    return {"rows": rows, "speedup": _speedup(runs), "images": images, "notes": notes}


def _train_ours(flags: argparse.Namespace, epochs: int, folder: Path) -> CompletedRun:
    """Run the command as a user would.

    Plots, validation before the end and checkpoints of each epoch are off.
    """
    disabled = {"noautoanchor": True, "noval": True, "noplots": True}
    command = training_command(
        **training_flags(flags), **disabled, epochs=epochs, project=folder / "runs", kernels="require"
    )
    started = time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment_for(flags.threads))
    seconds = time.perf_counter() - started
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"graph-train exited with code {ran.returncode}: {last}")
    return CompletedRun(epoch_speeds(ran.stdout, epochs), seconds)


def epoch_speeds(output: str, epochs: int) -> tuple[float, ...]:
    """Return the images per second of each epoch from the output of `graph-train`.

    Raises:
        ValueError: the line of an epoch is missing.
    """
    rows = [match for line in output.splitlines() if (match := _ROW.match(line))]
    found = {int(row.group(1)): float(row.group(2)) for row in rows}
    if sorted(found) != list(range(epochs)):
        raise ValueError(f"graph-train printed the speed of epochs {sorted(found)}, expected {epochs} epochs")
    return tuple(found[epoch] for epoch in range(epochs))


def _describe(flags: argparse.Namespace, epochs: int, folder: Path) -> int:
    """Write network, weights, images and the settings of each step for PyTorch; return the number of images."""
    from graph_train.engine.schedule import Schedule
    from graph_train.settings.hyperparameters import Hyperparameters
    from pipelines.data.dataset import load_dataset
    from pipelines.data.index import index_images

    dataset = load_dataset(flags.data)
    index = index_images(dataset.split("train"), dataset.class_names)
    steps = -(-len(index) // flags.batch_size)
    schedule = Schedule.from_hyperparameters(
        Hyperparameters(), epochs=epochs, batches_per_epoch=steps, batch_size=flags.batch_size
    )
    write_data(folder, index, schedule)
    point = Point(flags.cfg, flags.batch_size, flags.imgsz)
    with Worker("description", "benchmarks.step.step_worker", threads=flags.threads) as worker:
        worker.call("describe", folder=str(folder), num_classes=len(dataset.class_names), **asdict(point))
    return len(index)


def _train_torch(flags: argparse.Namespace, epochs: int, folder: str, python: Path) -> CompletedRun:
    """Train PyTorch in its faster layout, with one loader process per thread, as YOLOv5 does below its default of 8."""
    options = {"channels_last": True, "compiled": False, "amp": flags.device != "cpu"}
    started = time.perf_counter()
    with Worker(TORCH, "benchmarks.peers.epochs_worker", threads=flags.threads, python=python) as worker:
        prepared = worker.call(
            "prepare", folder=folder, device=flags.device, threads=flags.threads, workers=flags.threads, options=options
        )
        done = [worker.call("epoch") for _ in range(epochs)]
    seconds = time.perf_counter() - started
    return CompletedRun(tuple(epoch["images"] / epoch["seconds"] for epoch in done), seconds, prepared)


def _row(name: str, runs: Sequence[CompletedRun], flags: argparse.Namespace) -> dict[str, Any]:
    speed = summarise(ran.epochs[-1] for ran in runs)
    return {
        "side": name,
        "data": Path(flags.data).stem,
        "model": flags.cfg,
        "imgsz": flags.imgsz,
        "batch_size": flags.batch_size,
        "images_per_second": speed.median,
        **{key: value for key, value in speed.as_dict().items() if key != "median"},
        "first_epoch_images_per_second": summarise(ran.epochs[0] for ran in runs).median,
        "command_s": summarise(ran.seconds for ran in runs).median,
        **peer_versions(runs[0].prepared),
    }


def _speedup(runs: Mapping[str, Sequence[CompletedRun]]) -> dict[str, Any] | None:
    """Return the speedup of our last epoch, from the ratios within each turn."""
    if TORCH not in runs:
        return None
    last = {name: [ran.epochs[-1] for ran in found] for name, found in runs.items()}
    return ratios(last[OURS], last[TORCH]).as_dict()


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return one table row per side."""
    cells = tuple(
        (
            row["side"],
            number(row["images_per_second"]),
            f"{number(row['lower_quartile'])}–{number(row['upper_quartile'])}",
            number(row["first_epoch_images_per_second"]),
            number(row["command_s"]),
        )
        for row in body["rows"]
    )
    row, gain = body["rows"][0], body["speedup"]
    notes = ["Ours compiles in its first epoch, and its whole command ends with a validation."]
    if gain:
        span = f"{gain['lower_quartile']:.2f}–{gain['upper_quartile']:.2f}"
        notes.append(f"{OURS} trains {gain['median']:.2f} ({span}) times as many images per second.")
    title = f"{row['model']} on {row['data']}, batch {row['batch_size']} at {row['imgsz']} px"
    columns = ("side", "last epoch, img/s", "quartiles", "first epoch, img/s", "whole command, s")
    return [Table(title, columns, cells, (*notes, *body["notes"]))]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot images per second of the last epoch."""
    from benchmarks.harness.plots import bars

    keys = ("images_per_second", "lower_quartile", "upper_quartile")
    group = {row["side"]: tuple(row[key] for key in keys) for row in body["rows"]}
    bars(
        {"": {name: (a, b, c) for name, (a, b, c) in group.items()}},
        path,
        title="Whole epochs, data included",
        unit="images per second",
    )
