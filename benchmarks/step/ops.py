"""`graph-bench ops`: all ops of a compiled training step, whose kernel computes them, and the CUDA launches."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import add_quick
from benchmarks.harness.tables import Table
from benchmarks.harness.workers import Worker
from kernels.framework.coverage import COPIES, needs_no_code, uncovered_ops

PLUGIN, OWN, NOTHING, NOBODY = "plugin", "OneFlow", "no code needed", "nobody"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg`."""
    add_quick(parser)
    parser.add_argument("--cfg", default="yolov5s", help="model yaml")


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Compile the step with the CPU kernels, and with the CUDA kernels emulated on the CPU."""
    from benchmarks.step.ops_worker import launches_by_part

    model = "yolov5n" if flags.quick else flags.cfg.removesuffix(".yaml")
    cpu = _compiled(flags, model, "require")
    cuda = _compiled(flags, model, "emulated-cuda")
    covered = frozenset(cuda["covered"])
    rows = [
        {
            "op": name,
            "in_step": cpu["ops"].get(name, 0),
            "in_cuda_step": cuda["ops"].get(name, 0),
            "cuda": computed_by(name, covered),
        }
        for name in sorted({*cpu["ops"], *cuda["ops"]}, key=lambda name: (-cuda["ops"].get(name, 0), name))
    ]
    copies = sum(number for name, number in cuda["ops"].items() if name in COPIES)
    return {
        "rows": rows,
        "model": model,
        "cuda": {
            "uncovered": uncovered_ops(cuda["ops"], covered),
            "launches_per_step": sum(cuda["started"].values()) + copies,
            "launches": {**launches_by_part(cuda["started"]), "copies": copies},
            "started": cuda["started"],
        },
    }


def _compiled(flags: argparse.Namespace, model: str, kernels: str) -> dict[str, Any]:
    with Worker("ops", "benchmarks.step.ops_worker", threads=flags.threads) as worker:
        return dict(worker.call("compiled_ops", model=model, device="cpu", kernels=kernels))


def computed_by(name: str, covered: Iterable[str]) -> str:
    """Return whose kernel computes an op on CUDA; cuDNN's count as the plugin's."""
    if name in covered:
        return PLUGIN
    if needs_no_code(name):
        return NOTHING
    return NOBODY if name.startswith("graph_train_") else OWN


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return tables of the ops and of the launches per step."""
    cells = tuple(
        (row["op"], str(row["in_step"]), str(row["in_cuda_step"]), row["cuda"])
        for row in body["rows"]
        if not row["op"].endswith("_conf")
    )
    cuda = body["cuda"]
    parts = tuple((part, str(number)) for part, number in cuda["launches"].items())
    note = (
        "Counted, not timed: the CUDA kernels were executed on the CPU. Without a kernel on CUDA: "
        f"{', '.join(cuda['uncovered']) or 'none'}."
    )
    return [
        Table(f"Ops of a compiled step of {body['model']}", ("op", "on a CPU", "on CUDA", "computed by"), cells),
        Table(
            "What one step starts on CUDA",
            ("part", "kernels, library calls and copies"),
            (*parts, ("all", str(cuda["launches_per_step"]))),
            (note,),
        ),
    ]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot the CUDA launches per step by part."""
    from benchmarks.harness.plots import bars

    group = {part: (float(number),) * 3 for part, number in body["cuda"]["launches"].items()}
    bars(
        {"CUDA": {part: (a, b, c) for part, (a, b, c) in group.items()}},
        path,
        title=f"Kernels, library calls and copies of a step of {body['model']}",
        unit="launches",
    )
