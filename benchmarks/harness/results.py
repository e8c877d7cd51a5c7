"""Result files: one JSON per benchmark run, with everything needed to trace a number."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import commit, machine, versions
from kernels.host.files import read_regular, write_atomically

FORMAT = 1
_VARIABLES = (
    *"OMP_ GOMP_ KMP_ MKL_ OPENBLAS_ ONEFLOW_ CUDA_ DNNL_ ONEDNN_ TORCH MALLOC_ GLIBC_TUNABLES".split(),
    "PYTHONDONTWRITEBYTECODE",
)
"""Prefixes of environment variables that change speed or memory; results record those that are set."""
_ENTRIES = {
    "benchmark": str,
    "created": str,
    "commit": str,
    "machine": dict,
    "versions": dict,
    "settings": dict,
    "rows": list,
}
_MACHINE = {"processor": str, "cores": int, "gpus": list, "load_average": float}
_MAX_BYTES = 1 << 30
_FOLDERS = re.compile(r"[^\s=:]*/(?=[^\s=:/])")


def envelope(benchmark: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the machine, versions and settings of a result.

    Call it before measuring, so that the load average excludes the benchmark.
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
    """Return a setting with each path cut to its last component, as the rest is private to the user's machine.

    A text may contain several paths, as in `--hyp=/a/b.yaml --cfg c.yaml` or the point `/a/b.yaml:4:320`.
    """
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    return [without_folders(item) for item in value] if isinstance(value, list | tuple) else value


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result file atomically."""
    write_atomically(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def is_result(path: Path) -> bool:
    """Return whether a JSON file was written by `write_result`, in any format version."""
    try:
        result = read_json(path)
    except ValueError:
        return False
    return isinstance(result, dict) and {"benchmark", "format", "machine"} <= result.keys()


def read_result(path: Path) -> dict[str, Any]:
    """Read a file written by `write_result`.

    Raises:
        ValueError: not a result of `graph-bench`, or of another format version.
    """
    result = read_json(path)
    if not isinstance(result, dict) or "benchmark" not in result:
        raise ValueError(f"{path}: not a graph-bench result")
    if result.get("format") != FORMAT:
        raise ValueError(f"{path}: unsupported format {result.get('format')!r}, expected {FORMAT}; rerun the benchmark")
    return result


def require_whole(result: Mapping[str, Any]) -> None:
    """Require that a result has all entries that `envelope` adds, and rows.

    Raises:
        KeyError: an entry is missing.
        TypeError: an entry has another type.
    """
    require_types(result, _ENTRIES)
    require_types(result["machine"], _MACHINE, "machine.")


@contextmanager
def reporting_damage(path: Path) -> Iterator[None]:
    """Turn errors about missing or wrong entries of a result into a ValueError that names the file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: damaged graph-bench result ({reason}); remove the file or measure again") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: not a regular file, or not JSON.
    """
    try:
        return json.loads(read_regular(path, max_bytes=_MAX_BYTES))
    except RecursionError:
        raise ValueError(f"{path}: not a JSON file: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None


def require_types(content: Mapping[str, Any], types: Mapping[str, type], prefix: str = "") -> None:
    """Require entries of these types.

    Raises:
        KeyError: an entry is missing.
        TypeError: an entry has another type.
    """
    for name, kind in types.items():
        if not isinstance(content[name], kind):
            raise TypeError(f"{prefix}{name} is {content[name]!r:.60}")
