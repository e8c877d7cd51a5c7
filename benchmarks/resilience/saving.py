"""`graph-bench saving`: the cost of saving checkpoints, and the time until a resumed run trains again."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import add_quick, add_repeats, add_training
from benchmarks.harness.measure import ratios, summarise, take_turns
from benchmarks.harness.tables import Table, number
from benchmarks.harness.training_command import training_command, training_flags
from benchmarks.harness.workers import Worker, environment_for
from kernels.host.files import older

SAVE_EVERY = 4
"""Steps between the saves that are measured; the cost of rarer saves would be lost in noise."""
REFERENCE_STEPS = 100
"""Save interval for which the share of the training time is reported."""
STEPS_PER_TURN = 12
STARTS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the training."""
    add_repeats(parser)
    add_quick(parser)
    add_training(parser, cfg="yolov5s.yaml", image_px=320, batch_size=8)
    parser.add_argument("--starts", type=int, default=STARTS, help="fresh and resumed starts to measure, in turn")


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure steps with and without saves in turn, then fresh and resumed starts in turn.

    Raises:
        ValueError: `--starts` is below 1, or an epoch has too few batches.
    """
    if flags.starts < 1:
        raise ValueError(f"--starts {flags.starts}: must be at least 1")
    common = {**training_flags(flags), "epochs": 2, "noplots": True}
    with tempfile.TemporaryDirectory(prefix="graph-bench-saving-") as folder:
        cost = _cost(flags, common, Path(folder))
        starts = _starts(flags, common, Path(folder))
    return {"rows": [cost, starts]}


def _cost(flags: argparse.Namespace, common: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    steps = SAVE_EVERY if flags.quick else STEPS_PER_TURN
    worker = Worker("saving", "benchmarks.resilience.saving_worker", threads=flags.threads)
    try:
        about = worker.call("prepare", folder=str(folder / "cost"), flags={**common, "save_steps": SAVE_EVERY})
        seconds = take_turns(
            {
                "plain": lambda: float(worker.call("seconds_per_step", steps=steps, saves=False)),
                "saving": lambda: float(worker.call("seconds_per_step", steps=steps, saves=True)),
            },
            repeats=2 if flags.quick else flags.repeats,
            label="saving",
        )
    finally:
        worker.close()
    slower = ratios(seconds["saving"], seconds["plain"])
    return {
        "what": "saving",
        **about,
        "ms_per_step": 1000 * summarise(seconds["plain"]).median,
        "slower": slower.as_dict(),
        "share_at_100_steps": (slower.median - 1) * SAVE_EVERY / REFERENCE_STEPS,
        "seconds": seconds,
    }


def _starts(flags: argparse.Namespace, common: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Time new and resumed starts; a resumed run starts in the middle of its first epoch, as after a kill."""
    from graph_train.runs.run_folder import LAST

    environment = environment_for(flags.threads)
    saved = {**common, "save_steps": 1, "keep_saves": 5, "epochs": 1, "project": folder, "name": "saved"}
    subprocess.run(training_command(**saved), check=True, stdout=subprocess.DEVNULL, env=environment)
    # The two newest states are from after and before validation.
    state = older(folder / "saved" / "weights" / LAST, 3)
    if not state.exists():
        raise ValueError("--data: the training set must have at least four batches; use a smaller --batch-size")
    fresh = {**common, "project": str(folder), "name": "fresh", "exist_ok": True}
    seconds = take_turns(
        {
            "fresh": lambda: _seconds_to_first_step(fresh, environment),
            "resumed": lambda: _seconds_to_first_step({"resume": str(state)}, environment),
        },
        repeats=flags.starts,
        label="starts",
    )
    return {"what": "starts", "ratio": ratios(seconds["resumed"], seconds["fresh"]).as_dict(), "seconds": seconds}


def _seconds_to_first_step(flags: Mapping[str, Any], environment: Mapping[str, str]) -> float:
    started = time.time()
    command = [sys.executable, "-m", "benchmarks.resilience.first_step", json.dumps(flags)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    for line in done.stdout.splitlines():
        if line.startswith("first step "):
            return float(line.split()[2]) - started
    raise RuntimeError(f"no first step: {done.stdout[-500:]} {done.stderr[-500:]}")


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return one table row per measurement."""
    cost, starts = body["rows"]
    saving = Table(
        "Saving during training",
        ("state MB", "ms/step", f"slower, saving every {SAVE_EVERY} steps", "share of the time at --save-steps 100"),
        (
            (
                number(cost["state_mb"]),
                number(cost["ms_per_step"]),
                number(cost["slower"]["median"]),
                f"{cost['share_at_100_steps']:.2%}",
            ),
        ),
    )
    fresh, resumed = (summarise(starts["seconds"][name]).median for name in ("fresh", "resumed"))
    start = Table(
        "Until the first step is done",
        ("fresh s", "resumed s", "resumed / fresh"),
        ((number(fresh), number(resumed), number(starts["ratio"]["median"])),),
    )
    return [saving, start]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot both ratios."""
    from benchmarks.harness.plots import bars

    cost, starts = body["rows"]
    groups = {
        "times slower": {f"saving every {SAVE_EVERY} steps": _bar(cost["slower"])},
        "times as long": {"resumed start": _bar(starts["ratio"])},
    }
    bars(groups, path, title="Saving and resuming", unit="ratio")


def _bar(summary: Mapping[str, float]) -> tuple[float, float, float]:
    return summary["median"], summary["lower_quartile"], summary["upper_quartile"]
