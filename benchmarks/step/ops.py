"""`graph-bench ops`: the ops of a compiled training step: kernel owner and time of each on the CPU, launches on
CUDA."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import add_points, add_quick, add_repeats
from benchmarks.harness.points import parse_point
from benchmarks.harness.tables import Table
from benchmarks.harness.workers import Worker
from benchmarks.step.ceilings import ceilings_by_name, measure_ceilings
from benchmarks.step.op_times import measure_point, plot_times, tables_of
from benchmarks.step.whole_step import POINTS, QUICK_POINTS
from kernels.framework.coverage import COPIES, is_copy_or_system_op, uncovered_ops

PLUGIN, ONEFLOW, NO_CODE, NO_KERNEL = "plugin", "OneFlow", "no code needed", "no kernel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add flags: the network whose ops are counted, and the points at which they are timed."""
    add_repeats(parser)
    add_quick(parser)
    parser.add_argument("--cfg", default="yolov5s", help="model yaml whose ops are counted")
    add_points(parser, POINTS)


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Compile the step with CPU kernels, and as on CUDA, with CUDA kernels emulated on the CPU.

    Raises:
        ValueError: another device than the CPU.
    """
    if flags.device != "cpu":
        raise ValueError(f"--device {flags.device}: ops are counted and timed on the CPU only")
    points = [parse_point(text) for text in flags.points or (QUICK_POINTS if flags.quick else POINTS)]
    ceilings = measure_ceilings("cpu", flags.threads, flags.repeats)
    times = [measure_point(point, threads=flags.threads, repeats=flags.repeats) for point in points]
    model = "yolov5n" if flags.quick else flags.cfg.removesuffix(".yaml")
    cpu = _compiled(flags, model, "require")
    cuda, cuda_bfloat16 = (_compiled(flags, model, "emulated-cuda", kind) for kind in ("FLOAT32", "BFLOAT16"))
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
    return {
        "rows": rows,
        "model": model,
        "cuda": {
            "uncovered": uncovered_ops({**cuda["ops"], **cuda_bfloat16["ops"]}, covered),
            **_launches(cuda),
            "bfloat16": _launches(cuda_bfloat16),
        },
        "ceilings": ceilings,
        "times": times,
    }


def _compiled(flags: argparse.Namespace, model: str, kernels: str, kind: str = "FLOAT32") -> dict[str, Any]:
    with Worker("ops", "benchmarks.step.ops_worker", threads=flags.threads) as worker:
        return dict(worker.call("compiled_ops", model=model, device="cpu", kernels=kernels, kind=kind))


def _launches(cuda: Mapping[str, Any]) -> dict[str, Any]:
    """Return the launches of a step compiled for CUDA: in all, by part, by kernel."""
    from benchmarks.step.ops_worker import launches_by_part

    copies = sum(number for name, number in cuda["ops"].items() if name in COPIES)
    return {
        "launches_per_step": sum(cuda["started"].values()) + copies,
        "launches": {**launches_by_part(cuda["started"]), "copies": copies},
        "started": cuda["started"],
    }


def computed_by(name: str, covered: Iterable[str]) -> str:
    """Return the owner of an op's kernel on CUDA; cuDNN's kernels count as the plugin's."""
    if name in covered:
        return PLUGIN
    if is_copy_or_system_op(name):
        return NO_CODE
    return NO_KERNEL if name.startswith("graph_train_") else ONEFLOW


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return tables of op times, op counts, and launches per step."""
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
        *(table for timed in body["times"] for table in tables_of(timed, _matmul_gflops(body))),
        Table(f"Ops of a compiled step of {body['model']}", ("op", "on a CPU", "on CUDA", "computed by"), cells),
        Table(
            "CUDA launches of one step",
            ("part", "kernels, library calls and copies"),
            (*parts, ("all", str(cuda["launches_per_step"]))),
            (note,),
        ),
    ]


def _matmul_gflops(body: Mapping[str, Any]) -> float:
    """Return the ceiling of convolutions."""
    return ceilings_by_name(body["ceilings"])["float32 matmul"]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot the time of the ops."""
    plot_times(body["times"], _matmul_gflops(body), path)
