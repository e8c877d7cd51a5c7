import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.workers import Worker, WorkerError
from benchmarks.step import ceilings


def test_worker_survives_errors_and_reports_each(tmp_path: Path) -> None:
    with Worker("ceilings", "benchmarks.step.ceilings_worker", threads=1) as worker:
        assert worker.call("prepare", device="cpu", threads=1)["copy"] == "GB/s"
        with pytest.raises(WorkerError, match="KeyError"):
            worker.call("once", kind="nothing")
        assert worker.call("once", kind="copy") > 0
    with Worker("steps", "benchmarks.step.step_worker", threads=1) as worker:
        with pytest.raises(ValueError, match=r"steps: .*no_such_network"):  # a user error
            worker.call("describe", folder=str(tmp_path), model="no_such_network", batch_size=1, imgsz=64)
        with pytest.raises(ValueError, match=r"steps: MemoryError"):
            worker.call("describe", folder=str(tmp_path), model="yolov5n", batch_size=1 << 40, imgsz=64)
        assert set(worker.call("processor_ms")) == {"main_thread", "process"}


def test_worker_exit_is_reported_with_its_output() -> None:
    worker = Worker("missing", "benchmarks.no_such_worker", threads=1)
    with pytest.raises(WorkerError, match="No module named"):
        worker.call("prepare")
    worker.close()


def test_foreign_interpreter_sees_only_benchmarks(tmp_path: Path) -> None:
    """Our packages are built for one Python version, so a peer must not import them."""
    probe = tmp_path / "python"
    probe.write_text(
        f'#!/bin/sh\nexec {sys.executable} -S -c "import json,os,sys; sys.stdin.readline(); '
        f"print(json.dumps(dict(value=sorted(os.listdir(os.environ['PYTHONPATH'])))))\"\n"
    )
    probe.chmod(0o755)
    with Worker("probe", "any", threads=1, python=probe) as worker:
        assert json.dumps(worker.call("look")) == '["benchmarks", "log"]'


def test_worker_environment_sets_threads_and_drops_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    probe = tmp_path / "python"
    probe.write_text(
        f'#!/bin/sh\nexec {sys.executable} -S -c "import json,os,sys; sys.stdin.readline(); '
        f'print(json.dumps(dict(value=dict(os.environ))))"\n'
    )
    probe.chmod(0o755)
    found = {}
    monkeypatch.setenv("OF_SOME", "1")
    for name, without in (("all", ()), ("less", ("OF_SOME", "OF_NONE"))):
        with Worker(name, "any", threads=3, python=probe, without=without) as worker:
            found[name] = worker.call("look")
    assert found["all"]["OF_SOME"] == "1"
    assert "OF_SOME" not in found["less"]
    assert not any("OPENBLAS_CORETYPE" in variables for variables in found.values())  # it slows one side only
    assert found["less"]["PATH"] == os.environ["PATH"]
    assert found["all"]["OMP_NUM_THREADS"] == found["less"]["OPENBLAS_NUM_THREADS"] == "3"


def test_ceiling_ignores_variables_that_lower_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable, OpenBLAS could be limited to AVX2 while the measured steps use AVX-512."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    seen = []

    class SanitizedPython(Worker):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            seen.append(variables(self))

    monkeypatch.setattr(ceilings, "Worker", SanitizedPython)
    rows = ceilings.measure_ceilings("cpu", threads=1, repeats=1)
    assert ["OPENBLAS_CORETYPE" in found for found in seen] == [False]
    assert all(row["without"] == ["OPENBLAS_CORETYPE"] for row in rows)


def variables(worker: Worker) -> dict[str, str]:
    """Return the environment of a worker's process."""
    rows = Path(f"/proc/{worker._process.pid}/environ").read_text().split("\0")
    return {name: value for name, _, value in (row.partition("=") for row in rows) if name}


def test_terminated_benchmark_leaves_no_process(tmp_path: Path) -> None:
    """Send SIGTERM to `all`, which starts each benchmark in a child process, while workers measure."""
    command = [sys.executable, "-m", "benchmarks.cli", "all", "--only", "ceilings", "--repeats", "1000", "--out", "out"]
    benchmark = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _terminated_with_all(benchmark)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(benchmark.pid, signal.SIGKILL)


def _terminated_with_all(benchmark: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while (
        not (started := descendants(benchmark.pid, "benchmarks.step.ceilings_worker")) and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert started
    benchmark.terminate()
    assert benchmark.wait(timeout=60) == 130
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def descendants(parent: int, words: str) -> list[int]:
    """Return the descendants of `parent` whose command line contains the words."""
    found, waiting = [], [parent]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):  # already ended
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            if words in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
                found.append(pid)
    return found
