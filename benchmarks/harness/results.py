"""Result files: one JSON per run of a benchmark, with everything needed to trace a number."""

import json
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import commit, machine, versions
from kernels.host.files import write_atomically

FORMAT = 1
_VARIABLES = (
    *"OMP_ GOMP_ KMP_ MKL_ OPENBLAS_ ONEFLOW_ CUDA_ DNNL_ ONEDNN_ TORCH MALLOC_ GLIBC_TUNABLES".split(),
    "PYTHONDONTWRITEBYTECODE",
)
"""Beginnings of environment variables that change speed or memory; where there are any, the result tells."""
_FOLDERS = re.compile(r"[^\s=:]*/(?=[^\s=:/])")


def envelope(benchmark: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the machine, versions and settings of a result.

    It is taken before measuring, so that the load average is not our own.
    """
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "settings": {name: without_folders(value) for name, value in settings.items()},
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_VARIABLES)},
    }


def without_folders(value: Any) -> Any:
    """Return a setting with only the last component of each path; the rest tells of the user's machine.

    Texts may hold several, such as `--hyp=/a/b.yaml --cfg c.yaml` or the point `/a/b.yaml:4:320`.
    """
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    return [without_folders(item) for item in value] if isinstance(value, list | tuple) else value


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as a whole."""
    write_atomically(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def is_result(path: Path) -> bool:
    """Return whether a JSON file is one of `write_result`, of any format."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return isinstance(result, dict) and {"benchmark", "format", "machine"} <= result.keys()


def read_result(path: Path) -> dict[str, Any]:
    """Read a file of `write_result`.

    Raises:
        ValueError: not a result of `graph-bench`, or one of another format.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(result, dict) or "benchmark" not in result:
        raise ValueError(f"{path}: not a result of graph-bench")
    if result.get("format") != FORMAT:
        raise ValueError(f"{path}: format {result.get('format')!r}, this version reads {FORMAT}; measure again")
    return result
