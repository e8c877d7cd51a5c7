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
    "ceilings": Entry("benchmarks.step.ceilings", "how fast this machine multiplies matrices and copies memory", ()),
    "step": Entry(
        "benchmarks.step.whole_step", "the whole training step: our kernels and OneFlow's, graph and eager, PyTorch", ()
    ),
    "graph-vs-eager": Entry("benchmarks.step.graph_vs_eager", "what the graph gains, and when compiling has paid"),
    "peers": Entry(
        "benchmarks.step.peers_comparison", "our step against PyTorch's ways, and OneFlow as it comes", None
    ),
    "kernels": Entry("benchmarks.step.kernels", "each fused kernel against what it replaces", ()),
    "end-to-end": Entry(
        "benchmarks.training.end_to_end", "epochs through the command line, and through PyTorch and OpenCV"
    ),
    "inference": Entry(
        "benchmarks.inference.inference",
        "validation and prediction as whole commands compared with YOLOv5, and the network with onnxruntime",
        None,
    ),
    "scaling": Entry("benchmarks.step.scaling", "one batch on more and more ranks, and the bytes they send", None),
    "ops": Entry("benchmarks.step.ops", "every op of a compiled step: how long it takes, and who computes it"),
    "saving": Entry(
        "benchmarks.resilience.saving", "what saving costs, and how soon a resumed run is back at work", ()
    ),
    "start": Entry(
        "benchmarks.resilience.start", "how long the first training step and the prediction of one image take", None
    ),
    "kills": Entry(
        "benchmarks.resilience.kills", "trainings that are killed at random moments and resumed, byte for byte", None
    ),
    "accuracy": Entry(
        "benchmarks.training.accuracy",
        "whether it trains as well as PyTorch, and as well with --amp, over several seeds",
        None,
    ),
    "soak": Entry("benchmarks.resilience.soak", "what a long training holds: memory, files, threads", None),
    "pipeline": Entry(
        "benchmarks.data.pipeline", "images per second of the data pipeline and its stages, and of OpenCV", ()
    ),
    "data-scale": Entry(
        "benchmarks.data.data_scale", "processor time and memory for 118,287 images before and during the steps", None
    ),
}

COMMANDS: Mapping[str, Entry] = {
    "all": Entry("benchmarks.all_benchmarks", "runs the shorter benchmarks sequentially into one folder"),
    "report": Entry("benchmarks.report", "turns result files into docs/benchmarks.md with pictures"),
}
"""Subcommands that are not benchmarks; they have `add_arguments(parser)` and `run(flags) -> exit code`."""
