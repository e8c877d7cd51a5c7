"""One rank of a job that builds a run as for a GPU, does a step on the CPU and records how it is computed.

`python run_of_a_gpu_job.py OUT FLAGS CAPABILITIES`, in an environment as set by torchrun. FLAGS: as JSON. CAPABILITIES:
the compute capabilities of the ranks, such as `7.5 8.0`. It also runs with the code of commit e1be6a7 for comparison,
so it uses only what that commit has.
"""

import json
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, get_args

from graph_train.ranks import team

ACTIVATION_DIMENSIONS = 4
"""Dimensions of (B, C, H, W) and (B, H, W, C)."""
SUMS = ("reduce_sum", "reduce_mean", "graph_train_channel_", "graph_train_normalise_sums")
"""Beginnings of the names of OneFlow's ops and ours that add up activations."""


def main(out: Path, flags: dict[str, Any], capabilities: list[str]) -> None:
    """Write the step's compiled jobs and losses to a file, on rank 0."""
    info = team.join().info  # before anything imports OneFlow
    from graph_train.settings.hyperparameters import load_hyperparameters
    from graph_train.settings.train_options import options_from_flags
    from graph_train.training import assembly
    from kernels.plugin import PluginMode, load_plugin
    from kernels.runtime import flow

    load_plugin("emulated-cuda" if "emulated-cuda" in get_args(PluginMode) else "require")
    _pretend_a_gpu(assembly, info, capabilities[info.rank])
    options = options_from_flags(**flags)
    known = signature(assembly.assemble).parameters
    possible: dict[str, Any] = {
        "rank": info,
        "fit_anchors": False,
        "any_anchors": True,
    }  # the last one: its former name
    given = {name: value for name, value in possible.items() if name in known}
    run = assembly.assemble(options, load_hyperparameters(options.optim.hyp), **given)
    placement = run.setup.placement
    images = placement.empty_batch((flags["batch_size"], 3, flags["imgsz"], flags["imgsz"]), flow.uint8)
    labels = placement.empty_batch((flags["batch_size"], 5, 5), flow.float32)
    step: Any = run.step
    result = step(images, labels, run.schedule.at(0, 0))
    run.close()
    if info.rank == 0:
        jobs = [_job(graph) for graph in step._graphs.values()]
        network: Any = run.state.network
        kind = network.activation_type.name if hasattr(network, "activation_type") else "not known"
        found = {"loss": result.total, "activations": kind, "jobs": [_described(job) for job in jobs]}
        out.write_text(json.dumps(found), encoding="utf-8")
    team.current().report_done()


def _pretend_a_gpu(assembly: Any, info: Any, capability: str) -> None:
    """Pretend a GPU wherever a run decides how to compute; tensors stay on the CPU."""
    from graph_train.ranks.placement import Placement
    from graph_train.training.setup import Setup
    from kernels.runtime import flow

    pipelines, check_amp = assembly._pipelines, getattr(assembly, "checked_activation_type", None)
    assembly.run_device = lambda *_: f"cuda:{info.local_rank}"
    assembly._pipelines = lambda setup, stride: pipelines(replace(setup, device="cpu"), stride)
    assembly.checked_activation_type = check_amp and (lambda network, wanted, _: check_amp(network, wanted, "cpu"))
    Setup.placement = property(lambda _: Placement("cpu", info.rank, info.world))  # type: ignore[assignment]
    flow.cuda.get_device_capability = lambda _: tuple(map(int, capability.split(".")))
    flow.cuda.get_device_name = lambda _: "pretended"


def _job(graph: Any) -> Any:
    """Return OneFlow's description of a compiled graph."""
    from kernels.runtime import flow

    return flow.core.job.job_pb2.Job.FromString(graph._c_nn_graph.get_current_job_str())


def _described(job: Any) -> dict[str, Any]:
    """Return whether OneFlow's mixed precision is on, and the sums over activations with the type that stores them."""
    from kernels.runtime import flow

    types = flow.core.common.data_type_pb2.DataType
    tensors, sums = job.helper.lbn2logical_blob_desc, []
    for op in job.net.op:
        read, written = (_first(argument) for argument in (op.user_conf.input, op.user_conf.output))
        if not op.user_conf.op_type_name.startswith(SUMS) or len(tensors[read].shape.dim) != ACTIVATION_DIMENSIONS:
            continue
        sums.append([op.user_conf.op_type_name, types.Name(tensors[written].data_type)])
    return {"oneflow_amp": job.job_conf.enable_auto_mixed_precision, "sums": sums}


def _first(arguments: Any) -> str:
    """Return the name of an op's first tensor."""
    return next((str(names.s[0]) for names in arguments.values()), "")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
