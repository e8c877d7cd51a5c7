"""The report of `graph-check env`: versions, devices, compiler and kernel plugin, with remedies for what is missing."""

import importlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.host.cache_folder import user_cache_folder
from kernels.host.cuda_devices import driver_problem, has_driver_module
from kernels.host.extras import install_command
from kernels.host.free_memory import free_memory

if TYPE_CHECKING:
    from graph_train.engine.precision import ComputeDevice

_PACKAGES = ("oneflow", "nvidia-dali-cuda120", "numpy", "pillow", "safetensors", "onednn-cpu-gomp", "matplotlib")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Fact:
    """One line of the report.

    Attributes:
        name: the component.
        value: its version or state.
        remedy: how to fix a problem; empty if there is none.
        fatal: whether the problem makes training impossible.
    """

    name: str
    value: str
    remedy: str = ""
    fatal: bool = False


def environment_facts() -> list[Fact]:
    """Check everything that a run needs. Takes seconds, because OneFlow and DALI are loaded."""
    return [
        _python(),
        Fact("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        Fact("processor", f"{processor_name()}, {len(os.sched_getaffinity(0))} cores for this process"),
        Fact("memory", f"{free_memory_gib():.1f} GiB free"),
        _cache_space(),
        *(_package(name) for name in _PACKAGES),
        *_extras(),
        _loads("OneFlow", "kernels.runtime"),
        _loads("DALI", "nvidia.dali.fn"),
        *_devices(),
        _compiler(),
        _plugin(),
    ]


def _python() -> Fact:
    supported = sys.version_info[:2] == (3, 10)
    remedy = "" if supported else "OneFlow 0.9.0 needs Python 3.10: uv python install 3.10"
    return Fact("python", platform.python_version(), remedy, not supported)


def processor_name() -> str:
    """Return the model name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def free_memory_gib() -> float:
    """Return the available memory in GiB."""
    return free_memory() / 2**30


def _cache_space() -> Fact:
    try:
        folder = user_cache_folder()
    except OSError as error:
        return Fact("cache folder", "none", str(error))
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    writable = os.access(existing, os.W_OK)
    remedy = "" if writable else f"{existing} is not writable: set XDG_CACHE_HOME to a writable folder"
    return Fact("cache folder", f"{folder}, {free:.1f} GiB free on its disk", remedy)


def _package(name: str) -> Fact:
    try:
        return Fact(name, version(name))
    except PackageNotFoundError:
        return Fact(name, "not installed", "run `uv sync` in the project's folder", fatal=True)


def _extras() -> list[Fact]:
    """Return the extras of graph-train, and whether each is installed."""
    try:
        names, needs = metadata("graph-train").get_all("Provides-Extra") or [], requires("graph-train") or []
    except PackageNotFoundError:
        return []
    return [_extra(name, [need for need in needs if f"extra == '{name}'" in need.replace('"', "'")]) for name in names]


def _extra(name: str, needs: Sequence[str]) -> Fact:
    packages = [_NAME.match(need)[0] for need in needs]  # type: ignore[index] # a requirement begins with a name
    absent = [package for package in packages if _package(package).fatal]
    if not absent:
        return Fact(f"extra {name}", "installed")
    remedy = f"optional: {install_command(name)}"
    return Fact(f"extra {name}", f"not installed: {', '.join(absent)}", remedy)


def _loads(name: str, module: str) -> Fact:
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # a missing shared library is an OSError
        reason = " ".join(str(error).split())
        return Fact(f"{name} loads", f"no: {reason}", "run `uv sync` in the project's folder", fatal=True)
    return Fact(f"{name} loads", "yes")


def _devices() -> list[Fact]:
    try:
        from graph_train.engine.precision import compute_device
        from kernels.runtime import flow
    except (ImportError, OSError):
        return []  # already reported by _loads
    if not flow.cuda.is_available():
        problem = driver_problem() if has_driver_module() else ""
        return [Fact("GPU", "none that OneFlow can use; training on the CPU", problem)]
    facts = []
    for number in range(flow.cuda.device_count()):
        # Assumes the plugin, whose availability is reported separately.
        machine = compute_device(f"cuda:{number}", plugin=True)
        facts.append(_checked(f"GPU {number}", lambda machine=machine: _usable(machine)))  # type: ignore[misc]
    return facts


def _usable(machine: "ComputeDevice") -> str:
    machine.check()
    return machine.summary(machine.activation_type(None))


def _compiler() -> Fact:
    from kernels.build.plugin_build import find_compiler, packaged_library

    if packaged_library() is not None:
        return Fact("compiler", "not needed: the kernels are in the wheel")
    return _checked("compiler", lambda: str(find_compiler()))


def _plugin() -> Fact:
    return _checked("kernel plugin", _plugin_state)


def _plugin_state() -> str:
    from kernels.build import cache, plugin_build

    packaged = plugin_build.packaged_library()
    if packaged is not None:
        return f"from the wheel: {packaged}"
    folder = cache.cache_folder() / plugin_build.plugin_key(plugin_build.find_toolchain())
    built = sorted(folder.glob("*.so"))
    return (
        f"built: {built[0]}"
        if built
        else f"not built yet; the first run compiles it into {folder}, which takes a minute or more"
    )


def _checked(name: str, check: Callable[[], str]) -> Fact:
    try:
        return Fact(name, check())
    except (ValueError, OSError) as error:
        return Fact(name, "not available: training is slower", " ".join(str(error).split()))
