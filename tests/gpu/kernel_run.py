"""Execution of kernel cases: on a GPU in a child process, `python -m tests.gpu.kernel_run ARCHIVE NAME...`.

A kernel that reads a wrong address makes the GPU unusable for its process, and one that never ends blocks it, so
`tests.gpu.kernel_stage` starts a new process for the kernels after it. The process writes lines of JSON: first the GPU,
then one for each case.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from kernels.build.cuda_build import read_archive
from tests.gpu.base import Launched, Line
from tests.gpu.cases import CASES, LARGE_CASES
from tests.gpu.devices import Device, Gpu

BROKEN = 3
"""Exit code after a case that makes the GPU unusable for its process."""


def run_case(device: Device, name: str, case: Callable[[Device], Launched]) -> Line:
    """Run a case, compare its results and time the kernel."""
    start = time.monotonic()
    try:
        launched = case(device)
        worst = max(_excess(*pair, launched) for pair in launched.pairs)
        duration = device.microseconds(launched.again)
        device.free_all()
    except Exception as error:  # whatever it is, the other kernels are still to be tried
        return Line("kernels", name, "FAIL", time.monotonic() - start, f"{type(error).__name__}: {error}")
    speed = "" if duration is None else f"{duration:.1f} us, {launched.bytes_moved / duration / 1000:.0f} GB/s"
    if worst > 0:
        return Line("kernels", name, "FAIL", time.monotonic() - start, f"exceeds the bound by {worst:.3g}; {speed}")
    return Line("kernels", name, "PASS", time.monotonic() - start, speed)


def _excess(got: np.ndarray, want: np.ndarray, launched: Launched) -> float:
    """Return the largest excess of an error over its bound; at most 0 if there is none."""
    ours, exact = got.astype(np.float64), want.astype(np.float64)
    excess = np.abs(ours - exact) - launched.relative * np.abs(exact) - launched.absolute
    return float(np.where(np.isnan(excess), np.inf, excess).max())


def main(archive: str, names: list[str]) -> int:
    """Run the cases until one makes the GPU unusable, and return the exit code."""
    device = Gpu(read_archive(Path(archive)))
    print(json.dumps({"gpu": device.name, "driver": device.driver_version()}), flush=True)
    cases = {**CASES, **LARGE_CASES}
    for name in names:
        print(json.dumps(asdict(run_case(device, name, cases[name]))), flush=True)
        if not device.works():
            return BROKEN
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
