"""The host side of CUDA kernels, recorded by a fake driver: grids, arguments, devices, streams, lifetimes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.build.plugin_build import find_compiler

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("driver") / "librecording.so"
    source = Path(__file__).with_name("recording_driver.c")
    command = [str(find_compiler()), "-x", "c", "-shared", "-fPIC", "-Wall", "-Werror", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


def record(driver: Path, scenario: str, tmp_path: Path) -> list[str]:
    """Return the driver calls after initialization."""
    file = tmp_path / "record.txt"
    environment = {**os.environ, "RECORD": str(file), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.kernels.native.drive_launches", str(driver), scenario]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = file.read_text().splitlines()
    assert lines[0] == "init 0" and "init 0" not in lines[1:]
    return lines[1:]


def test_launches_use_code_of_their_device(driver: Path, tmp_path: Path) -> None:
    assert record(driver, "launches", tmp_path) == [
        "retain 0",
        "enter 0",
        "load a on 0",
        "load b on 0",
        "find add on 0",
        "launch add on 0 in 0: 70000,2,3 x 256,1,1 shared 0 stream 5 args 1234567890123",
        "find blur on 0",
        "launch blur on 0 in 0: 1,1,1 x 32,1,1 shared 0 stream 6 args -1",
        "retain 1",
        "enter 1",
        "load a on 1",
        "load b on 1",
        "find add on 1",
        "launch add on 1 in 1: 2,1,1 x 128,1,1 shared 0 stream 7 args 2",
        "enter 0",
        "launch add on 0 in 0: 1,1,1 x 256,1,1 shared 0 stream 5 args 3",
    ]


def test_cooperative_grid_fits_on_device(driver: Path, tmp_path: Path) -> None:
    """The device has four multiprocessors with room for two blocks each."""
    started = [line for line in record(driver, "cooperative", tmp_path) if line.startswith("together")]
    assert [line.split(": ")[1] for line in started] == [
        "8,1,1 x 128,1,1 shared 0 stream 5 args 7",
        "3,1,1 x 128,1,1 shared 0 stream 5 args 7",
    ]


def test_tables_are_copied_once_and_freed_when_unused(driver: Path, tmp_path: Path) -> None:
    lines = record(driver, "tables", tmp_path)
    assert lines.count("copy 5 stream 5") == 1 and lines.count("copy 5 stream 6") == 1
    size = 30 << 20
    assert len([line for line in lines if line.startswith("copy")]) == 2 + 200 + 3
    # The third large table does not fit: the small ones, which are older, and the first large one are freed.
    first_free = lines.index("free")
    assert lines[first_free - 1] == "wait stream 5"
    assert lines[first_free:] == ["free"] * 201 + [f"allocate {size} on 0", f"copy {size} stream 5"]


def test_counters_are_zeroed_once_per_stream(driver: Path, tmp_path: Path) -> None:
    lines = record(driver, "counters", tmp_path)
    assert [line for line in lines if line.startswith(("set", "allocate"))] == [
        "allocate 8 on 0",
        "set 8 to 0 stream 5",
        "allocate 8 on 0",
        "set 8 to 0 stream 6",
        "allocate 8 on 1",
        "set 8 to 0 stream 5",
    ]


def test_workspace_synchronizes_only_when_it_grows(driver: Path, tmp_path: Path) -> None:
    lines = record(driver, "workspace", tmp_path)
    assert lines == ["retain 1", "enter 1", "allocate 1000 on 1", "wait stream 5", "free", "allocate 2000 on 1"]


def test_newer_cudnn_has_a_handle_per_stream(driver: Path, tmp_path: Path) -> None:
    assert record(driver, "newer_cudnn", tmp_path) == [
        "retain 0",
        "enter 0",
        "create a handle on 0",
        "handle on 0: stream 5",
        "create a handle on 0",
        "handle on 0: stream 6",
        "retain 1",
        "enter 1",
        "create a handle on 1",
        "handle on 1: stream 5",
        "create a tensor",
        "create a filter",
        "create a tensor",
        "create a convolution",
    ]
