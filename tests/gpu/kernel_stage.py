"""The first stage of the kit: each kernel alone, by the driver API, without OneFlow."""

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from kernels.build import cuda_build, nvrtc
from kernels.host.cuda_devices import compute_capabilities
from tests.gpu.base import Line
from tests.gpu.budget import StageBudget
from tests.gpu.cases import CASES, LARGE_CASES, WITHIN_OTHERS, kernel_names
from tests.gpu.commands import ROOT, end_group, start_group
from tests.gpu.devices import EmulatedGpu
from tests.gpu.kernel_run import BROKEN, run_case

CASE_SECONDS = 30.0
"""Time limit of one case; the first one includes the start of its process."""


def kernels_alone(budget: StageBudget, archive: Path | None = None) -> Iterator[Line]:
    """Check each compiled kernel against NumPy; cases with the sizes of a training come last.

    Args:
        budget: the time limit of the stage.
        archive: the compiled kernels, if they are not to be compiled here.
    """
    start = time.monotonic()
    try:
        if archive is None:
            archive = cuda_build.compiled_archive(nvrtc.architecture_for(compute_capabilities()[0]))
        yield Line("kernels", "compiled", "PASS", time.monotonic() - start, archive.name)
    except (ValueError, OSError) as error:
        yield Line("kernels", "compiled", "FAIL", time.monotonic() - start, str(error))
        return
    yield from without_case()
    names = [*sorted(CASES), *LARGE_CASES]
    yield from run_in_processes(budget, [sys.executable, "-m", "tests.gpu.kernel_run", str(archive)], names)


def kernels_emulated() -> Iterator[Line]:
    """Check the kernels on the emulated device, with small tensors only."""
    device = EmulatedGpu()
    yield from without_case()
    for name in sorted(CASES):
        yield run_case(device, name, CASES[name])


def without_case() -> Iterator[Line]:
    """Yield a failure for each kernel without a case."""
    for name in sorted(kernel_names() - WITHIN_OTHERS - CASES.keys()):
        yield Line("kernels", name, "FAIL", 0, "no case in tests/gpu/cases.py")


def run_in_processes(budget: StageBudget, command: Sequence[str], names: Sequence[str]) -> Iterator[Line]:
    """Run the cases in one process, with a new one after each crash or timeout.

    Args:
        budget: the time limit.
        command: the command that runs the cases named as its last arguments, such as `tests.gpu.kernel_run`.
        names: the cases.
    """
    pending = list(names)
    while pending and budget.left() > 0:
        before = len(pending)
        with tempfile.TemporaryFile() as errors:
            process = start_group([*command, *pending], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors)
            try:
                yield from _answers(process, budget, pending, errors)
            finally:
                end_group(process)
        if len(pending) == before:  # not even started
            break
    for name in pending:
        yield Line("kernels", name, "FAIL", 0, budget.spent() if budget.left() <= 0 else "not run")


def _answers(
    process: subprocess.Popen[bytes], budget: StageBudget, pending: list[str], errors: IO[bytes]
) -> Iterator[Line]:
    """Yield a line for each case that the process ran, including the one that ended it; remove them from `pending`."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    started = time.monotonic()
    first = _next(lines, budget)
    if not first:
        yield Line("kernels", "GPU", "FAIL", time.monotonic() - started, _exit_description(process, errors))
        return
    gpu = json.loads(first)
    yield Line("kernels", "GPU", "PASS", time.monotonic() - started, f"{gpu['gpu']}, driver for CUDA {gpu['driver']}")
    while pending:
        started = time.monotonic()
        answer = _next(lines, budget)
        if answer:
            pending.pop(0)
            yield Line(**json.loads(answer))
        elif _exit_code(process) == BROKEN:
            return
        else:
            name = pending.pop(0)
            yield Line("kernels", name, "FAIL", time.monotonic() - started, _exit_description(process, errors))
            return


def _read(stdout: IO[bytes], lines: "queue.SimpleQueue[bytes]") -> None:
    for line in stdout:
        lines.put(line)
    lines.put(b"")


def _next(lines: "queue.SimpleQueue[bytes]", budget: StageBudget) -> bytes:
    """Return the next line; "" if the process ended or timed out."""
    try:
        return lines.get(timeout=max(0.0, min(CASE_SECONDS, budget.left())))
    except queue.Empty:
        return b""


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit code, or None if the process still runs; its output is closed a moment before it has ended."""
    try:
        return process.wait(3)
    except subprocess.TimeoutExpired:
        return None


def _exit_description(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    code = _exit_code(process)
    if code is None:
        return f"did not finish within {CASE_SECONDS:.0f} s, or within the time of the stage"
    errors.seek(0)
    printed = errors.read().decode(errors="replace").strip().splitlines()
    return f"the process ended with exit code {code}: {printed[-1] if printed else 'no message'}"
