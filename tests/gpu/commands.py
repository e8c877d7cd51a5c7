"""Commands of the kit, which are ended together with their child processes."""

import contextlib
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tests.gpu.base import Line
from tests.gpu.budget import StageBudget

ROOT = Path(__file__).resolve().parents[2]
_NO_TESTS_COLLECTED = 5
"""Exit code of pytest."""
_MAX_OUTPUT_CHARACTERS = 20_000
"""Maximum number of characters of a failure's output."""
_running: set[int] = set()


def start_group(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command as the leader of a process group; arguments as of `subprocess.Popen`."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    _running.add(process.pid)
    return process


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command and its children, since a remaining rank would occupy the GPU."""
    _kill(process.pid)
    process.wait()
    _running.discard(process.pid)


def end_all() -> None:
    """End all running commands."""
    for leader in list(_running):
        _kill(leader)


def _kill(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def run_command(budget: StageBudget, name: str, command: Sequence[str], *, longest_note: int = 300) -> Line:
    """Run a command within the stage's time and return its line; the note is the last line that it prints."""
    stage, left, start = budget.stage, budget.left(), time.monotonic()
    if left <= 0:
        return Line(stage, name, "FAIL", 0, budget.spent())
    code, printed, errors = _run(command, left)
    seconds, output = time.monotonic() - start, "\n".join([*printed, *errors])[-_MAX_OUTPUT_CHARACTERS:]
    if code is None:
        return Line(stage, name, "FAIL", seconds, f"did not finish within {left:.0f} s; {budget.spent()}", output)
    if code == _NO_TESTS_COLLECTED and "pytest" in command:
        return Line(stage, name, "SKIP", seconds, "no such tests")
    if code:
        return Line(stage, name, "FAIL", seconds, " | ".join([*printed, *errors][-3:])[:longest_note], output)
    last = (printed or errors or [""])[-1]
    if "pytest" in command and " passed" not in last:
        return Line(stage, name, "FAIL", seconds, f"nothing was tested: {last}")
    return Line(stage, name, "PASS", seconds, last[:longest_note])


def _run(command: Sequence[str], seconds: float) -> tuple[int | None, list[str], list[str]]:
    """Return the exit code, None after a timeout, and the lines written to stdout and stderr."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:  # a child may keep a pipe open
        process = start_group(command, cwd=ROOT, stdout=stdout, stderr=stderr)
        try:
            code: int | None = process.wait(seconds if math.isfinite(seconds) else None)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
        return code, _lines(stdout), _lines(stderr)


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").strip().splitlines()
