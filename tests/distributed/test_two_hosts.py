"""Two hosts: network namespaces with an address each, joined by a cable that can be pulled."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from graph_train.checkpoint import load_checkpoint
from graph_train.failures import RANK_LOST
from tests.distributed.jobs import JobLab
from tests.distributed.test_training import rows

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]
HOSTS = (f"gt{os.getpid()}a", f"gt{os.getpid()}b")
ADDRESSES = ("10.231.77.1", "10.231.77.2")
CABLE = "cable0"
EPOCHS, STEPS_PER_EPOCH = 10, 2


def inside(rank: int) -> list[str]:
    """What makes a command run on the host of a rank."""
    return ["ip", "netns", "exec", HOSTS[rank]]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def plug(state: str, host: int) -> None:
    ip("-n", HOSTS[host], "link", "set", CABLE, state)


TWO_HOSTS: dict[str, Any] = {"prefix": inside, "address": ADDRESSES[0], "ranks_per_host": 1}


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
            plug("up", number)
        yield
    finally:
        for host in HOSTS:
            ip("netns", "delete", host)


def test_two_hosts_train_as_one_process(lab: JobLab, hosts: None) -> None:
    lab.run(lab.flags("one", epochs=EPOCHS), 1)
    job = lab.run(lab.flags("two", epochs=EPOCHS, **{"sync-bn": True}), 2, **TWO_HOSTS)
    np.testing.assert_allclose(rows(lab.root / "runs" / "two"), rows(lab.root / "runs" / "one"), rtol=2e-4, atol=2e-5)
    assert re.search(r"All 2 ranks hold the same weights: [0-9a-f]{32}", job.text(0))


def test_a_local_rank_that_counts_over_all_hosts_is_named(lab: JobLab, hosts: None) -> None:
    job = lab.start(lab.flags("miscounted"), 2, **{**TWO_HOSTS, "ranks_per_host": 2})
    assert 0 not in job.codes(120)
    assert "LOCAL_RANK must count the ranks of each host from 0" in job.text(0) + job.text(1)


def sent_by(rank: int) -> int:
    """Bytes that a host has put on the cable so far."""
    table = subprocess.run([*inside(rank), "cat", "/proc/net/dev"], check=True, capture_output=True, text=True).stdout
    columns = next(row for row in table.splitlines() if row.strip().startswith(f"{CABLE}:")).split()
    return int(columns[9])


def test_each_step_sends_the_gradients_once(lab: JobLab, hosts: None) -> None:
    """The difference of two runs: what is sent at their start and end is in both."""
    sent = []
    for epochs in (1, 11):
        before = sent_by(0), sent_by(1)
        flags = lab.flags(f"bytes{epochs}", epochs=epochs, noval=True, cfg="yolov5n.yaml", noautoanchor=True)
        lab.run(flags, 2, **TWO_HOSTS)
        sent.append((sent_by(0) - before[0], sent_by(1) - before[1]))
    found = re.search(r"([\d,]+) parameters, ", (lab.root / "runs" / "bytes1" / "train.log").read_text())
    assert found is not None
    gradients = 4 * int(found.group(1).replace(",", ""))
    for rank in range(2):
        # Of two ranks each sends as much as the gradients are large, by a ring: half of them twice.
        per_step = (sent[1][rank] - sent[0][rank]) / (10 * STEPS_PER_EPOCH)
        assert gradients < per_step < 1.1 * gradients, (rank, per_step, gradients)


def test_pulled_cable_ends_the_job_and_loses_nothing(lab: JobLab, hosts: None) -> None:
    folder = lab.root / "runs" / "pulled"
    flags = lab.flags("pulled", epochs=5000, noval=True)
    job = lab.start(flags, 2, **TWO_HOSTS)
    job.wait_for(r" 3/4999")
    plug("down", 1)
    pulled = time.monotonic()
    try:
        codes = job.codes(60)
        assert time.monotonic() - pulled < 60
    finally:
        plug("up", 1)
    assert RANK_LOST in codes and 0 not in codes
    assert re.search(r"rank 1 \(.*no sign of life", job.text(0)), job.text(0)
    done = load_checkpoint(folder / "weights" / "last.safetensors").header["cursor"]["epoch"]
    assert done >= 3
    lab.run(["--resume", str(folder), "--epochs", str(done + 2)], 1)
    assert load_checkpoint(folder / "weights" / "last.safetensors").header["cursor"]["epoch"] == done + 2
