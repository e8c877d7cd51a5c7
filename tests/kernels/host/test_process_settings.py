"""Process settings: those of the user win, and child processes inherit them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.host.process_settings import configure_process, requested_threads, with_process_settings


def test_user_settings_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    configure_process()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("active", "1000")
    assert with_process_settings({"OMP_WAIT_POLICY": "active", "MALLOC_MMAP_THRESHOLD_": "1"}) == {
        "OMP_WAIT_POLICY": "active",
        "GOMP_SPINCOUNT": "1000",
        "MALLOC_MMAP_THRESHOLD_": "1",
    }
    assert with_process_settings({})["MALLOC_MMAP_THRESHOLD_"] == "262144"
    assert "MALLOC_MMAP_THRESHOLD_" not in with_process_settings({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1"})


def test_too_many_threads_raises() -> None:
    # libgomp itself says "Thread creation failed" in the middle of the first step, and ends the process.
    command = [sys.executable, "-m", "graph_train", "--data", "shapes", "--cfg", "yolov5n.yaml"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "100000"}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("graph-train: OMP_NUM_THREADS=100000: at most 4096 threads")


@pytest.mark.parametrize("value", ["5000", " 5000", "+5000", "5000,2", "99999999999999999999999"])
def test_every_spelling_of_too_many_threads_raises(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(ValueError, match="at most 4096 threads are supported; use the number of cores"):
        configure_process()


@pytest.mark.parametrize(
    ("value", "threads"), [("3", 3), (" +3 ,7", 3), ("0", 0), ("-5", 0), ("abc", 0), ("", 0), ("1e9", 0), ("٣", 0)]
)
def test_requested_threads(monkeypatch: pytest.MonkeyPatch, value: str, threads: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    configure_process()
    assert requested_threads() == threads


@pytest.mark.parametrize("name", ["OMP_STACKSIZE", "GOMP_STACKSIZE"])
@pytest.mark.parametrize("value", ["999G", " 2 g", "1048577", "99999999999B"])
def test_stacks_that_no_machine_holds_raise(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """OpenMP could not start its threads, and the process would end with a segmentation fault."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}={value}: at most 1G per thread is supported; remove it"):
        configure_process()
    for usual in ("16M", "8192", "1G", "abc", ""):
        monkeypatch.setenv(name, usual)
        configure_process()


FIRST_USE = """
import os, sys
import graph_train.settings.flag_table
call = {call}
assert "oneflow" not in sys.modules
try:
    call(weights="no-such-file.pt", data="no-such-file.yaml")
except (ValueError, OSError):
    print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize("name", ["train", "validate", "load", "export"])
def test_python_api_configures_process(name: str) -> None:
    plain = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    code = FIRST_USE.format(call=f"__import__('graph_train').{name}")
    if name == "export":
        code = code.replace(', data="no-such-file.yaml"', "")
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=False)
    assert done.stdout.strip().splitlines()[-1:] == ["passive"], done.stderr


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"OMP_THREAD_LIMIT": "1"}, "1"),
        ({"OMP_MAX_ACTIVE_LEVELS": "0"}, "1"),
        ({"OMP_NUM_THREADS": "4", "OMP_THREAD_LIMIT": " 3"}, "3"),
        ({"OMP_NUM_THREADS": "2", "OMP_THREAD_LIMIT": "3"}, "2"),
        ({"OMP_NUM_THREADS": "2", "OMP_THREAD_LIMIT": "none", "OMP_MAX_ACTIVE_LEVELS": "1"}, "2"),
    ],
)
def test_limits_of_openmp_apply(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], threads: str) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_MAX_ACTIVE_LEVELS", "OMP_DYNAMIC"):
        monkeypatch.setenv(name, variables.get(name, ""))  # restored afterwards, even if the call sets it
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    configure_process()
    assert os.environ["OMP_NUM_THREADS"] == threads


TWO_STEPS = ["--cfg", "yolov5n.yaml", "--data", "shapes", "--imgsz", "64", "--batch-size", "64", "--epochs", "1"]


@pytest.mark.parametrize("variable", ["OMP_THREAD_LIMIT=1", "OMP_MAX_ACTIVE_LEVELS=0", "OMP_DYNAMIC=true"])
def test_no_thread_limit_hangs(tmp_path: Path, variable: str) -> None:
    name, _, value = variable.partition("=")
    environment = {key: text for key, text in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "graph_train", *TWO_STEPS, "--device", "cpu", "--project", str(tmp_path), "--noplots"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**environment, name: value},
    )
    if name == "OMP_DYNAMIC":
        assert done.returncode == 2
        assert done.stderr.startswith("graph-train: OMP_DYNAMIC=true: the kernels need a fixed number of threads")
    else:
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["ONEFLOW_DEBUG", "ONEFLOW_DEBUG_MODE", "ONEFLOW_PYTHON_STACK_GETTER"])
@pytest.mark.parametrize("value", ["1", "True"])
def test_variables_that_crash_oneflow_are_rejected(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}={value}: OneFlow 0.9.0 crashes with it; unset it"):
        configure_process()
    monkeypatch.setenv(name, "0")
    configure_process()
