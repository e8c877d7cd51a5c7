"""The CUDA sources compile, without warnings, for every architecture they are meant for."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kernels.build.plugin_build import SOURCE_FOLDER

_SOURCES = sorted((SOURCE_FOLDER / "cuda").glob("*.cu"))
# CUDA 13 no longer builds for sm_70; Turing to Hopper.
_ARCHITECTURES = ("75", "80", "86", "90")


@pytest.mark.slow
@pytest.mark.parametrize("source", _SOURCES, ids=lambda path: path.name)
def test_source_compiles(source: Path, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    targets = [flag for arch in _ARCHITECTURES for flag in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
    # Products and sums are rounded one by one in the update, as in its CPU kernel.
    contraction = ["--fmad=false"] if source.name == "update.cu" else []
    command = [
        nvcc,
        "-std=c++17",
        "-O3",
        *contraction,
        *targets,
        "-Xcompiler",
        "-Wall,-Werror",
        "-Werror",
        "all-warnings",
    ]
    result = subprocess.run(
        [*command, "-c", str(source), "-o", str(tmp_path / "out.o")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr


def test_there_are_sources() -> None:
    assert {"bbox_iou.cu", "update.cu"} <= {path.name for path in _SOURCES}
