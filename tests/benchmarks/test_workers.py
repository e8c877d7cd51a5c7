import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.workers import Worker, WorkerError


def test_a_refused_argument_is_the_users_error() -> None:
    with Worker("ceilings", "benchmarks.ceilings_worker", threads=1) as worker:
        assert worker.call("prepare", device="cpu", threads=1)["copy"] == "GB/s"
        with pytest.raises(WorkerError, match="KeyError"):
            worker.call("once", kind="nothing")
        assert worker.call("once", kind="copy") > 0  # it goes on


def test_the_end_of_a_worker_is_told_with_what_it_said() -> None:
    worker = Worker("missing", "benchmarks.no_such_worker", threads=1)
    with pytest.raises(WorkerError, match="No module named"):
        worker.call("prepare")
    worker.close()


def test_another_interpreter_sees_benchmarks_only(tmp_path: Path) -> None:
    """Our packages are built for one Python version, and a peer must not use them."""
    probe = tmp_path / "python"
    probe.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c "import json,os,sys; sys.stdin.readline(); '
                     f'print(json.dumps(dict(value=sorted(os.listdir(os.environ[\'PYTHONPATH\'])))))"\n')  # fmt: skip
    probe.chmod(0o755)
    with Worker("probe", "any", threads=1, python=probe) as worker:
        assert json.dumps(worker.call("look")) == '["benchmarks", "log"]'


def test_a_terminated_benchmark_leaves_no_process(tmp_path: Path) -> None:
    """SIGTERM while workers measure, through `all`, which has a process of its own in between."""
    command = [sys.executable, "-m", "benchmarks.cli", "all", "--only", "ceilings", "--repeats", "1000", "--out", "out"]
    benchmark = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (started := descendants(benchmark.pid, "benchmarks.ceilings_worker")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started
    benchmark.terminate()
    assert benchmark.wait(timeout=60) == 130
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def descendants(parent: int, words: str) -> list[int]:
    """Processes below `parent` whose command line holds the words."""
    found, waiting = [], [parent]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):  # it has ended meanwhile
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            if words in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
                found.append(pid)
    return found
