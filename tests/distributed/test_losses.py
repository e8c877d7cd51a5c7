"""Ranks that do not connect, die or are asked to stop."""

import re
import signal
import time
from pathlib import Path

import pytest

from graph_train.host.failures import INTERRUPTED, RANK_LOST, USER_ERROR
from graph_train.runs.checkpoint import load_checkpoint
from tests.distributed.jobs import JobRunner, interrupt

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]
LONG = {"epochs": 5000, "noval": True}


def _saved_epoch(folder: Path) -> int:
    """Return the epoch of the newest checkpoint after checking that it is intact."""
    state = folder / "weights" / "last.safetensors"
    return int(load_checkpoint(state).header["cursor"]["epoch"]) if state.exists() else 0


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_ends_job(runner: JobRunner, victim: int) -> None:
    name = f"killed{victim}"
    job = runner.start(runner.flags(name, **LONG), 2)
    job.wait_for(r" 2/4999")
    folder = runner.root / "runs" / name
    while _saved_epoch(folder) < 2:  # checkpoints are written in the background
        assert job.ranks[0].poll() is None
        time.sleep(0.05)
    job.ranks[victim].kill()
    killed = time.monotonic()
    codes = job.codes(60)
    assert time.monotonic() - killed < 60
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] in (RANK_LOST, -signal.SIGKILL)
    text = job.text(0) + job.text(1)
    assert f"graph-train: rank {victim} (" in text
    assert "it was killed, or crashed; stopping the job" in text
    assert _saved_epoch(folder) >= 2


def test_resume_after_kill_with_other_ranks(runner: JobRunner) -> None:
    folder = runner.root / "runs" / "cut"
    job = runner.start(runner.flags("cut", epochs=60, noval=True), 2)
    job.wait_for(r" 3/59")
    job.ranks[1].kill()
    job.codes(60)
    resumed = runner.start(["--resume", str(folder)], 4)
    resumed.wait_for(r"Resuming at epoch \d+")
    resumed.wait_for(r" \d+/59")
    resumed.ranks[2].kill()
    resumed.codes(60)
    runner.run(["--resume", str(folder)], 1)
    assert load_checkpoint(folder / "weights" / "last.safetensors").header["cursor"]["epoch"] == 60


def test_interrupted_job_is_saved_at_same_step_by_all_ranks(runner: JobRunner) -> None:
    job = runner.start(runner.flags("stopped", **LONG), 2)
    job.wait_for(r" 2/4999")
    interrupt(job)
    assert job.codes(60) == [130, 130], job.text(0) + job.text(1)
    assert "Stopped by SIGINT" in job.text(0)
    assert job.text(1) == ""
    cursor = load_checkpoint(runner.root / "runs" / "stopped" / "weights" / "last.safetensors").header["cursor"]
    shown = max(int(epoch) for epoch in re.findall(r" (\d+)/4999", job.text(0)))
    assert cursor["epoch"] in (shown, shown + 1)
    resumed = runner.start(["--resume", str(runner.root / "runs" / "stopped")], 2)
    resumed.wait_for(rf"Resuming at epoch {cursor['epoch']}, batch {cursor['next_batch']}")
    resumed.wait_for(rf" {cursor['epoch'] + 1}/4999")
    resumed.stop()


def test_signal_to_one_rank_stops_all(runner: JobRunner) -> None:
    job = runner.start(runner.flags("stopped-by-one", **LONG), 2)
    job.wait_for(r" 2/4999")
    job.ranks[1].send_signal(signal.SIGTERM)
    assert job.codes(60) == [130, 130]
    assert "Stopped by a signal to another rank" in job.text(0)


def test_missing_rank_is_reported_before_slow_setup(runner: JobRunner) -> None:
    job = runner.start(runner.flags("missing", **{"dist-timeout": 3}), 3, leave_out=[1])
    assert job.codes(30) == [2, 2]
    assert "rank 1 of 3 did not connect to rank 0" in job.text(0)
    assert "within 3 s" in job.text(0)
    assert not (runner.root / "runs" / "missing").exists()


def test_invalid_settings_are_reported_once(runner: JobRunner) -> None:
    job = runner.start(runner.flags("rejected", **{"batch-size": 1}), 2)
    codes = job.codes(120)
    # Rank 1 prints nothing; it may notice rank 0's exit first.
    assert codes[0] == USER_ERROR and codes[1] in (USER_ERROR, RANK_LOST)
    assert job.text(0).count("--batch-size 1: must be at least 2, the number of ranks") == 1
    assert job.text(1) == ""


def test_failure_of_one_rank_ends_all_with_its_error(runner: JobRunner) -> None:
    """Rank 1 starts in a folder without the data set."""
    (runner.root / "elsewhere").mkdir(exist_ok=True)

    def beside(rank: int) -> list[str]:
        folder = runner.root / "elsewhere" if rank else runner.root
        return ["sh", "-c", 'cd "$0" && exec "$@"', str(folder)]

    flags = runner.flags("one-fails", **LONG, data="set/data.yaml")
    job = runner.start(flags, 2, prefix=beside)
    assert job.codes(120) == [RANK_LOST, USER_ERROR]
    assert "set/data.yaml: no such dataset yaml" in job.text(0)
    assert "rank 1" in job.text(0)


def test_interrupt_before_training_ends_all_ranks(runner: JobRunner) -> None:
    job = runner.start(runner.flags("too-early", **LONG), 2)
    job.wait_for("train: 8 images")
    job.ranks[1].send_signal(signal.SIGINT)
    assert job.codes(120) == [RANK_LOST, INTERRUPTED]
    assert "interrupted" in job.text(0)


def test_callback_on_one_rank_stops_all(runner: JobRunner) -> None:
    job = runner.start(runner.flags("by-callback", **LONG), 2, module="tests.distributed.callback_job")
    assert job.codes(120) == [0, 0], job.text(0) + job.text(1)
    assert "Stopped by a callback" in job.text(0)


def test_no_rank_exits_before_last_save(runner: JobRunner) -> None:
    flags = runner.flags("slow-disk", **LONG, nosave=True)
    job = runner.start(flags, 2, module="tests.distributed.slow_disk_job")
    job.wait_for(r" 2/4999")
    interrupt(job)
    job.ranks[1].wait(120)
    assert (runner.root / "runs" / "slow-disk" / "weights" / "last.safetensors").exists()  # it takes four seconds
    assert job.codes(60) == [INTERRUPTED, INTERRUPTED]
