"""Two hosts: network namespaces with their own addresses, connected by a virtual cable that can be unplugged."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from graph_train.engine.schedule import Schedule
from graph_train.host.failures import RANK_LOST
from graph_train.runs.checkpoint import load_checkpoint
from tests.distributed.jobs import JobRunner
from tests.distributed.test_training import rows
from tests.graph_train.training_runner import write_data_set

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]
HOSTS = (f"gt{os.getpid()}a", f"gt{os.getpid()}b")
ADDRESSES = ("10.231.77.1", "10.231.77.2")
CABLE = "cable0"
EPOCHS, STEPS_PER_EPOCH = 10, 2


def host_prefix(rank: int) -> list[str]:
    """Return the command prefix to run on the host of a rank."""
    return ["ip", "netns", "exec", HOSTS[rank]]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def set_link(state: str, host: int) -> None:
    ip("-n", HOSTS[host], "link", "set", CABLE, state)


TWO_HOSTS: dict[str, Any] = {"prefix": host_prefix, "address": ADDRESSES[0], "ranks_per_host": 1}


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip (package iproute2)")
    try:
        for host in HOSTS:
            ip("netns", "add", host)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", CABLE, "netns", HOSTS[0], "type", "veth", "peer", "name", CABLE, "netns", HOSTS[1])
        for number, (host, address) in enumerate(zip(HOSTS, ADDRESSES, strict=True)):
            ip("-n", host, "address", "add", f"{address}/24", "dev", CABLE)
            ip("-n", host, "link", "set", "lo", "up")
            set_link("up", number)
        yield
    finally:
        for host in HOSTS:
            ip("netns", "delete", host)


def test_two_hosts_match_single_process(runner: JobRunner, hosts: None) -> None:
    runner.run(runner.flags("one", epochs=EPOCHS), 1)
    job = runner.run(runner.flags("two", epochs=EPOCHS, **{"sync-bn": True}), 2, **TWO_HOSTS)
    np.testing.assert_allclose(
        rows(runner.root / "runs" / "two"), rows(runner.root / "runs" / "one"), rtol=2e-4, atol=2e-5
    )
    assert re.search(r"All 2 ranks hold the same weights: [0-9a-f]{32}", job.text(0))


def test_reports_local_rank_counted_over_all_hosts(runner: JobRunner, hosts: None) -> None:
    job = runner.start(runner.flags("miscounted"), 2, **{**TWO_HOSTS, "ranks_per_host": 2})
    assert 0 not in job.codes(120)
    assert "LOCAL_RANK must count from 0 on each host" in job.text(0) + job.text(1)


def bytes_sent(rank: int) -> int:
    """Return the bytes sent by a host so far."""
    table = subprocess.run(
        [*host_prefix(rank), "cat", "/proc/net/dev"], check=True, capture_output=True, text=True
    ).stdout
    columns = next(row for row in table.splitlines() if row.strip().startswith(f"{CABLE}:")).split()
    return int(columns[9])


def bytes_sent_between(runner: JobRunner, epochs: tuple[int, int], **changed: Any) -> tuple[list[int], int]:
    """Return the bytes that each host sends between two epochs, and the size of the gradients in bytes.

    It is the difference between two runs, so that traffic at start and end cancels out.
    """
    sent = []
    for last in epochs:
        before = bytes_sent(0), bytes_sent(1)
        name = f"bytes{len(runner.jobs)}"
        flags = {"epochs": last, "noval": True, "cfg": "yolov5n.yaml", "noautoanchor": True, **changed}
        runner.run(runner.flags(name, **flags), 2, **TWO_HOSTS)
        sent.append((bytes_sent(0) - before[0], bytes_sent(1) - before[1]))
    found = re.search(r"([\d,]+) parameters, ", (runner.root / "runs" / name / "train.log").read_text())
    assert found is not None
    return [after - earlier for earlier, after in zip(*sent, strict=True)], 4 * int(found.group(1).replace(",", ""))


def test_each_step_transfers_gradients_once(runner: JobRunner, hosts: None) -> None:
    """A batch of nominal size, here all eight images, is an update."""
    sent, gradients = bytes_sent_between(runner, (1, 11), **{"batch-size": 64})
    for rank in range(2):
        # In a ring of two ranks, each sends half of the gradients twice, that is, as many bytes as the gradients have.
        assert gradients < sent[rank] / 10 < 1.1 * gradients, (rank, sent, gradients)


def test_accumulated_update_transfers_gradients_once(runner: JobRunner, hosts: None) -> None:
    """Batches of 4 images are accumulated to 64, so the fifth epoch has 32 batches and two updates."""
    batches = 32
    schedule = Schedule(epochs=5, batches_per_epoch=batches, batch_size=4, warmup=100)
    updates = sum(schedule.at(iteration, 4).update for iteration in range(4 * batches, 5 * batches))
    assert (schedule.accumulate(4 * batches), updates) == (16, 2)
    data = write_data_set(runner.root / "large", train_images=4 * batches)
    sent, gradients = bytes_sent_between(runner, (4, 5), data=data)
    # The checkpoint at the end of an epoch includes gradients accumulated since the last update.
    sums = updates + 1
    for rank in range(2):
        assert gradients < sent[rank] / sums < 1.1 * gradients, (rank, sent, gradients)


def test_network_loss_ends_job_and_keeps_checkpoints(runner: JobRunner, hosts: None) -> None:
    folder = runner.root / "runs" / "pulled"
    flags = runner.flags("pulled", epochs=5000, noval=True)
    job = runner.start(flags, 2, **TWO_HOSTS)
    job.wait_for(r" 3/4999")
    set_link("down", 1)
    pulled = time.monotonic()
    try:
        codes = job.codes(60)
        assert time.monotonic() - pulled < 60
    finally:
        set_link("up", 1)
    assert RANK_LOST in codes and 0 not in codes
    assert re.search(r"rank 1 \(.*sent no heartbeat", job.text(0)), job.text(0)
    done = load_checkpoint(folder / "weights" / "last.safetensors").header["cursor"]["epoch"]
    assert done >= 3
    runner.run(["--resume", str(folder), "--epochs", str(done + 2)], 1)
    assert load_checkpoint(folder / "weights" / "last.safetensors").header["cursor"]["epoch"] == done + 2
