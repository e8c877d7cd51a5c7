"""Helpers that start jobs of several ranks as a user would and inspect their results."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness.training_command import as_flags
from graph_train.ranks.rendezvous import free_port
from tests.graph_train.tiny import TINY
from tests.graph_train.training_runner import write_data_set

WAIT_SECONDS = 400.0


@dataclass
class Job:
    """The processes of a job, one per rank; their output goes to files."""

    ranks: list[subprocess.Popen[bytes]]
    logs: list[Path]
    started: float = field(default_factory=time.monotonic)

    def text(self, rank: int) -> str:
        return self.logs[rank].read_text(encoding="utf-8", errors="replace")

    def wait_for(self, pattern: str, rank: int = 0) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while not re.search(pattern, self.text(rank)):
            assert time.monotonic() < end, self.text(rank)
            assert all(process.poll() is None for process in self.ranks), [self.text(n) for n in range(len(self.ranks))]
            time.sleep(0.05)

    def codes(self, timeout: float = WAIT_SECONDS) -> list[int]:
        return [process.wait(timeout) for process in self.ranks]

    def stop(self) -> None:
        for process in self.ranks:
            process.kill()
            process.wait()


class JobRunner:
    """A folder with a data set, a tiny network and the jobs that train it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = write_data_set(root / "set")
        self.cfg = root / "tiny.yaml"
        self.cfg.write_text(yaml.safe_dump(TINY))
        self.jobs: list[Job] = []

    def flags(self, name: str, **flags: Any) -> list[str]:
        """Return the command line of a run of eight images in batches of four."""
        common: dict[str, Any] = {
            "data": self.data,
            "cfg": self.cfg,
            "imgsz": 64,
            "batch-size": 4,
            "workers": 1,
            "noplots": True,
            "loggers": "csv",
            "device": "cpu",
            "project": self.root / "runs",
            "name": name,
            "exist-ok": True,
        }
        return as_flags(**{**common, **flags})

    def start(
        self,
        flags: Sequence[str],
        ranks: int,
        *,
        leave_out: Sequence[int] = (),
        module: str = "graph_train",
        prefix: Callable[[int], Sequence[str]] = lambda _: (),
        address: str = "127.0.0.1",
        ranks_per_host: int = 99,
    ) -> Job:
        """Start the ranks with the environment of torchrun; a single rank gets no such variables."""
        port, number = free_port(), len(self.jobs)
        job = Job([], [])
        for rank in range(ranks):
            if rank in leave_out:
                continue
            variables = {"OMP_NUM_THREADS": "1"}
            if ranks > 1:
                variables |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank % ranks_per_host)}
                variables |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
            log = self.root / f"job{number}-{rank}.log"
            with log.open("wb") as output:
                command = [*prefix(rank), sys.executable, "-u", "-m", module, *flags]
                job.ranks.append(
                    subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **variables})
                )
            job.logs.append(log)
        self.jobs.append(job)
        return job

    def run(self, flags: Sequence[str], ranks: int, *, seconds: float = WAIT_SECONDS, **kind: Any) -> Job:
        """Run a job, which must succeed within `seconds`."""
        job = self.start(flags, ranks, **kind)
        codes = job.codes(seconds)
        assert codes == [0] * ranks, "\n".join(job.text(rank) for rank in range(ranks))
        return job

    def close(self) -> None:
        for job in self.jobs:
            job.stop()


def interrupt(job: Job) -> None:
    for process in job.ranks:
        process.send_signal(signal.SIGINT)
