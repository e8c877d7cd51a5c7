"""Memory does not grow over a long run of steps."""

from pathlib import Path

import pytest

from benchmarks.harness.workers import Worker


def resident_kb(worker: Worker) -> int:
    status = Path(f"/proc/{worker._process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("graph", [True, False], ids=["graph", "eager"])
def test_thousand_steps_do_not_leak_memory(tmp_path: Path, graph: bool) -> None:
    with Worker("steps", "benchmarks.step.step_worker", threads=2) as worker:
        worker.call("describe", folder=str(tmp_path), model="yolov5n", batch_size=2, imgsz=128)
        worker.call("prepare", folder=str(tmp_path), device="cpu", threads=2, plugin=True, graph=graph, amp=False)
        worker.call("steps", count=100)
        before = resident_kb(worker)
        worker.call("steps", count=1000)
        assert resident_kb(worker) <= 1.01 * before
