"""Import of this distribution's modules, regardless of the files in the working folder.

A YOLOv5 checkout has a package `models` too, and any folder may hold a `json.py`.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that contains `graph_train` and its sibling packages."""
PACKAGES = ("kernels", "models", "pipelines")


def import_own_packages() -> None:
    """Import `PACKAGES` from `ROOT`, even if `sys.path` names a folder with packages of the same name first.

    Raises:
        ImportError: the program has already imported another package of that name.
    """
    for name in PACKAGES:
        loaded = sys.modules.get(name) or _import_from_root(name)
        location = getattr(loaded, "__file__", None)
        if location is None or Path(location).resolve().parents[1] != ROOT:
            raise ImportError(
                f"graph-train needs its own package '{name}', but this program has imported another one "
                f"from {location or 'an unknown place'}; use graph-train in a process of its own"
            )


def _import_from_root(name: str) -> object:
    spec = PathFinder.find_spec(name, [str(ROOT)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{ROOT} has no package '{name}'; install graph-train again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def module_command(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a module as `python -m` does, but imports only from this process's `sys.path`.

    `python -m` would search the working folder first.
    """
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-c", program, *arguments]
