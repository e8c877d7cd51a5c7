"""The GPU test kit: `python -m tests.gpu [--json FILE] [--stages NAME,NAME] [--archive FILE] [--torch-python PYTHON]`.

Tests the kernels alone, DALI's images and OneFlow, and compares speed with PyTorch, within ten minutes. Prints a table
of PASS, FAIL and SKIP with times. Exit code 0: nothing failed, 1: something failed or a kernel has no case, 2: no GPU.

The stage `kernels` needs Python and NumPy only, given the file that `--compile sm_90 --archive FILE` writes elsewhere.
It launches each of our CUDA kernels with arguments made by the cases, on random tensors, and compares the results with
NumPy's, computed anew by the cases' own formulas. It does not test cuDNN's convolutions, the host side of the
ops, OneFlow or DALI; `training` and `pictures` do.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from kernels.build.cuda_build import write_archive
from kernels.host.cuda_devices import compute_capabilities
from tests.gpu.base import Line
from tests.gpu.budget import SECONDS, StageBudget, all_seconds, stage_budgets
from tests.gpu.commands import end_all
from tests.gpu.kernel_stage import kernels_alone, kernels_emulated
from tests.gpu.stages import pictures, speed, training

Stage = Callable[[StageBudget], Iterable[Line]]


def main(arguments: list[str]) -> int:
    """Run the stages, print the table and return the exit code."""
    options = _options(arguments)
    if options.compile:
        write_archive(options.compile, options.archive)
        return 0
    table = Table(options.json)
    if options.emulated:
        table.add_all(kernels_emulated())
        return table.finish()
    if not compute_capabilities():
        print("no GPU here, or no NVIDIA driver: nothing was run", file=sys.stderr)
        return 2
    end_when_overdue(table, all_seconds())
    stages: dict[str, Stage] = {
        "kernels": partial(kernels_alone, archive=options.archive),
        "pictures": pictures,
        "training": training,
        "speed": partial(speed, torch_python=options.torch_python),
    }
    for budget in stage_budgets():
        if budget.stage in options.stages:
            table.add_stage(stages[budget.stage], budget)
    return table.finish()


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the table, written after each line")
    parser.add_argument("--stages", type=lambda text: text.split(","), default=list(SECONDS), help="only these stages")
    parser.add_argument("--archive", type=Path, help="compiled kernels; by default they are compiled first")
    parser.add_argument("--compile", metavar="ARCH", help="only compile the kernels, into --archive; needs no GPU")
    parser.add_argument("--emulated", action="store_true", help="kernels alone, on the emulated device")
    parser.add_argument("--torch-python", help="interpreter with PyTorch, to compare with our ops")
    options = parser.parse_args(arguments)
    unknown = [stage for stage in options.stages if stage not in SECONDS]
    if unknown:
        parser.error(f"--stages: {unknown[0]!r} is not one of {', '.join(SECONDS)}")
    if options.compile and not options.archive:
        parser.error("--compile needs --archive, the file to write")
    return options


class Table:
    """The table, whose lines are printed, and written to the JSON file, as they are added."""

    def __init__(self, file: Path | None) -> None:
        self._file, self._lines = file, list[Line]()

    def add_stage(self, stage: Stage, budget: StageBudget) -> None:
        """Add the lines of a stage; an exception is a failure, after which the next stages still run."""
        try:
            self.add_all(stage(budget))
        except Exception as error:
            self.add_all([Line(budget.stage, "the whole stage", "FAIL", 0, f"{type(error).__name__}: {error}")])

    def add_all(self, lines: Iterable[Line]) -> None:
        for line in lines:
            print(f"{line.result:4}  {line.stage:8}  {line.name:28}  {line.seconds:8.3f} s  {line.note}", flush=True)
            self._lines.append(line)
            self._write()

    def _write(self) -> None:
        """Write the file, so that a killed kit leaves its results so far."""
        if self._file is None:
            return
        gpus = [f"{major}.{minor}" for major, minor in compute_capabilities()]
        lines = [asdict(line) for line in self._lines]
        scratch = self._file.with_name(f"{self._file.name}.part")
        scratch.write_text(json.dumps({"gpus": gpus, "lines": lines}, indent=1))
        scratch.replace(self._file)

    def finish(self) -> int:
        """Print the totals and return the exit code."""
        failed = sum(line.result == "FAIL" for line in self._lines)
        print(f"{len(self._lines)} lines, {failed} failed", flush=True)
        return 1 if failed else 0


def end_when_overdue(table: Table, seconds: float) -> None:
    """End the process and its commands, with the table so far, if it exceeds its time."""

    def end() -> None:
        table.add_all([Line("kit", "all stages", "FAIL", seconds, f"did not finish within {seconds:.0f} s")])
        end_all()
        os._exit(table.finish())

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
