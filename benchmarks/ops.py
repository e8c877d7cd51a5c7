"""`graph-bench ops`: every op of a compiled training step, and who computes it on a CPU and on CUDA."""

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.flags import add_quick
from benchmarks.tables import Table
from benchmarks.workers import Worker

PLUGIN, LIBRARY, OWN, NOTHING = "plugin", "cuDNN/cuBLAS", "OneFlow", "no code needed"

# OneFlow passes these on to libraries whose wheels hold code for newer GPUs than its own.
_LIBRARY_OPS = frozenset({
    "conv2d", "conv_data_grad", "conv_filter_grad", "matmul", "batch_matmul", "broadcast_matmul",
    "normalization", "normalization_grad",
})  # fmt: skip
# Views, and copies by the driver.
_WITHOUT_CODE = frozenset({"reshape", "reshape_like", "expand_dims", "squeeze", "identity", "assign", "copy"})
_REGISTRATIONS = re.compile(
    r'GT_(CPU|CUDA)_[A-Z_]+\(\s*"(\w+)"|REGISTER_USER_KERNEL\("(\w+)"\)(?=[^;]{0,400}?kC(PU|UDA))'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which network."""
    add_quick(parser)
    parser.add_argument("--cfg", default="yolov5s", help="model yaml")


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Compiles the step twice: with the plugin, and composed of OneFlow's ops, which is what a GPU gets."""
    model = "yolov5n" if flags.quick else flags.cfg.removesuffix(".yaml")
    with_plugin = _compiled_ops(flags, model, plugin=True)
    composed = with_plugin if flags.device != "cpu" else _compiled_ops(flags, model, plugin=False)
    covered = plugin_kernels()
    rows = [
        {
            "op": name,
            "in_step": with_plugin.get(name, 0),
            "cpu": _computed_by(name, covered["cpu"], cuda=False),
            "in_composed_step": composed.get(name, 0),
            "cuda": _computed_by(name, covered["cuda"], cuda=True),
        }
        for name in sorted({*with_plugin, *composed}, key=lambda name: (-with_plugin.get(name, 0), name))
    ]
    return {"rows": rows, "model": model}


def _compiled_ops(flags: argparse.Namespace, model: str, *, plugin: bool) -> dict[str, int]:
    with Worker("ops", "benchmarks.ops_worker", threads=flags.threads) as worker:
        return dict(worker.call("compiled_ops", model=model, device=flags.device, plugin=plugin))


def plugin_kernels(folder: Path | None = None) -> dict[str, frozenset[str]]:
    """Device -> ops for which the plugin's sources register a kernel."""
    if folder is None:
        from kernels.build.plugin_build import SOURCE_FOLDER

        folder = SOURCE_FOLDER
    found: dict[str, set[str]] = {"cpu": set(), "cuda": set()}
    for path in sorted(folder.rglob("*.c*")):
        for first_device, first, second, second_rest in _REGISTRATIONS.findall(path.read_text(encoding="utf-8")):
            device = first_device or f"C{second_rest}"
            found[device.lower()].add(first or second)
    return {device: frozenset(names) for device, names in found.items()}


def _computed_by(name: str, covered: Iterable[str], *, cuda: bool) -> str:
    if name in covered:
        return PLUGIN
    # Kinds that end in _conf are OneFlow's own: variables, inputs, the order of execution.
    if name in _WITHOUT_CODE or name.endswith("_conf"):
        return NOTHING
    if name.startswith("graph_train_"):
        return "–"
    return LIBRARY if cuda and name in _LIBRARY_OPS else OWN


def tables(body: Mapping[str, Any]) -> list[Table]:
    """The list, and how many ops of a step have whose kernels."""
    cells = tuple(
        (row["op"], str(row["in_step"]), row["cpu"], str(row["in_composed_step"]), row["cuda"]) for row in body["rows"]
    )
    columns = ("op", "with the plugin", "on a CPU", "composed", "on CUDA")
    summary = tuple(
        (device, kernel, str(ops), str(count))
        for device, key, column in (("CPU, with the plugin", "cpu", "in_step"), ("CUDA", "cuda", "in_composed_step"))
        for kernel, ops, count in _counted(body["rows"], key, column)
    )
    note = (
        f"'{OWN}' on CUDA: OneFlow 0.9.0's wheel has device code for GPUs up to compute capability 8.9 only; on newer "
        "ones these ops fail. Numbers count the ops of one compiled step."
    )
    return [
        Table(f"Ops of a compiled step of {body['model']}", columns, cells, (note,)),
        Table("Who computes them", ("step", "kernels of", "kinds", "ops"), summary),
    ]


def _counted(rows: Iterable[Mapping[str, Any]], key: str, column: str) -> list[tuple[str, int, int]]:
    kinds: dict[str, list[int]] = {}
    for row in rows:
        if row[column]:
            kinds.setdefault(row[key], []).append(row[column])
    return [(kernel, len(counts), sum(counts)) for kernel, counts in sorted(kinds.items())]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Ops by whose kernel computes them."""
    from benchmarks.plots import bars

    groups = {
        title: {kernel: (float(kinds),) * 3 for kernel, kinds, _ in _counted(body["rows"], key, column)}
        for title, key, column in (("CPU, with the plugin", "cpu", "in_step"), ("CUDA", "cuda", "in_composed_step"))
    }
    bars({title: {kernel: (a, b, c) for kernel, (a, b, c) in group.items()} for title, group in groups.items()}, path,
         title=f"Kinds of ops of a step of {body['model']}", unit="kinds of ops")  # fmt: skip
