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


def preloading(source: str, folder: Path) -> dict[str, str]:
    """Compile C++ to a library in `folder` and return an environment in which it is loaded before all others."""
    (folder / "first.cpp").write_text(source)
    library = folder / "first.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-O1", "first.cpp", "-o", library, "-ldl"], check=True, cwd=folder)
    before = os.environ.get("LD_PRELOAD", "")  # the sanitizers', whose library must be first
    return {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": f"{before} {library}".strip()}
