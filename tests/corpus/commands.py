"""Helpers that run the real commands and check the guarantees common to all of them."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from graph_train.cli import check, export, predict, train, val

MODULES = {
    "graph-train": train,
    "graph-val": val,
    "graph-check": check,
    "graph-export": export,
    "graph-predict": predict,
}
ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = (
    "Traceback (most recent call last)",
    "internal error",
    "Segmentation fault",
    "core dumped",
    "Aborted",
    "Logging error",
    "Check failed",
)
DONE, ERRORS_FOUND, USER_ERROR = 0, 1, 2


@dataclass(frozen=True)
class CommandResult:
    """A finished command: exit code, output, and the one-line error message or ""."""

    code: int
    output: str
    error: str


def check_result(name: str, code: int, out: str, err: str, *, may_end: Sequence[int]) -> CommandResult:
    """Assert no traceback, no native crash, an allowed exit code, and a one-line message on errors."""
    text = out + err
    shown = text[-3000:]
    assert not [word for word in FORBIDDEN if word in text], shown
    assert code in may_end, f"{name} ended with {code}: {shown}"
    lines = [line for line in err.splitlines() if line.startswith(f"{name}: ")]
    assert len(lines) == (code == USER_ERROR), shown
    return CommandResult(code, text, lines[0] if lines else "")


def run_child(
    name: str, *arguments: object, cwd: Path, may_end: Sequence[int] = (DONE,), seconds: float = 150
) -> CommandResult:
    """Run a command in a child process with a timeout, so that hangs and crashes fail only one test."""
    command = [sys.executable, "-m", f"graph_train.cli.{name.removeprefix('graph-')}", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        timeout=seconds,
        check=False,
        errors="replace",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return check_result(name, done.returncode, done.stdout, done.stderr, may_end=may_end)


def run_in_process(
    name: str, *arguments: object, capsys: pytest.CaptureFixture[str], may_end: Sequence[int] = (DONE,)
) -> CommandResult:
    """Run a command in this process, for failures before any computation."""
    capsys.readouterr()
    log = logging.getLogger("graph_train")
    handlers, propagates = list(log.handlers), log.propagate
    try:
        code = MODULES[name].main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else ERRORS_FOUND
    finally:  # Normally the process ends with the command; here, other commands with other streams follow.
        log.handlers[:], log.propagate = handlers, propagates
    out, err = capsys.readouterr()
    return check_result(name, code, out, err, may_end=may_end)
