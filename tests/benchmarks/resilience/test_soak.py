"""`graph-bench soak`: units of memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.resilience.soak import growth, memory_of, tables


def test_memory_is_in_megabytes() -> None:
    """Use the unit of the other benchmarks' peaks; `statm` counts pages."""
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        found = memory_of(child.pid)
        resident, shared = map(int, Path(f"/proc/{child.pid}/statm").read_text().split()[1:3])
        child.stdin.close()
    page = os.sysconf("SC_PAGE_SIZE")
    # The kernel updates these sums over processors only occasionally.
    assert found["rss_mb"] == pytest.approx(resident * page / 1e6, rel=0.02)
    assert found["shared_mb"] <= shared * page / 1e6


def test_older_results_are_labelled_as_mebibytes() -> None:
    rows = [{"epoch": 0.0, "minutes": 1.0}]
    body = {"rows": rows, "growth": {name: growth([1.0, 2.0]) for name in ("rss_mb", "threads", "shared_mb")}}
    assert [cells[0] for cells in tables(body)[0].rows] == ["memory MiB", "threads", "shared MiB"]
    newer = {**body, "megabyte": 1_000_000}
    assert [cells[0] for cells in tables(newer)[0].rows] == ["memory MB", "threads", "shared MB"]
