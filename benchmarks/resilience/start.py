"""`graph-bench start`: time until the first training step, and until one image is predicted."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.flags import add_repeats, add_training
from benchmarks.harness.machine import PROJECT_FOLDER, commit
from benchmarks.harness.measure import ratios, summarise, take_turns
from benchmarks.harness.tables import Table, number
from benchmarks.harness.training_command import as_flags
from benchmarks.harness.workers import environment_for
from benchmarks.resilience.first_step import PARTS
from benchmarks.step.competitors import other_checkout
from kernels.host.process_settings import with_process_settings

TRAINING, PREDICTION = "first training step", "prediction of one image"
THIS_CHECKOUT, OTHER_CHECKOUT = "this checkout", "other checkout"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the training; its network is also used for prediction."""
    add_repeats(parser)
    add_training(parser, cfg="yolov5n.yaml", image_px=640, batch_size=16)
    parser.add_argument("--against", metavar="CHECKOUT", help="another checkout after `uv sync`")


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Start each command in every turn, after one turn that compiles and fills caches.

    Raises:
        ValueError: a command failed.
    """
    against = other_checkout(flags.against)
    rows: list[dict[str, Any]] = []
    speedups: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="graph-bench-start-") as folder:
        commands = _commands(flags, Path(folder))
        parts = _median_parts(_Start([*commands[TRAINING], "2"], flags, PROJECT_FOLDER), flags.repeats)
        for what, command in commands.items():
            sides = {THIS_CHECKOUT: _Start(command, flags, PROJECT_FOLDER)}
            if against:
                sides[OTHER_CHECKOUT] = _Start(command, flags, against)
            seconds = take_turns(sides, repeats=flags.repeats, label=what)
            spent = {name: side.processor_seconds[-flags.repeats :] for name, side in sides.items()}
            rows += [
                {"what": what, "side": name, "seconds": seconds[name], "processor_seconds": spent[name]}
                for name in sides
            ]
            if against:
                measured = {"seconds": seconds, "processor_seconds": spent}
                speedups[what] = {
                    name: ratios(values[OTHER_CHECKOUT], values[THIS_CHECKOUT]).as_dict()
                    for name, values in measured.items()
                }
    return {
        "rows": rows,
        "parts": parts,
        "speedups": speedups,
        "other_commit": commit(against) if against else None,
    }


def _median_parts(start: "_Start", repeats: int) -> list[dict[str, Any]]:
    """Return each part of the first training step, and the second step for comparison."""
    take_turns({THIS_CHECKOUT: start}, repeats=repeats, label=f"{TRAINING}, parts")
    measured = start.parts[-repeats:]
    return [{"part": part, "seconds": summarise(found[part] for found in measured).median} for part in measured[0]]


def _commands(flags: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Return Python's arguments for each command; output goes to the folder."""
    from models.network import DetectionModel
    from models.spec import load_model_spec
    from models.weights import save_weights
    from pipelines.data.dataset import load_dataset
    from pipelines.data.index import index_images

    dataset = load_dataset(flags.data)
    image = index_images(dataset.val, dataset.class_names).paths[0].resolve()
    weights = folder / "weights.safetensors"
    spec = load_model_spec(flags.cfg, num_classes=len(dataset.class_names))
    save_weights(DetectionModel(spec, seed=0), weights)
    common = {"imgsz": flags.imgsz, "device": flags.device, "project": str(folder), "exist_ok": True}
    training = {**common, "data": flags.data, "cfg": flags.cfg, "batch_size": flags.batch_size, "name": "train"}
    prediction = {**common, "weights": weights, "source": image, "name": "predict"}
    return {
        TRAINING: ["-m", "benchmarks.resilience.first_step", json.dumps(training)],
        PREDICTION: ["-m", "graph_train.cli.predict", *as_flags(**prediction)],
    }


