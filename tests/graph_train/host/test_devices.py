"""Parsing of `--device`, and device selection per process."""

import os

import pytest

from graph_train.host import devices
from graph_train.host.devices import VISIBLE_DEVICES, gpu_numbers, select_device
from graph_train.ranks.team import join
from kernels.runtime import flow
from tests.python_process import run_python


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", ()), ("cpu", None), (" CPU ", None), ("0", (0,)), ("cuda:1", (1,)), ("2,3", (2, 3)), ("cuda:2, 3", (2, 3))],
)
def test_parse_device(text: str, numbers: tuple[int, ...] | None) -> None:
    assert gpu_numbers(text) == numbers


@pytest.mark.parametrize("text", ["tpu", "cuda", "1,", "-1", "0;1", "²"])
def test_invalid_device_raises(text: str) -> None:
    with pytest.raises(ValueError, match="must be cpu or the number of a GPU"):
        gpu_numbers(text)


def test_rank_parses_the_same_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_device("cpu", local_rank=1) == "cpu"
    with pytest.raises(ValueError, match="must be cpu"):
        select_device("tpu", local_rank=0)
    # Fake two GPUs, of which only the number is queried.
    monkeypatch.setattr(flow.cuda, "is_available", lambda: True)
    monkeypatch.setattr(flow.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices.os, "environ", {**os.environ, VISIBLE_DEVICES: "2,3"})
    assert select_device("2,3", local_rank=1) == "cuda:1"
    with pytest.raises(ValueError, match="set CUDA_VISIBLE_DEVICES=4,5"):
        select_device("4,5", local_rank=1)
    with pytest.raises(ValueError, match="local rank 2 needs its own GPU"):
        select_device("2,3", local_rank=2)
    with pytest.raises(ValueError, match="several GPUs need one process each"):
        select_device("0,1")


def test_missing_gpu_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "driver_problem", lambda: "the driver is too old")
    with pytest.raises(ValueError, match=r"--device 0: this machine has 0 usable GPUs \(the driver is too old\); use"):
        select_device("0")
    with pytest.raises(ValueError, match=r"this host has 0 \(the driver is too old\); start fewer"):
        select_device("0", local_rank=0)
    monkeypatch.setattr(flow.cuda, "is_available", lambda: True)
    monkeypatch.setattr(flow.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"--device 1: this machine has 1 usable GPUs; use"):
        select_device("1")


@pytest.mark.parametrize(
    ("module", "problem", "visible", "warns"),
    [
        (True, "too old", "0", True),
        (True, "", "0", False),
        (True, "no device", "", False),
        (False, "not installed", "0", False),
    ],
)
def test_unused_gpu_warns_once(  # noqa: PLR0917 - parameters and fixtures
    module: bool,
    problem: str,
    visible: str,
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(flow.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "driver_problem", lambda: problem)
    monkeypatch.setattr(devices, "has_driver_module", lambda: module)
    monkeypatch.setenv(VISIBLE_DEVICES, visible)
    devices._warn_of_unusable_gpus.cache_clear()
    with caplog.at_level("WARNING", logger="graph_train"):
        assert [select_device(""), select_device("", local_rank=1), select_device("cpu")] == ["cpu"] * 3
    assert caplog.messages == ["using the CPU, although this machine has an NVIDIA GPU: too old"] * warns


@pytest.mark.parametrize("timeout", [0, -5, float("inf"), float("nan"), "60"])
def test_invalid_timeout_raises(timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(__import__("sys").modules, "oneflow")
    with pytest.raises(ValueError, match="--dist-timeout"):
        join(timeout)


@pytest.mark.parametrize("setting", ["1", "3", "2,4", "", "many", "0"])
def test_thread_count_matches_openmp(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with the OpenMP library's own parsing of the variable, in a child process."""
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    program = "import ctypes; print(ctypes.CDLL('libgomp.so.1').omp_get_max_threads())"
    reported = run_python("-c", program, check=True)
    assert devices.cpu_threads() == int(reported.stdout)
