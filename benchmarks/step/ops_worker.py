"""Worker of `graph-bench ops`, which compiles one training step and counts its ops and CUDA launches."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness.channel import serve
from benchmarks.harness.points import Point, write_point
from benchmarks.step import step_worker
from graph_train.ranks.placement import Placement
from kernels.framework.activation_type import ActivationType
from kernels.framework.coverage import covered_ops, job_ops, plugin_lines
from kernels.plugin import PluginMode, load_plugin, plugin_library

_BATCH, _IMAGE_PX = 1, 64
Part = Literal["loss", "update", "forward", "backward"]
_UPDATE = frozenset({"update_parameters", "begin_step"})


def compiled_ops(model: str, device: str, kernels: PluginMode, kind: str = "FLOAT32") -> dict[str, Any]:
    """Compile the step of a model and execute it twice.

    Args:
        model: name of the model yaml without suffix.
        device: device name of OneFlow, such as "cpu".
        kernels: "require", "off", or "emulated-cuda" for the step as on CUDA.
        kind: activation type.
    Returns:
        "ops": the count of each op in the compiled step, without OneFlow's host ops; its built-in kinds end in `_conf`.
        "covered": the ops with one of our CUDA kernels. "started": the launches of each kernel or library call per
        step on CUDA.
    """
    load_plugin(kernels)
    with tempfile.TemporaryDirectory(prefix="graph-bench-") as folder:
        write_point(Path(folder), Point(model, _BATCH, _IMAGE_PX))
        step_worker.prepare_kind(Placement(device), Path(folder), ActivationType[kind], graph=True)
    ops = job_ops(step_worker.step_job())
    if kernels != "emulated-cuda":
        return {"ops": ops, "covered": [], "started": {}}
    plugin_library().graph_train_cuda_reset_counts()
    step_worker.steps(1)
    return {"ops": ops, "covered": sorted(covered_ops()), "started": started()}


def started() -> dict[str, int]:
    """Return the CUDA calls since the last reset: kernels, cuDNN calls, memory operations."""
    pairs = (line.rsplit(" ", 1) for line in plugin_lines("graph_train_cuda_counts"))
    return {name: int(number) for name, number in pairs}


def part_of(kernel: str) -> Part:
    """Return the part of a step that launches this kernel or library call."""
    if kernel.startswith("detection_loss"):
        return "loss"
    if kernel in _UPDATE:
        return "update"
    backward = ("grad", "split", "unpack", "fill", "add_bias_sums", "cudnn_data", "cudnn_filter")
    return "backward" if any(word in kernel for word in backward) else "forward"


def launches_by_part(counts: Mapping[str, int]) -> dict[Part, int]:
    """Return the launches in each part of a step; additions of activations count as backward, where most are."""
    parts: dict[Part, int] = {"loss": 0, "update": 0, "forward": 0, "backward": 0}
    for kernel, number in counts.items():
        parts["backward" if kernel.startswith("add_n") else part_of(kernel)] += number
    return parts


if __name__ == "__main__":
    serve({"compiled_ops": compiled_ops})
