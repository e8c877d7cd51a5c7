"""Python in a child process, for what cannot be tested in this one: imports, exits, signals, limits."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run_python(*arguments: str | Path, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with this checkout importable, and return its exit code and output.

    Args:
        arguments: as on the command line, such as "-m", "graph_train".
        check, options: as in `subprocess.run`; `env` replaces the environment.
    """
    command = [sys.executable, *map(str, arguments)]
    options.setdefault("env", {**os.environ, "PYTHONPATH": str(ROOT)})
    return subprocess.run(command, check=check, capture_output=True, text=True, **options)
