"""How to install the packages of an extra: with uv in a checkout, otherwise by their own names."""

import re
import shlex
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def install_command(extra: str) -> str:
    """Return the command that installs an extra, without our own package's name, which may not be on any index.

    In a checkout, packages of other extras stay installed.
    """
    if _CHECKOUT.is_file():
        root = _CHECKOUT.parent
        # uv finds the project in the current folder or above; in a container, for example, that is elsewhere.
        project = [] if Path.cwd().is_relative_to(root) else ["--project", shlex.quote(str(root))]
        return " ".join(["uv sync", *project, "--inexact --extra", extra])
    return "pip install " + " ".join(shlex.quote(need) for need in extra_requirements(extra))


def extra_requirements(extra: str) -> list[str]:
    """Return the requirements of an extra without markers, such as `onnx==1.17.0`; empty if not installed."""
    marked = re.compile(rf"""\bextra\s*==\s*["']{re.escape(extra)}["']""")
    try:
        needs = requires("graph-train") or []
    except PackageNotFoundError:
        needs = []
    return [need.partition(";")[0].strip() for need in needs if marked.search(need)]
