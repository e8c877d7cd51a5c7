"""The stages of the kit; each yields its lines of the table."""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.step.competitors import find_torch
from kernels.build import cuda_build, nvrtc
from kernels.host.cuda_devices import compute_capabilities
from tests.gpu.base import Launched
from tests.gpu.budget import LEAST_FOR_SPEED, StageBudget
from tests.gpu.cases import CASES, WITHIN_OTHERS, kernel_names
from tests.gpu.devices import Device, EmulatedGpu, Gpu

ROOT = Path(__file__).resolve().parents[2]
_NOTHING_COLLECTED = 5
"""Exit code of pytest."""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    stage: str
    name: str
    result: Literal["PASS", "FAIL", "SKIP"]
    seconds: float
    note: str


def kernels_alone(budget: StageBudget, *, emulated: bool = False) -> Iterator[Line]:
    """Check each compiled kernel against NumPy by the driver API, without OneFlow."""
    device: Device
    if emulated:
        device = EmulatedGpu()
    else:
        device = Gpu(cuda_build.ensure_compiled(nvrtc.architecture_for(compute_capabilities()[0])))
    for name in sorted(kernel_names() - WITHIN_OTHERS):
        if name not in CASES:
            yield Line("kernels", name, "FAIL", 0, "no case in tests/gpu/cases.py")
        elif budget.left() <= 0:
            yield Line("kernels", name, "FAIL", 0, budget.spent())
        else:
            yield _one_kernel(device, name, CASES[name])


def _one_kernel(device: Device, name: str, case: Callable[[Device], Launched]) -> Line:
    start = time.monotonic()
    try:
        launched = case(device)
        worst = max(_excess(*pair, launched) for pair in launched.pairs)
        duration = device.microseconds(launched.again)
    except Exception as error:  # continue with the other kernels after any error
        return Line("kernels", name, "FAIL", time.monotonic() - start, f"{type(error).__name__}: {error}")
    speed = "" if duration is None else f"{duration:.1f} us, {launched.bytes_moved / duration / 1000:.0f} GB/s"
    if worst > 0:
        return Line("kernels", name, "FAIL", time.monotonic() - start, f"beyond the bound by {worst:.3g}; {speed}")
    return Line("kernels", name, "PASS", time.monotonic() - start, speed)


def _excess(got: np.ndarray, want: np.ndarray, launched: Launched) -> float:
    """Return by how much the worst error exceeds its bound; at most 0 if none does."""
    ours, exact = got.astype(np.float64), want.astype(np.float64)
    excess = np.abs(ours - exact) - launched.relative * np.abs(exact) - launched.absolute
    return float(np.where(np.isnan(excess), np.inf, excess).max())


def pictures(budget: StageBudget) -> Iterator[Line]:
    """Compare DALI's images on the GPU with the CPU's by the GPU tests of the pipelines."""
    build = "from kernels.plugin import load_plugin; load_plugin('require', 'cuda:0')"
    yield _command(budget, "plugin compiled and loaded", [sys.executable, "-c", build])
    yield _tests(budget, "tests/pipelines")


def training(budget: StageBudget) -> Iterator[Line]:
    """Check OneFlow: steps against the CPU, whole trainings, validation, two ranks."""
    yield _tests(budget, "tests/graph_train")
    with tempfile.TemporaryDirectory() as folder:
        small = ["--data=shapes", "--cfg=yolov5n.yaml", "--imgsz=64", "--batch-size=16", "--kernels=require"]
        train = [sys.executable, "-m", "graph_train", *small, f"--project={folder}"]
        yield _command(budget, "float32", [*train, "--device=0", "--no-amp", "--epochs=1", "--name=float32"])
        yield _command(budget, "AMP", [*train, "--device=0", "--amp", "--epochs=1", "--name=amp"])
        yield _command(budget, "20 epochs", [*train, "--device=0", "--epochs=20", "--name=long"])
        weights = f"--weights={folder}/long/weights/best.safetensors"
        validate = [sys.executable, "-m", "graph_train.cli.val", weights, "--data=shapes", "--imgsz=64", "--device=0"]
        yield _command(budget, "validation", validate)
        if len(compute_capabilities()) < 2:
            yield Line("training", "two ranks", "SKIP", 0, "one GPU")
        else:
            ranks = ["-m", "oneflow.distributed.launch", "--nproc_per_node", "2", *train[1:]]
            yield _command(budget, "two ranks", [sys.executable, *ranks, "--epochs=1", "--name=ranks"])


def speed(budget: StageBudget, *, torch_python: str | None = None) -> Iterator[Line]:
    """Time our ops against PyTorch, if an interpreter has it, in float16 and channels last.

    It checks nothing, so it is skipped if the earlier stages have used up its time.
    """
    if budget.left() < LEAST_FOR_SPEED:
        yield Line("speed", "ours", "SKIP", 0, f"{budget.left():.0f} s are left, {LEAST_FOR_SPEED} are needed")
        return
    ours, problem = _times(budget, "ours", sys.executable)
    if problem is not None:
        yield problem
        return
    theirs: dict[str, float] = {}
    interpreter = find_torch(torch_python)
    if interpreter is not None:
        theirs, problem = _times(budget, "pytorch", str(interpreter))
        if problem is not None:
            yield problem
    for name, duration in ours.items():
        beside = f"PyTorch {theirs[name]:.1f} us" if name in theirs else "no PyTorch here: see --torch-python"
        yield Line("speed", name, "PASS", duration / 1e6, f"{duration:.1f} us; {beside}")


def _times(
    budget: StageBudget, side: str, interpreter: str, device: str = "cuda:0", size: str = "whole"
) -> tuple[dict[str, float], Line | None]:
    """Return the microseconds of each case of `tests.gpu.speed`, or a line with the reason for skipping."""
    line = _command(budget, side, [interpreter, "-m", "tests.gpu.speed", side, device, size], longest_note=10_000)
    if line.result != "PASS":
        return {}, line
    return json.loads(line.note), None


def _tests(budget: StageBudget, folder: str) -> Line:
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "gpu", "--kernels", "require", folder]
    return _command(budget, f"pytest -m gpu {folder}", command)


def _command(budget: StageBudget, name: str, command: list[str], *, longest_note: int = 300) -> Line:
    stage, left, start = budget.stage, budget.left(), time.monotonic()
    if left <= 0:
        return Line(stage, name, "FAIL", 0, budget.spent())
    timeout = left if math.isfinite(left) else None
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Line(stage, name, "FAIL", time.monotonic() - start, f"no end after {left:.0f} s; {budget.spent()}")
    seconds, said = time.monotonic() - start, (ran.stdout + ran.stderr).strip().splitlines()
    if ran.returncode == _NOTHING_COLLECTED and "pytest" in command:
        return Line(stage, name, "SKIP", seconds, "no such tests")
    if ran.returncode == 0 and "pytest" in command and " passed" not in said[-1]:
        return Line(stage, name, "FAIL", seconds, f"nothing was tested: {said[-1]}")
    note = " | ".join(said[-3:]) if ran.returncode else (said[-1] if said else "")
    return Line(stage, name, "FAIL" if ran.returncode else "PASS", seconds, note[:longest_note])
