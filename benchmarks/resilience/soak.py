"""`graph-bench soak`: train for a long time and record the process's resources after each epoch, to find leaks."""

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.flags import add_train_flags, add_training
from benchmarks.harness.tables import Table, number
from benchmarks.harness.training_command import training_command, training_flags
from benchmarks.harness.workers import environment_for

MEASURES = {
    "rss_mb": "memory",
    "descriptors": "file descriptors",
    "threads": "threads",
    "shared_mb": "shared",
    "children": "child processes",
}
_KIB, _MB = 1024, 10**6
_POLL_SECONDS = 0.2
_WARM_UP = 0.25
"""Fraction of the epochs ignored at the start, while caches fill and graphs are compiled."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the training and its duration."""
    parser.add_argument("--minutes", type=float, default=120.0, help="duration in minutes (default: 120)")
    add_training(parser, cfg="yolov5n.yaml", image_px=128, batch_size=16)
    parser.add_argument("--save-steps", type=int, default=20)
    add_train_flags(parser)


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Train, measure the process after each epoch, and stop it by SIGTERM.

    Raises:
        RuntimeError: the training stopped on its own or finished fewer than four epochs.
    """
    with tempfile.TemporaryDirectory(prefix="graph-bench-soak-") as folder:
        endless = {"epochs": 100_000, "patience": 0, "save_steps": flags.save_steps, "project": folder, "name": "run"}
        command = training_command(*flags.train_flags.split(), **training_flags(flags), **endless)
        with (Path(folder) / "out").open("wb") as out:
            variables = environment_for(flags.threads)
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=variables
            )
        try:
            rows = _follow(process, Path(folder) / "run" / "results.csv", 60 * flags.minutes)
            process.send_signal(signal.SIGTERM)
            code = process.wait(120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code != 130 or len(rows) < 4:
            text = (Path(folder) / "out").read_text(errors="replace")[-1500:]
            raise RuntimeError(f"{len(rows)} epochs, exit code {code}: {text}")
    grown = {name: growth([row[name] for row in rows]) for name in MEASURES}
    return {"rows": rows, "growth": grown, "megabyte": _MB}


def _follow(process: "subprocess.Popen[bytes]", results: Path, seconds: float) -> list[dict[str, float]]:
    """Return one row per epoch."""
    started, size = time.perf_counter(), 0
    rows: list[dict[str, float]] = []
    while time.perf_counter() - started < seconds and process.poll() is None:
        now = results.stat().st_size if results.exists() else 0
        if now > size:
            size = now
            elapsed = time.perf_counter() - started
            rows.append({"epoch": float(len(rows)), "minutes": elapsed / 60, **memory_of(process.pid)})
        time.sleep(_POLL_SECONDS)
    return rows


def memory_of(pid: int) -> dict[str, float]:
    """Return a process's memory and shared memory in MB, file descriptors, threads and child processes."""
    proc = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line)
    children = (proc / "task" / str(pid) / "children").read_text().split()
    return {
        "rss_mb": int(status["VmRSS"].split()[0]) * _KIB / _MB,
        "descriptors": float(len(list((proc / "fd").iterdir()))),
        "threads": float(status["Threads"]),
        "shared_mb": int(status["RssShmem"].split()[0]) * _KIB / _MB,
        "children": float(len(children)),
    }


def growth(values: Sequence[float]) -> dict[str, float]:
    """Return the medians of the first and the last third after the warm-up, and their difference."""
    counted = np.asarray(values[int(len(values) * _WARM_UP) :], np.float64)
    third = max(len(counted) // 3, 1)
    first, last = float(np.median(counted[:third])), float(np.median(counted[-third:]))
    return {"first": first, "last": last, "grown": last - first, "highest": float(counted.max())}


def _title(name: str, body: Mapping[str, Any]) -> str:
    """Return the title of a measure; older results, without "megabyte", are in MiB."""
    unit = "MB" if body.get("megabyte") == _MB else "MiB"
    return f"{MEASURES[name]} {unit}" if name.endswith("_mb") else MEASURES[name]


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return a table of the process's resources early and late."""
    rows = tuple(
        (_title(name, body), *(number(values[key], 4) for key in ("first", "last", "grown", "highest")))
        for name, values in body["growth"].items()
    )
    minutes, epochs = body["rows"][-1]["minutes"], len(body["rows"])
    note = (
        f"Medians of the first and the last third, after the first quarter; {epochs} epochs in {minutes:.1f} minutes."
    )
    return [Table("Resources of a long run", ("what", "early", "late", "growth", "highest"), rows, (note,))]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot each measure over time."""
    from benchmarks.harness.plots import lines

    titles = {name: _title(name, body) for name in MEASURES}
    panels = {title: {title: [(row["minutes"], row[name]) for row in body["rows"]]} for name, title in titles.items()}
    lines(panels, path, title="Resources of a long run", x="minutes", y="", factors=False)
