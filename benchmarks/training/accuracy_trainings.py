"""The trainings of `graph-bench accuracy`, one per side and seed, each saved to a file when finished."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.data.resized_set import make_resized_set
from benchmarks.harness.machine import commit
from benchmarks.harness.results import read_json, reporting_damage, require_types, without_folders
from benchmarks.harness.training_command import as_flags, training_flags
from benchmarks.harness.workers import Worker, environment_for
from benchmarks.step.competitors import peer_versions
from graph_train.host.failures import USER_ERROR
from kernels.host.files import write_atomically

FLOAT32, AMP, PYTORCH = "float32", "amp", "pytorch"
SIDES = (FLOAT32, AMP, PYTORCH)
_SETTINGS = ("data", "cfg", "imgsz", "batch_size", "epochs", "device", "threads", "train_flags", "resized")
"""Flags that affect the weights; the number of threads affects rounding."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Trainings:
    """Runner of trainings that keeps the finished ones in a folder.

    Args:
        flags: command-line flags.
        folder: folder with a file `SIDE-SEED.json` per training.
        torch_python: interpreter of the PyTorch side.
    """

    flags: argparse.Namespace
    folder: Path
    torch_python: Path | None

    @property
    def settings(self) -> dict[str, Any]:
        """The flags that all trainings of a folder share."""
        return {name: without_folders(getattr(self.flags, name)) for name in _SETTINGS}

    def finished(self) -> list[Row]:
        """Return all finished trainings of the folder.

        Raises:
            ValueError: one of them is damaged or was trained with other settings.
        """
        rows = []
        for path in sorted(self.folder.glob("*.json")):
            with reporting_damage(path):
                content = read_json(path)
                settings, row = dict(content["settings"]), dict(content["row"])
                require_types(row, {"seed": int, "side": str, "map": list, "map50": list})
            other = [name for name in _SETTINGS if settings.get(name) != self.settings[name]]
            if other:
                raise ValueError(
                    f"{path}: trained with --{other[0].replace('_', '-')} {settings.get(other[0])}, "
                    f"not {self.settings[other[0]]}; use the same flags or another --work"
                )
            rows.append(row)
        return rows

    def train(self, sides: tuple[str, ...]) -> None:
        """Train every seed on every side, except those that are finished."""
        seeds = range(self.flags.first_seed, self.flags.first_seed + self.flags.seeds)
        # Every other seed has the reverse order, so that other load on the machine affects all sides alike.
        wanted = [(side, seed) for seed in seeds for side in (sides if seed % 2 == 0 else sides[::-1])]
        with tqdm(wanted, desc="trainings", leave=False, disable=None) as bar:
            for side, seed in bar:
                bar.set_postfix_str(f"{side}, seed {seed}")
                path = self.folder / f"{side}-{seed}.json"
                if not path.exists():
                    row = self._trained(side, seed)
                    write_atomically(path, json.dumps({"settings": self.settings, "row": row}) + "\n")

    def _trained(self, side: str, seed: int) -> Row:
        """Run one training and return its curves, with one value per epoch, its duration, commit and versions."""
        started = time.perf_counter()
        train: Callable[[str, int, Path], Mapping[str, Any]] = (
            self._train_pytorch if side == PYTORCH else self._train_ours
        )
        with tempfile.TemporaryDirectory(prefix="graph-bench-") as folder:
            trained = train(side, seed, Path(folder))
        return {
            "seed": seed,
            "side": side,
            "seconds": time.perf_counter() - started,
            "commit": commit(),
            **peer_versions(trained),
            **trained["curves"],
        }

    def _arguments(self, side: str, seed: int, folder: Path) -> list[str]:
        """Return the flags of `graph-train`."""
        return [
            *as_flags(
                **{**training_flags(self.flags), "data": self._data()},
                epochs=self.flags.epochs,
                patience=0,
                seed=seed,
                amp=side == AMP,
                no_amp=side != AMP,
                noplots=True,
                nosave=True,
                project=folder,
                name=side,
            ),
            *self.flags.train_flags.split(),
        ]

    def _data(self) -> str:
        if not self.flags.resized:
            return str(self.flags.data)
        folder = self.folder / f"resized-{self.flags.imgsz}"
        return str(make_resized_set(folder, data=self.flags.data, image_px=self.flags.imgsz))

    def _train_ours(self, side: str, seed: int, folder: Path) -> dict[str, Any]:
        """Train by the command line, as a user would.

        Raises:
            ValueError: a setting or a file is invalid.
            RuntimeError: training failed, or it did not use the data type of the side.
        """
        from graph_train.plots.results import read_results

        in_bfloat16 = side == AMP and self.flags.device == "cpu"
        module = "benchmarks.training.train_in_bfloat16" if in_bfloat16 else "graph_train"
        command = [sys.executable, "-m", module, *self._arguments(side, seed, folder)]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            env=environment_for(self.flags.threads),
        )
        text = done.stdout.decode(errors="replace")
        if done.returncode:
            kind = ValueError if done.returncode == USER_ERROR else RuntimeError
            raise kind(f"{side}-{seed} exited with code {done.returncode}: {text[-1500:]}")
        from graph_train.engine.precision import MIXED_PRECISION_NOTE  # loads OneFlow

        if (side == AMP) != (MIXED_PRECISION_NOTE in text):
            raise RuntimeError(f"{side}-{seed} was not trained in the requested precision: {text[:1500]}")
        columns = read_results(folder / side / "results.csv")
        curves = {
            "map50": columns["metrics/mAP_0.5"],
            "map": columns["metrics/mAP_0.5:0.95"],
            "train_loss": sum(columns[f"train/{part}_loss"] for part in ("box", "obj", "cls")),
            "val_loss": sum(columns[f"val/{part}_loss"] for part in ("box", "obj", "cls")),
        }
        return {"curves": {name: np.asarray(curve, np.float64).tolist() for name, curve in curves.items()}}

    def _train_pytorch(self, side: str, seed: int, folder: Path) -> dict[str, Any]:
        """Train our PyTorch implementation in channels-last, its faster layout, and run our validation on its EMA."""
        flags, weights = self.flags, str(folder / "average.npz")
        options = {"channels_last": True, "compiled": False, "amp": False}
        curves: dict[str, list[float]] = {}
        with (
            Worker("validation", "benchmarks.training.accuracy_worker", threads=flags.threads) as ours,
            Worker(side, "benchmarks.peers.epochs_worker", threads=flags.threads, python=self.torch_python) as torch,
        ):
            ours.call("describe", folder=str(folder), arguments=self._arguments(side, seed, folder))
            prepared = torch.call(
                "prepare",
                folder=str(folder),
                device=flags.device,
                threads=flags.threads,
                workers=0,
                options=options,
                seed=seed,
                cache=True,
            )
            for _ in range(flags.epochs):
                loss = torch.call("epoch")["loss"]
                torch.call("save_average", file=weights)
                for name, value in {"train_loss": loss, **ours.call("validate", weights=weights)}.items():
                    curves.setdefault(name, []).append(value)
        return {"versions": prepared["versions"], "curves": curves}
