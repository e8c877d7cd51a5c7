"""The subcommands of `graph-bench`.

To add a benchmark, write one module and add one line to `BENCHMARKS`. The module has four functions and no heavy
imports at its top, so that `--help` stays fast (`benchmarks.step.ceilings` is a complete example):

- `add_arguments(parser)`: adds its own flags and those of `benchmarks.harness.flags` that it uses; the flags of
  `benchmarks.cli.add_common_arguments` are there already.
- `run(flags) -> dict`: measures and returns JSON data: "rows", a list of flat mappings, and anything else worth
  keeping. Machine, versions, commit and flags are added by `benchmarks.harness.results.envelope`.
- `tables(body) -> list[benchmarks.harness.tables.Table]`: formats the result as tables.
- `plot(body, path)`: plots the result (`benchmarks.harness.plots`).

Measure with `benchmarks.harness.measure.take_turns`: the competitors run in turn (A B A B …) within one run, after a
warm-up. Report medians and quartiles, and take ratios within each turn. Competitors that cannot share a process
(kernels with and without the plugin, PyTorch) run in worker processes, see `benchmarks.harness.workers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One subcommand.

    Attributes:
        module: module with its functions.
        summary: one line for `graph-bench --help` and the report page.
        in_all: its flags in `graph-bench all`; None leaves it out. All together take less than 25 minutes on two idle
            cores.
    """

    module: str
    summary: str
    in_all: tuple[str, ...] | None = ("--quick",)


BENCHMARKS: Mapping[str, Entry] = {
    "ceilings": Entry("benchmarks.step.ceilings", "speed of matrix products and memory copies on this machine", ()),
    "step": Entry(
        "benchmarks.step.whole_step",
        "the training step with our and OneFlow's kernels, as a graph and eagerly, and in PyTorch",
        (),
    ),
    "graph-vs-eager": Entry(
        "benchmarks.step.graph_vs_eager",
        "speedup of the compiled step over the eager one, and steps until compiling pays off",
    ),
    "peers": Entry(
        "benchmarks.step.peers_comparison", "our training step compared with PyTorch and stock OneFlow", None
    ),
    "kernels": Entry("benchmarks.step.kernels", "each fused kernel compared with the ops that it replaces", ()),
    "end-to-end": Entry(
        "benchmarks.training.end_to_end", "epochs of graph-train compared with a PyTorch loop and an OpenCV loader"
    ),
    "inference": Entry(
        "benchmarks.inference.inference",
        "validation and prediction as whole commands compared with YOLOv5, and the network with onnxruntime",
        None,
    ),
    "scaling": Entry("benchmarks.step.scaling", "strong scaling over ranks, and the bytes that they send", None),
    "ops": Entry("benchmarks.step.ops", "time and kernel owner of every op of a compiled step"),
    "saving": Entry(
        "benchmarks.resilience.saving", "cost of saving checkpoints, and time until a resumed run trains again", ()
    ),
    "start": Entry(
        "benchmarks.resilience.start", "time until the first training step, and until one image is predicted", None
    ),
    "kills": Entry(
        "benchmarks.resilience.kills", "trainings killed at random moments and resumed, compared byte for byte", None
    ),
    "accuracy": Entry(
        "benchmarks.training.accuracy",
        "accuracy compared with PyTorch, and of --amp with float32, over several seeds",
        None,
    ),
    "soak": Entry("benchmarks.resilience.soak", "memory, file descriptors and threads during a long training", None),
    "pipeline": Entry(
        "benchmarks.data.pipeline", "images per second of the data pipeline, of its stages, and of an OpenCV loader", ()
    ),
    "data-scale": Entry(
        "benchmarks.data.data_scale", "processor time and memory for 118,287 images before and during the steps", None
    ),
}

COMMANDS: Mapping[str, Entry] = {
    "all": Entry("benchmarks.all_benchmarks", "run the shorter benchmarks sequentially"),
    "report": Entry("benchmarks.report", "write docs/benchmarks.md with plots from result files"),
}
"""Subcommands that are not benchmarks; they have `add_arguments(parser)` and `run(flags) -> exit code`."""
