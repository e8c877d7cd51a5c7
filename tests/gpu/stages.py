"""The stages of the kit that need OneFlow or DALI; each yields its lines of the table."""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kernels.host.cuda_devices import compute_capabilities
from tests.gpu.base import Line
from tests.gpu.budget import MIN_SPEED_SECONDS, StageBudget
from tests.gpu.commands import run_command
from tests.models.every_block import EVERY_BLOCK


def pictures(budget: StageBudget) -> Iterator[Line]:
    """Compare DALI's images on the GPU with the CPU's by the GPU tests of the pipelines."""
    build = "from kernels.plugin import load_plugin; load_plugin('require', 'cuda:0')"
    yield run_command(budget, "plugin compiled and loaded", [sys.executable, "-c", build])
    yield _tests(budget, "tests/pipelines")


def training(budget: StageBudget) -> Iterator[Line]:
    """Check OneFlow: steps against the CPU, whole trainings, validation, two ranks."""
    yield _tests(budget, "tests/graph_train")
    with tempfile.TemporaryDirectory() as folder:
        every_block = Path(folder) / "every_block.yaml"
        every_block.write_text(json.dumps(EVERY_BLOCK))  # JSON is YAML
        small = ["--data=shapes", "--imgsz=64", "--batch-size=16", "--kernels=require", f"--project={folder}"]
        train, yolov5n = [sys.executable, "-m", "graph_train", *small], "--cfg=yolov5n.yaml"
        for name, flags in (
            ("float32", [yolov5n, "--no-amp", "--epochs=1"]),
            ("AMP", [yolov5n, "--amp", "--epochs=1"]),
            ("20 epochs", [yolov5n, "--epochs=20"]),
            ("every block", [f"--cfg={every_block}", "--epochs=1"]),
        ):
            yield run_command(budget, name, [*train, "--device=0", f"--name={name}", *flags])
        weights = f"--weights={folder}/20 epochs/weights/best.safetensors"
        given = ["--data=shapes", "--imgsz=64", "--device=0", f"--project={folder}/val"]
        validate = [sys.executable, "-m", "graph_train.cli.val", weights, *given]
        yield run_command(budget, "validation", validate)
        yield run_command(budget, "validation --augment", [*validate, "--augment"])
        if len(compute_capabilities()) < 2:
            yield Line("training", "two ranks", "SKIP", 0, "one GPU")
        else:
            ranks = ["-m", "oneflow.distributed.launch", "--nproc_per_node", "2", *train[1:]]
            yield run_command(budget, "two ranks", [sys.executable, *ranks, yolov5n, "--epochs=1", "--name=ranks"])


def speed(budget: StageBudget, *, torch_python: str | None = None) -> Iterator[Line]:
    """Time our ops against PyTorch, if an interpreter has it, in float16 and channels last.

    It checks nothing, so it is skipped if the earlier stages have used up its time.
    """
    from benchmarks.step.competitors import find_torch  # needs more than NumPy, which is all that the first stage has

    if budget.left() < MIN_SPEED_SECONDS:
        yield Line("speed", "ours", "SKIP", 0, f"{budget.left():.0f} s are left, {MIN_SPEED_SECONDS} are needed")
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
    yield from step_times(budget, interpreter, _VARIANTS if interpreter else _VARIANTS[:2])


_VARIANTS = ("plugin-graph-amp", "plugin-graph", "pytorch-amp", "pytorch-channels-last")


def step_times(
    budget: StageBudget,
    interpreter: Path | None,
    variants: Sequence[str],
    *,
    device: str = "0",
    point: str = "yolov5s:16:640",
) -> Iterator[Line]:
    """Time whole training steps with `graph-bench step`, PyTorch's with its interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "step.json"
        flags = ["--device", device, "--points", point, "--repeats", "3", "--json", str(file)]
        beside = ["--torch-python", str(interpreter)] if interpreter else []
        command = [sys.executable, "-m", "benchmarks.cli", "step", *flags, *beside, "--variants", *variants]
        line = run_command(budget, f"step {point}", command)
        if line.result != "PASS":
            yield line
            return
        for row in json.loads(file.read_text())["rows"]:
            note = f"{row['ms_per_step']:.1f} ms, {row['images_per_second']:.0f} images/s"
            yield Line("speed", f"{row['variant']} {point}", "PASS", row["ms_per_step"] / 1000, note)


def _times(
    budget: StageBudget, side: str, interpreter: str, device: str = "cuda:0", size: str = "whole"
) -> tuple[dict[str, float], Line | None]:
    """Return the microseconds of each case of `tests.gpu.speed`, or a line with the reason for skipping."""
    line = run_command(budget, side, [interpreter, "-m", "tests.gpu.speed", side, device, size], longest_note=10_000)
    if line.result != "PASS":
        return {}, line
    return json.loads(line.note), None


def _tests(budget: StageBudget, folder: str) -> Line:
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "gpu", "--kernels", "require", folder]
    return run_command(budget, f"pytest -m gpu {folder}", command)
