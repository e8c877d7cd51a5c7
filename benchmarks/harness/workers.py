"""Worker processes, which keep each competitor alive so that they can be measured in turn.

A worker is a module that calls `benchmarks.harness.channel.serve`. While one works, the others block on their pipes.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from kernels.host.process_settings import with_process_settings

_TAIL_LINES = 12
_IMPORTED = 77
"""Exit code of an interpreter that could import the modules; other programs may ignore their arguments and return 0."""
_PROBE_SECONDS = 120.0
BLAS_LIMITS = ("OPENBLAS_CORETYPE",)
"""Variables that make a BLAS library use kernels of another processor, which would slow one side only."""
CHECKOUT_PYTHON = Path(".venv/bin/python")
"""Interpreter of a checkout after `uv sync`."""


def environment_for(threads: int) -> dict[str, str]:
    """Return our environment with `threads` CPU threads and without the variables that limit a BLAS library."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**{name: value for name, value in os.environ.items() if name not in BLAS_LIMITS}, **counts}


def why_unusable(python: str | Path, modules: Sequence[str]) -> str:
    """Return why a Python interpreter cannot import modules; "" if it can."""
    code = f"import sys, {', '.join(modules)}; sys.exit({_IMPORTED})"
    try:
        probe = subprocess.run(
            [python, "-c", code],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            errors="replace",
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except OSError as error:
        return error.strerror or str(error)
    except subprocess.TimeoutExpired:
        return f"no answer within {_PROBE_SECONDS:.0f} s"
    if probe.returncode == _IMPORTED:
        return ""
    return (probe.stderr.strip().splitlines() or ["not a Python interpreter"])[-1]


class WorkerError(RuntimeError):
    """A worker failed; the message has its name and output."""


class Worker:
    """One worker process.

    Args:
        name: name in messages.
        module: module to run, such as `benchmarks.step.step_worker`.
        threads: CPU threads of its libraries.
        python: interpreter; one other than ours can import only `benchmarks` from this project.
        checkout: another checkout of this project with its environment in `.venv`, whose worker runs.
        environment: additional environment variables.
        without: variables of our environment that are not passed on.
    """

    def __init__(
        self,
        name: str,
        module: str,
        *,
        threads: int,
        python: Path | None = None,
        checkout: Path | None = None,
        environment: Mapping[str, str] | None = None,
        without: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="graph-bench-")
        self._log_path = Path(self._folder.name) / "log"
        variables = {**environment_for(threads), **(environment or {})}
        if python is None:
            variables = with_process_settings(variables)
        for variable in without:
            variables.pop(variable, None)
        if checkout is not None:
            python, variables["PYTHONPATH"] = checkout / CHECKOUT_PYTHON, str(checkout)
        elif python is not None:
            variables["PYTHONPATH"] = self._only_benchmarks()
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                [str(python or sys.executable), "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=variables,
                cwd=checkout,  # comes before PYTHONPATH
            )

    def _only_benchmarks(self) -> str:
        """Return a folder with our package only, without packages installed for another Python version."""
        (Path(self._folder.name) / "benchmarks").symlink_to(Path(__file__).resolve().parents[1])
        return self._folder.name

    def call(self, function: str, **arguments: Any) -> Any:
        """Run one of the worker's handlers and wait for its result.

        Raises:
            ValueError: the handler rejected its arguments.
            WorkerError: any other failure, or the process exited.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"call": function, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise WorkerError(f"{self.name} exited with code {code}: {self._tail()}")
        reply = json.loads(line)
        if "error" in reply:
            kind = ValueError if reply["users"] else WorkerError
            raise kind(f"{self.name}: {reply['error']}")
        return reply["value"]

    def _tail(self) -> str:
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-_TAIL_LINES:]) or "no output"

    def close(self) -> None:
        """Stop the process and free its memory; a second call does nothing."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                stream.close()
        self._folder.cleanup()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # It may be in the middle of work that takes minutes.
            self._process.kill()
        self.close()
