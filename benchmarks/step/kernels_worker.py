"""Worker of `graph-bench kernels`, which runs the cases."""

import time
from typing import Any

from benchmarks.harness.channel import serve
from benchmarks.step.kernel_cases import CASES, CaseSettings
from graph_train.host.devices import select_device
from kernels.plugin import is_loaded, load_plugin
from kernels.runtime import flow


class _Session:
    setting: CaseSettings
    works: dict[str, Any]


def prepare(plugin: bool, device: str, threads: int) -> dict[str, str]:
    """Load the plugin if wanted; return the names and sizes of the cases for this device."""
    used_device = select_device(device)
    load_plugin("require" if plugin else "off", used_device)
    _Session.setting, _Session.works = CaseSettings(used_device, threads), {}
    return {name: case.size for name, case in CASES.items() if device == "cpu" or not case.only_cpu}


def load(name: str) -> float:
    """Create the inputs of a case and run it twice; return the seconds of the second run."""
    case = CASES[name]
    _Session.works[name] = (case.ours if is_loaded() else case.reference)(_Session.setting)
    once(name, 1)
    return once(name, 1)


def drop(name: str) -> None:
    """Free the inputs of a case."""
    del _Session.works[name]


def once(name: str, count: int) -> float:
    """Return the mean seconds over `count` runs, including device synchronisation."""
    _synchronise()
    started = time.perf_counter()
    for _ in range(count):
        _Session.works[name]()
    _synchronise()
    return (time.perf_counter() - started) / count


def _synchronise() -> None:
    # Eager ops are asynchronous, also on a CPU.
    flow._oneflow_internal.eager.Sync()
    if _Session.setting.device != "cpu":
        flow.cuda.synchronize()


if __name__ == "__main__":
    serve({"prepare": prepare, "load": load, "once": once, "drop": drop})
