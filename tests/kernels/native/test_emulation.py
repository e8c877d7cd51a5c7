"""The emulation of CUDA reports kernels that would misbehave on a GPU."""

import subprocess
from pathlib import Path

import pytest

from kernels.build.plugin_build import SOURCE_FOLDER, find_compiler

_COMMON = """
#pragma once
#include <cstdint>
#include <functional>
#define GT_EXPORT
namespace graph_train {
inline void parallel_for(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }
}
"""
"""What the emulation uses of `native/common.h`, without OneFlow."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emulation")
    (folder / "native").mkdir()
    (folder / "native" / "common.h").write_text(_COMMON)
    sources = (Path(__file__).with_name("faulty_kernels.cpp"), SOURCE_FOLDER / "native" / "cuda" / "emulation.cpp")
    flags = ("-std=c++17", "-O1", f"-I{folder}", f"-I{SOURCE_FOLDER}")
    subprocess.run([str(find_compiler()), *flags, *map(str, sources), "-o", str(folder / "program")], check=True)
    return folder / "program"


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("different_shuffles", "lanes of a warp meet at different shuffles"),
        ("divergent_shuffle", "barrier or shuffle that others never reach"),
        ("partial_mask", "mask must contain all lanes"),
        ("divergent_barrier", "barrier or shuffle that others never reach"),
        ("undeclared_barrier", "declare it as GT_BLOCK_KERNEL"),
        ("too_much_shared_memory", "more than 48 KiB of shared memory"),
        ("too_many_threads", "too many threads a block"),
    ],
)
def test_fault_is_reported(program: Path, kernel: str, message: str) -> None:
    ran = subprocess.run([str(program), kernel], capture_output=True, text=True, check=False)
    assert ran.returncode != 0 and f"emulated CUDA kernel {kernel}: " in ran.stderr and message in ran.stderr


def test_correct_kernel_passes(program: Path) -> None:
    ran = subprocess.run([str(program), "sound"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")
