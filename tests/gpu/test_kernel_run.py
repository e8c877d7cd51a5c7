"""The process that runs kernels on a GPU, tested with a driver that runs them on the emulated device."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kernels.build.plugin_build import find_compiler
from tests.gpu.commands import ROOT

_RUN = """
import os, sys
from kernels.plugin import load_plugin
os.environ["EMULATED_PLUGIN"] = str(load_plugin("emulated-cuda").path)
from tests.gpu import devices, kernel_run
devices.DRIVER = sys.argv[1]
sys.exit(kernel_run.main(sys.argv[2], sys.argv[3:]))
"""
_NAMES = ["fill_f32", "batch_norm_f32", "concat_4", "update_parameters", "add_bias_grad_f32_f32", "suppress"]


@pytest.mark.timeout(900)
def test_kernels_run_through_the_driver(tmp_path: Path) -> None:
    driver, archive = tmp_path / "libemulated.so", tmp_path / "kernels.zip"
    source = Path(__file__).with_name("emulated_driver.c")
    command = [str(find_compiler()), "-x", "c", "-shared", "-fPIC", "-Wall", "-Werror", str(source), "-o", str(driver)]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("one.cu", b"an image")
    command = [sys.executable, "-c", _RUN, str(driver), str(archive), *_NAMES]
    ran = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    gpu, *lines = (json.loads(line) for line in ran.stdout.splitlines())
    assert gpu == {"gpu": "emulated GPU 0", "driver": "12.4"}
    assert [(line["name"], line["result"]) for line in lines] == [(name, "PASS") for name in _NAMES]
    assert all(line["note"].startswith("125.0 us, ") for line in lines)


_ONLY_NUMPY = """
import sys
allowed = {*sys.stdlib_module_names, "numpy", "kernels", "tests", "benchmarks"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
import tests.gpu.__main__, tests.gpu.kernel_run
"""


def test_kernels_alone_need_only_numpy() -> None:
    ran = subprocess.run([sys.executable, "-c", _ONLY_NUMPY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
