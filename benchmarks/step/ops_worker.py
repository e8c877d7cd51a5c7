"""Worker of `graph-bench ops`: compiles one training step, and reads from it which ops it has and what CUDA starts."""

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
        model: name of its yaml, less the ending.
        device: OneFlow's, such as "cpu".
        kernels: "require", "off", or "emulated-cuda" for the step that CUDA gets.
        kind: the activation type.
    Returns:
        "ops": op -> how often it stands in the compiled step, less what OneFlow keeps on the host; its own kinds end
        in `_conf`. "covered": ops with a CUDA kernel of ours. "started": kernel or library call -> how often one step
        starts it on CUDA.
    """
    load_plugin(kernels)
    with tempfile.TemporaryDirectory(prefix="graph-bench-") as folder:
        write_point(Path(folder), Point(model, _BATCH, _IMAGE_PX))
        step_worker.prepare_kind(Placement(device), Path(folder), ActivationType[kind], graph=True)
    ops = job_ops(step_worker.compiled_graph())
    if kernels != "emulated-cuda":
        return {"ops": ops, "covered": [], "started": {}}
    plugin_library().graph_train_cuda_reset_counts()
    step_worker.steps(1)
    return {"ops": ops, "covered": sorted(covered_ops()), "started": started()}


def started() -> dict[str, int]:
    """Return the calls of CUDA since the counts were reset: kernels, calls of cuDNN, memory operations."""
    pairs = (line.rsplit(" ", 1) for line in plugin_lines("graph_train_cuda_counts"))
    return {name: int(number) for name, number in pairs}


def part_of(kernel: str) -> Part:
    """Return which part of a step starts this kernel or library call."""
    if kernel.startswith("detection_loss"):
        return "loss"
    if kernel in _UPDATE:
        return "update"
    backward = ("grad", "split", "unpack", "fill", "add_bias_sums", "cudnn_data", "cudnn_filter")
    return "backward" if any(word in kernel for word in backward) else "forward"


def launches_by_part(counts: Mapping[str, int]) -> dict[Part, int]:
    """Add up what is started in each part of a step; sums of activations count as backward, where most of them are."""
    parts: dict[Part, int] = {"loss": 0, "update": 0, "forward": 0, "backward": 0}
    for kernel, number in counts.items():
        parts["backward" if kernel.startswith("add_n") else part_of(kernel)] += number
    return parts


if __name__ == "__main__":
    serve({"compiled_ops": compiled_ops})