class _Start:
    """Callable that starts the command and returns the seconds until its first step, or its end.

    Attributes:
        processor_seconds: user and system time of each start so far, until its end.
        parts: seconds of each part of each start so far; empty for a command that reports none.
    """

    def __init__(self, command: Sequence[str], flags: argparse.Namespace, checkout: Path) -> None:
        is_own = checkout == PROJECT_FOLDER
        self._command = [sys.executable if is_own else str(checkout / ".venv" / "bin" / "python"), *command]
        self._environment = {**with_process_settings(environment_for(flags.threads)), "PYTHONPATH": str(checkout)}
        self._checkout = checkout
        self.processor_seconds: list[float] = []
        self.parts: list[dict[str, float]] = []

    def __call__(self) -> float:
        with tempfile.TemporaryFile("w+") as output:
            started = time.time()
            process = subprocess.Popen(
                self._command, stdout=output, stderr=subprocess.STDOUT, env=self._environment, cwd=self._checkout
            )
            _, status, usage = os.wait4(process.pid, 0)
            ended = time.time()
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            lines = output.read().splitlines()
        if process.returncode:
            raise ValueError(f"{' '.join(self._command[:3])}: exit code {process.returncode}: {' | '.join(lines[-3:])}")
        self.processor_seconds.append(usage.ru_utime + usage.ru_stime)
        ends = dict(_ends_of_parts(lines))
        self.parts.append(dict(zip(ends, np.diff([started, *ends.values()]).tolist(), strict=True)))
        return ends.get("first step", ended) - started


def _ends_of_parts(lines: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield the parts that `first_step` has reported, and when they ended."""
    names = [name for parts in PARTS.values() for name in parts]
    for line in lines:
        name, _, moment = line.rpartition(" ")
        if name in names:
            yield name, float(moment)


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return one table."""
    rows = []
    for row in body["rows"]:
        seconds, spent = summarise(row["seconds"]), summarise(row["processor_seconds"])
        against = [body["speedups"].get(row["what"], {}).get(key) for key in ("seconds", "processor_seconds")]
        shown = [_ratio(found) if found and row["side"] == THIS_CHECKOUT else "–" for found in against]
        quartiles = f"{number(seconds.lower_quartile)}–{number(seconds.upper_quartile)}"
        rows.append(
            (row["what"], row["side"], number(seconds.median), quartiles, number(spent.median), shown[0], shown[1])
        )
    columns = ("what", "side", "s", "quartiles", "processor s", "times as fast", "processor time, ratio")
    parts = tuple((part["part"], number(part["seconds"])) for part in body.get("parts", ()))
    note = "first step: compiles the graph; second step: the same work without compiling"
    return [
        Table("From the start of the command", columns, tuple(rows), tuple(_notes(body))),
        *([Table("Parts of the first training step", ("part", "s"), parts, (note,))] if parts else []),
    ]


def _ratio(summary: Mapping[str, float]) -> str:
    return f"{summary['median']:.2f} ({summary['lower_quartile']:.2f}–{summary['upper_quartile']:.2f})"


def _notes(body: Mapping[str, Any]) -> Iterator[str]:
    yield f"{TRAINING}: until its result has been read; {PREDICTION}: until the command has ended."
    if body["other_commit"]:
        yield f"{OTHER_CHECKOUT}: commit {body['other_commit']}"
    if "PYTHONDONTWRITEBYTECODE" in body["environment"]:
        yield ("PYTHONDONTWRITEBYTECODE was set: Python compiled every module without bytecode in each start.")


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot seconds and processor seconds, one panel for each start."""
    from benchmarks.harness.plots import bars

    panels: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in body["rows"]:
        for label, key in (("", "seconds"), (", processor time", "processor_seconds")):
            summary = summarise(row[key])
            quartiles = (summary.median, summary.lower_quartile, summary.upper_quartile)
            panels.setdefault(row["what"], {})[f"{row['side']}{label}"] = quartiles
    bars(panels, path, title="From the start of the command", unit="seconds")
