"""`graph-bench kills`: kill a training at random moments, resume it, and compare it with an uninterrupted run.

A chain is one run that is started, killed, resumed, killed again … until it finishes. After each kill, all files of the
run must be intact, and its newest state must equal the uninterrupted run's at that batch. When the chain finishes, its
results and weights must be identical to the uninterrupted run's, byte for byte.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from benchmarks.harness.flags import add_train_flags, add_training, add_work, work_folder
from benchmarks.harness.tables import Table
from benchmarks.harness.training_command import training_command, training_flags
from benchmarks.harness.workers import environment_for

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM}
_POLL_SECONDS = 0.002
_TIMEOUT_SECONDS = 1800
MOMENTS: Mapping[str, float] = {"training": 1.0, "writing": 0.05}
"""Moments of a kill other than `ANY`: the maximum number of seconds after a checkpoint write has begun."""
ANY = "any"
_EXACT = (
    "Exact: after being killed and resumed, the run ended with the same results.csv, best weights and state as the "
    "uninterrupted run, byte for byte."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the training and of the kills."""
    parser.add_argument("--kills", type=int, default=50, help="number of kills over all chains (default: 50)")
    parser.add_argument("--signal", choices=tuple(SIGNALS), default="KILL", help="signal to send (default: KILL)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    add_training(parser, cfg="yolov5n.yaml", image_px=128, batch_size=8)
    parser.add_argument("--images", type=int, default=64, help="training images to use (default: 64); 0 for all")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--save-steps", type=int, default=5)
    add_train_flags(parser)
    add_work(parser)


@dataclass
class _Chain:
    """One run that is killed and resumed until it finishes."""

    folder: Path
    kills: list[dict[str, Any]] = field(default_factory=list)


class _Trainings:
    """The same training in several run folders."""

    def __init__(self, flags: argparse.Namespace, data: str, work: Path) -> None:
        self._work = work
        self._save_steps = flags.save_steps
        self._environment = environment_for(flags.threads)
        self._common = {**training_flags(flags), "data": data, "epochs": flags.epochs, "project": work}
        self._extra_flags = flags.train_flags.split()

    @contextmanager
    def running(self, name: str, *more: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Start or resume the run `name`; it is killed on leaving the context if still running."""
        folder = self._work / name
        if (folder / "opt.yaml").exists():
            command = training_command(resume=folder)
        else:
            steps = {} if "--save-steps" in more else {"save_steps": self._save_steps}
            command = training_command(*self._extra_flags, *more, **self._common, **steps, name=name, exist_ok=True)
        with (self._work / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=self._environment
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def output(self, name: str) -> str:
        """Return the last lines of a run's output."""
        return "\n".join((self._work / f"{name}.out").read_text(errors="replace").splitlines()[-12:])


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Run the uninterrupted training, then chains until there were enough kills.

    Raises:
        ValueError: `--kills` is below 1.
        RuntimeError: a training failed on its own.
    """
    if flags.kills < 1:
        raise ValueError(f"--kills {flags.kills}: must be at least 1")
    with work_folder(flags.work) as folder:
        return _series(flags, folder)


def _series(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    from benchmarks.resilience.run_check import known_states

    data = str(_write_subset(flags.data, work, flags.images)) if flags.images and flags.data != "shapes" else flags.data
    trainings = _Trainings(flags, data, work)
    # One run with the flags of the chains, to compare files with, and one that keeps the state after each batch.
    seconds = _uninterrupted(trainings, "reference")
    _uninterrupted(trainings, "states", "--save-steps", "1", "--keep-saves", "1000")
    known = known_states(work / "states")
    reference = _Reference(work / "reference", seconds, known, max(len(known) // flags.save_steps, 1))
    shutil.rmtree(work / "states" / "weights")
    series = _Series(trainings, reference, SIGNALS[flags.signal], random.Random(flags.seed))
    chains: list[_Chain] = []
    left = flags.kills
    with tqdm(total=flags.kills, desc="kills", leave=False, disable=None) as bar:
        while left > 0:
            chains.append(_Chain(work / f"chain{len(chains)}"))
            series.run_chain(chains[-1], left, bar)
            left -= len(chains[-1].kills)
    return _body(chains, reference)


def _write_subset(data: str, folder: Path, images: int) -> Path:
    """Write a yaml of the first `images` training images and a quarter as many for validation; return its path."""
    from pipelines.data.dataset import load_dataset
    from pipelines.data.listing import list_images

    dataset = load_dataset(data)
    content: dict[str, object] = {"path": str(folder.resolve()), "names": list(dataset.class_names)}
    for split, count in (("train", images), ("val", max(images // 4, 1))):
        images_of = list_images(dataset.split("train" if split == "train" else "val"), dataset.class_names).images
        lines = "".join(f"{Path(image).resolve()}\n" for image in images_of[:count])
        (folder / f"{split}.txt").write_text(lines, encoding="utf-8")
        content[split] = f"{split}.txt"
    path = folder / "subset.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _uninterrupted(trainings: _Trainings, name: str, *more: str) -> float:
    started = time.perf_counter()
    with trainings.running(name, *more) as process:
        code = process.wait(_TIMEOUT_SECONDS)
    if code:
        raise RuntimeError(f"the uninterrupted training exited with code {code}: {trainings.output(name)}")
    return time.perf_counter() - started


@dataclass(frozen=True)
class _Reference:
    """The uninterrupted run: its folder, duration and the identity of its state after each batch."""

    folder: Path
    seconds: float
    known: Mapping[tuple[int, int], str]
    saves: int
    """Approximate number of checkpoints that it writes."""


@dataclass(frozen=True)
class _Series:
    """Chains that run sequentially."""

    trainings: _Trainings
    reference: _Reference
    number: signal.Signals
    moments: random.Random

    def run_chain(self, chain: _Chain, max_kills: int, bar: Any) -> None:
        """Kill and resume one run until it finishes; after `max_kills` kills it is left to finish."""
        name = chain.folder.name
        while True:
            disturb = len(chain.kills) < max_kills
            moment = self.moments.choice((ANY, *MOMENTS))
            with self.trainings.running(name) as process:
                if disturb:
                    self._wait(process, chain.folder, moment)
                    if process.poll() is None:
                        process.send_signal(self.number)
                code = process.wait(_TIMEOUT_SECONDS)
            if code == 0:
                return
            if not disturb or code not in _expected(self.number):
                raise RuntimeError(f"{name} exited with code {code}: {self.trainings.output(name)}")
            found = _after_kill(chain.folder, self.reference)
            chain.kills.append({"chain": name, "moment": moment, "exit_code": code, **found})
            bar.update(1)

    def _wait(self, process: "subprocess.Popen[bytes]", folder: Path, moment: str) -> None:
        """Wait for the moment to kill or until the process has exited."""
        if moment == ANY:
            _sleep(process, self.moments.uniform(0, self.reference.seconds))
            return
        seen, writes = _newest(folder), self.moments.randint(1, self.reference.saves)
        while process.poll() is None and writes > 0:
            time.sleep(_POLL_SECONDS)
            if (now := _newest(folder)) != seen:
                seen, writes = now, writes - 1
        _sleep(process, self.moments.uniform(0, MOMENTS[moment]))


def _newest(folder: Path) -> tuple[object, ...]:
    """Return a value that changes when a checkpoint write begins and when it completes."""
    pending_writes = sorted(path.name for path in (folder / "weights").glob(".last.*"))
    last = folder / "weights" / "last.safetensors"
    try:
        return (*pending_writes, last.stat().st_mtime_ns)
    except FileNotFoundError:
        return tuple(pending_writes)


def _sleep(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until and process.poll() is None:
        time.sleep(min(_POLL_SECONDS, seconds))


def _expected(number: signal.Signals) -> tuple[int, ...]:
    """Return the exit codes after a signal; SIGTERM before its handler is installed ends the interpreter itself."""
    return (-number,) if number == signal.SIGKILL else (130, -number)


def _after_kill(folder: Path, reference: _Reference) -> dict[str, Any]:
    from benchmarks.resilience.run_check import damaged_files, newest_state

    return {**newest_state(folder, reference.known), "damaged": damaged_files(folder, reference.folder)}


def _body(chains: Sequence[_Chain], reference: _Reference) -> dict[str, Any]:
    from benchmarks.resilience.run_check import differences

    ends: list[dict[str, Any]] = [
        {
            "chain": chain.folder.name,
            "resumes": len(chain.kills),
            "differences": differences(chain.folder, reference.folder),
        }
        for chain in chains
    ]
    kills = [kill for chain in chains for kill in chain.kills]
    exact = {end["chain"] for end in ends if not end["differences"]}
    return {
        "rows": kills,
        "chains": ends,
        "undisturbed_seconds": reference.seconds,
        "states_known": len(reference.known),
        "exact_resumes": sum(kill["chain"] in exact for kill in kills),
        "states_equal": sum(kill["equal"] is True for kill in kills),
        "states_different": sum(kill["equal"] is False for kill in kills),
        "damaged_files": sum(len(kill["damaged"]) for kill in kills),
    }


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return a summary table and a table with one row per chain."""
    kills = body["rows"]
    in_write = sum(kill["moment"] == "writing" for kill in kills)
    summary = {
        "exact resumes": f"{body['exact_resumes']} of {len(kills)}",
        "states compared": str(body["states_equal"] + body["states_different"]),
        "equal": str(body["states_equal"]),
        "damaged files": str(body["damaged_files"]),
        f"within {MOMENTS['writing']:g} s of a save": str(in_write),
        "before the first state": str(sum(kill["epoch"] is None for kill in kills)),
    }
    rows = tuple((end["chain"], str(end["resumes"]), ", ".join(end["differences"]) or "none") for end in body["chains"])
    return [
        Table(f"{len(kills)} kills", tuple(summary), (tuple(summary.values()),), (_EXACT,)),
        Table("Chains", ("run", "kills", "differences at the end"), rows, detail=True),
    ]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot the epoch of each chain's newest state at each kill."""
    from benchmarks.harness.plots import lines

    panels: dict[str, list[tuple[float, float]]] = {}
    for kill in body["rows"]:
        points = panels.setdefault(kill["chain"], [])
        points.append((len(points) + 1, float(kill["epoch"] or 0)))
    lines(
        {"": panels},
        path,
        title="Epoch of the newest state at each kill",
        x="kill of the run",
        y="epochs that are saved",
        factors=False,
    )
