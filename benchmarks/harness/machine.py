"""Provenance of a result: machine, versions, commit."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from graph_train.checks.environment import free_memory_gib, processor_name

_PACKAGES = ("graph-train", "oneflow", "nvidia-dali-cuda120", "onednn-cpu-gomp", "numpy", "pillow")
_INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
_BUSY_LOAD_PER_CORE = 0.5
PROJECT_FOLDER = Path(__file__).resolve().parents[2]


def machine() -> dict[str, Any]:
    """Return processor, cores, memory, GPUs and load average."""
    flags = _cpu_flags()
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "free_memory_gib": round(free_memory_gib(), 1),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def is_busy(machine: Mapping[str, Any]) -> bool:
    """Return whether other work was running: the load average is above half of the cores."""
    return bool(machine["load_average"] > _BUSY_LOAD_PER_CORE * machine["cores"])


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that matter for speed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit(checkout: Path = PROJECT_FOLDER) -> str:
    """Return the commit hash, with "+changes" if files differ from it; "" outside a checkout."""
    git = ("git", "-C", str(checkout))
    try:
        head = subprocess.run((*git, "rev-parse", "HEAD"), capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run((*git, "status", "--porcelain"), capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}+changes" if changed.strip() else head


def gpus() -> list[str]:
    """Return name, memory and driver of each GPU that nvidia-smi lists."""
    query = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    try:
        listing = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.strip() for line in listing.splitlines() if line.strip()]


def _cpu_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
