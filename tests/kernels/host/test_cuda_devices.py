"""Reasons why NVIDIA's driver cannot be used, reported by small fake drivers."""

import subprocess
from pathlib import Path

import pytest

from kernels.build.plugin_build import find_compiler
from kernels.host import cuda_devices
from kernels.host.cuda_devices import driver_problem

_SOURCE = """
extern "C" int cuDriverGetVersion(int* version) { *version = VERSION; return 0; }
extern "C" int cuInit(unsigned) { return RESULT; }
extern "C" int cuGetErrorString(int result, const char** text) {
  *text = result == 803 ? "system has unsupported display driver / cuda driver combination" : 0;
  return *text ? 0 : 1;
}
"""


@pytest.mark.parametrize(
    ("version", "result", "problem"),
    [
        (12000, 0, ""),
        (13010, 0, ""),
        (11040, 0, "NVIDIA's driver supports CUDA 11.4, but 12.0 is needed; update it to version 525 or newer"),
        (
            12040,
            803,
            "NVIDIA's driver does not start: system has unsupported display driver / cuda driver combination (803)",
        ),
        (12040, 999, "NVIDIA's driver does not start: unknown error (999)"),
    ],
)
def test_driver_problem(
    version: int, result: int, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, library = tmp_path / "driver.cpp", tmp_path / f"libcuda-{version}-{result}.so"
    source.write_text(_SOURCE.replace("VERSION", str(version)).replace("RESULT", str(result)))
    subprocess.run([str(find_compiler()), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    monkeypatch.setattr(cuda_devices, "_DRIVER", str(library))
    assert driver_problem() == problem


def test_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_devices, "_DRIVER", "libcuda-missing.so.1")
    assert driver_problem().startswith(
        "NVIDIA's driver is not installed (libcuda-missing.so.1: cannot open shared object"
    )
