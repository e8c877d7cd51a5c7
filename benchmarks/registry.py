"""What `graph-bench` can do, as one visible table.

A new benchmark is one module and one line of `BENCHMARKS`. The module has four functions and imports nothing heavy at
its top, so that `--help` answers at once (`benchmarks.step.ceilings` is a complete example):

- `add_arguments(parser)`: its own flags, and those of `benchmarks.harness.flags` that it uses; those of
  `benchmarks.cli.add_common_arguments` are there already.
- `run(flags) -> dict`: measures. The result is plain data for JSON: "rows", a list of flat mappings, and whatever else
  is worth keeping. Machine, versions, commit and flags are added around it (`benchmarks.harness.results.envelope`).
- `tables(body) -> list[benchmarks.harness.tables.Table]`: the same result to read.
- `plot(body, path)`: the same result as one picture (`benchmarks.harness.plots`).

Measure with `benchmarks.harness.measure.take_turns`: what is compared runs in turn (A B A B …) within one run, after a
warm-up, and is reported as median and quartiles; ratios are taken within each turn. Work that cannot share a process
(kernels with and without the plugin, PyTorch) lives in worker processes, see `benchmarks.harness.workers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One subcommand.

    Attributes:
        module: where its functions are.
        summary: one line for `graph-bench --help` and the report.
        in_all: flags with which `graph-bench all` runs it; None leaves it out. Together they stay below 25 minutes on
            two idle cores.
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
        "validation and prediction as whole commands beside YOLOv5's, and the network beside onnxruntime",
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
        "benchmarks.data.data_scale",
        "processor time and memory that 118,287 images cost before and beside the steps",
        None,
    ),
}

COMMANDS: Mapping[str, Entry] = {
    "all": Entry("benchmarks.all_benchmarks", "runs the shorter benchmarks one after another into one folder"),
    "report": Entry("benchmarks.report", "turns result files into docs/benchmarks.md with pictures"),
}
"""Subcommands that measure nothing themselves: `add_arguments(parser)` and `run(flags) -> exit code`."""
