"""`graph-bench precision`: whether `--amp` trains as well as float32: the same trainings with and without it.

Each seed trains once with each, in turn, so that a pair shares its initial weights, its order and its augmentation.
Rounding alone makes two trainings part after a while, as another seed does: a difference within a pair counts against
the spread between seeds.
"""

import argparse
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.harness.tables import Table, number
from benchmarks.harness.training_command import training_command, training_flags
from benchmarks.harness.work_folder import add_work_argument, work_folder
from benchmarks.harness.workers import environment_for

PRECISIONS: Mapping[str, str] = {"float32": "--no-amp", "amp": "--amp"}
MEASURES: Mapping[str, str] = {
    "map50": "mAP50",
    "map": "mAP50-95",
    "train_loss": "training loss",
    "val_loss": "validation loss",
}
_LAST_SHARE = 0.2
"""Share of the epochs at the end over which a measure is averaged: one epoch alone is mostly chance."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add flags: the training, and how often it runs."""
    parser.add_argument("--data", default="shapes", help="dataset yaml, or `shapes`")
    parser.add_argument("--cfg", default="yolov5n.yaml", help="network")
    parser.add_argument("--imgsz", type=int, default=320, help="px")
    parser.add_argument("--batch-size", type=int, default=16, help="images")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3, help="pairs of trainings (default: 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="to add pairs to an earlier run (default: 0)")
    parser.add_argument("--train-flags", default="", metavar="FLAGS", help="more flags of graph-train, in one text")
    add_work_argument(parser)


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Train every seed with every precision.

    Raises:
        ValueError: fewer than two seeds, between which nothing spreads.
        RuntimeError: a training failed, or computed in float32 in spite of `--amp`.
    """
    if flags.seeds < 2:
        raise ValueError(f"--seeds {flags.seeds}: must be at least 2, the spread between seeds is what counts")
    with work_folder(flags.work) as folder:
        return _series(flags, folder)


def _series(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    rows = []
    with tqdm(total=flags.seeds * len(PRECISIONS), desc="trainings", leave=False, disable=None) as bar:
        for seed in range(flags.first_seed, flags.first_seed + flags.seeds):
            # Every second pair the other way round: what the machine does beside it falls on both.
            for precision in list(PRECISIONS)[:: 1 if seed % 2 == 0 else -1]:
                rows.append(_trained(flags, work, seed, precision))
                bar.update(1)
    return {"rows": rows, "pairs": pairs(rows)}


def _trained(flags: argparse.Namespace, work: Path, seed: int, precision: str) -> dict[str, Any]:
    """Train once: return its curves, one value per epoch, and how long it took."""
    from graph_train.plots.results import read_results

    name = f"{precision}-{seed}"
    own = {"epochs": flags.epochs, "patience": 0, "seed": seed, "noplots": True, "nosave": True}
    where = {"project": work, "name": name}
    command = training_command(
        PRECISIONS[precision], *flags.train_flags.split(), **training_flags(flags), **own, **where
    )
    started = time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, env=environment_for(flags.threads)
    )
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        raise RuntimeError(f"{name} ended with exit code {done.returncode}: {text[-1500:]}")
    from graph_train.engine.precision import IN_16_BITS  # loads OneFlow

    if flags.device == "cpu" and (precision == "amp") != (IN_16_BITS in text):
        raise RuntimeError(f"{name}: --amp changes nothing on this machine, it computes in float32 as well")
    columns = read_results(work / name / "results.csv")
    curves = {
        "map50": columns["metrics/mAP_0.5"],
        "map": columns["metrics/mAP_0.5:0.95"],
        "train_loss": sum(columns[f"train/{part}_loss"] for part in ("box", "obj", "cls")),
        "val_loss": sum(columns[f"val/{part}_loss"] for part in ("box", "obj", "cls")),
    }
    return {
        "seed": seed,
        "precision": precision,
        "seconds": time.perf_counter() - started,
        **{measure: np.asarray(curve, np.float64).tolist() for measure, curve in curves.items()},
    }


def at_the_end(curve: Sequence[float]) -> float:
    """Return mean over the last fifth of the epochs, of one at least."""
    return float(np.mean(curve[-max(round(len(curve) * _LAST_SHARE), 1) :]))


def pairs(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return final mean and standard deviation by measure, over the seeds and within the pairs.

    `difference` is amp less float32 of the same seed, `error` its standard error.
    """
    found = {}
    for measure in MEASURES:
        ends = {(row["precision"], row["seed"]): at_the_end(row[measure]) for row in rows}
        sides = {
            precision: np.asarray([ends[precision, seed] for seed in sorted({row["seed"] for row in rows})])
            for precision in PRECISIONS
        }
        difference = sides["amp"] - sides["float32"]
        found[measure] = {
            **{f"{name}_mean": float(values.mean()) for name, values in sides.items()},
            **{f"{name}_spread": float(values.std(ddof=1)) for name, values in sides.items()},
            "difference": float(difference.mean()),
            "difference_spread": float(difference.std(ddof=1)),
            "error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
        }
    return found


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Tabulate both sides and their difference, by measure; then each training."""
    compared = tuple(
        (
            MEASURES[measure],
            *(f"{_rounded(found[f'{name}_mean'])} ± {_rounded(found[f'{name}_spread'])}" for name in PRECISIONS),
            f"{_rounded(found['difference'], sign=True)} ± {_rounded(found['error'])}",
            _rounded(found["difference_spread"]),
        )
        for measure, found in body["pairs"].items()
    )
    epochs = len(body["rows"][0]["map"])
    seeds = len({row["seed"] for row in body["rows"]})
    note = (
        f"Means over the last fifth of {epochs} epochs. ± of a precision: standard deviation between {seeds} seeds; of "
        "the difference (amp less float32 of the same seed): standard error of its mean."
    )
    columns = ("measure", *PRECISIONS, "difference", "its spread")
    trainings = tuple(
        (
            str(row["seed"]),
            row["precision"],
            *(_rounded(at_the_end(row[measure])) for measure in MEASURES),
            number(row["seconds"]),
        )
        for row in sorted(body["rows"], key=lambda row: (row["seed"], row["precision"] != "float32"))
    )
    return [
        Table("Trained with and without --amp", columns, compared, (note,)),
        Table("Trainings", ("seed", "precision", *MEASURES.values(), "seconds"), trainings),
    ]


def _rounded(value: float, *, sign: bool = False) -> str:
    return f"{value:+.4f}" if sign else f"{value:.4f}"


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot each measure over the epochs: a thin line per training, a thick one for the mean over the seeds."""
    from benchmarks.harness.plots import families

    panels = {
        title: {
            precision: [row[measure] for row in body["rows"] if row["precision"] == precision]
            for precision in PRECISIONS
        }
        for measure, title in MEASURES.items()
    }
    families(panels, path, title="Trained with and without --amp (thin: each seed; thick: their mean)", x="epoch")
