"""The GPU test kit: `python -m tests.gpu [--json FILE] [--emulated] [--torch-python PYTHON]`.

Tests the kernels alone, DALI's images and OneFlow, and compares speed with PyTorch, within ten minutes. Prints a table
of PASS, FAIL and SKIP with times. Exit code 0: nothing failed, 1: something failed or a kernel has no case, 2: no GPU.
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

from kernels.host.cuda_devices import compute_capabilities
from tests.gpu.budget import UNLIMITED, StageBudget, all_seconds, stage_budgets
from tests.gpu.stages import Line, kernels_alone, pictures, speed, training

Stage = Callable[[StageBudget], Iterable[Line]]


def main(arguments: list[str]) -> int:
    """Run all stages, print the table and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--emulated", action="store_true", help="kernels alone, on the emulated device")
    parser.add_argument("--torch-python", help="interpreter with PyTorch, to compare with our ops")
    options = parser.parse_args(arguments)
    table = _Table(options.json)
    if options.emulated:
        table.add_all(kernels_alone(UNLIMITED, emulated=True))
        return table.finish()
    if not compute_capabilities():
        print("no GPU here, or no NVIDIA driver: nothing was run", file=sys.stderr)
        return 2
    budgets = stage_budgets()
    end_when_overdue(table, all_seconds())
    stages: tuple[Stage, ...] = (kernels_alone, pictures, training, partial(speed, torch_python=options.torch_python))
    for stage, budget in zip(stages, budgets, strict=True):
        table.add_all(stage(budget))
    return table.finish()


class _Table:
    """The table, whose lines are printed as they are added."""

    def __init__(self, file: Path | None) -> None:
        self._file, self._lines = file, list[Line]()

    def add_all(self, lines: Iterable[Line]) -> None:
        for line in lines:
            print(f"{line.result:4}  {line.stage:8}  {line.name:28}  {line.seconds:8.3f} s  {line.note}", flush=True)
            self._lines.append(line)

    def finish(self) -> int:
        """Print the totals, write the JSON file and return the exit code."""
        failed = sum(line.result == "FAIL" for line in self._lines)
        print(f"{len(self._lines)} lines, {failed} failed", flush=True)
        if self._file:
            gpus = [f"{major}.{minor}" for major, minor in compute_capabilities()]
            lines = [asdict(line) for line in self._lines]
            self._file.write_text(json.dumps({"gpus": gpus, "lines": lines}, indent=1))
        return 1 if failed else 0


def end_when_overdue(table: _Table, seconds: float) -> None:
    """End the process with what the table has when a kernel that never returns keeps it beyond its time."""

    def end() -> None:
        table.add_all([Line("kit", "all stages", "FAIL", seconds, f"no end after {seconds:.0f} s")])
        os._exit(table.finish())

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
