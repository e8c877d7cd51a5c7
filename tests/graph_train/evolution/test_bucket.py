"""`--bucket`: calls of `gsutil`, which is replaced by a script that copies files."""

import logging
import os
from pathlib import Path

import pytest

from graph_train.evolution.bucket import Bucket
from graph_train.settings.train_options import options_from_flags
from tests.graph_train.training_runner import TrainingRunner

_CLIENT = """#!/bin/bash
arguments=("${@//gs:\\/\\//$CLOUD/}")
[ "$1" = du ] && exec stat -c "%s %n" "${arguments[1]}"
exec "${arguments[@]}"
"""


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands in for Cloud Storage, with one bucket `mine`."""
    folder = tmp_path / "cloud"
    (folder / "mine").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    client = tmp_path / "bin" / "gsutil"
    client.write_text(_CLIENT)
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CLOUD", str(folder))
    return folder / "mine"


@pytest.mark.parametrize("name", ["mine", "gs://mine", "gs://mine/"])
def test_longer_table_is_kept(name: str, cloud: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "evolve.csv", cloud / "evolve.csv"
    Bucket(name).fetch(ours)
    assert not ours.exists()
    theirs.write_text("head\n1\n")
    Bucket(name).fetch(ours)
    assert ours.read_text() == "head\n1\n"
    ours.write_text("head\n1\n2\n")
    Bucket(name).fetch(ours)
    assert ours.read_text() == "head\n1\n2\n"
    Bucket(name).publish([ours])
    assert theirs.read_text() == "head\n1\n2\n"


def test_bucket_failure_is_reported_and_not_fatal(
    cloud: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "evolve.csv").write_text("head\n")
    with caplog.at_level(logging.WARNING):
        Bucket("nowhere").publish([tmp_path / "evolve.csv"])
    (line,) = caplog.messages
    assert line.startswith("--bucket: gsutil cp: ")
    assert line.endswith("; the evolution continues")


def test_evolution_resumes_on_another_machine(cloud: Path, tmp_path: Path) -> None:
    assert options_from_flags(bucket="mine", evolve=2).run.bucket == "mine"
    runner = TrainingRunner(tmp_path)
    first = runner.train(evolve=1, bucket="mine", name="here")
    assert (cloud / "evolve.csv").read_bytes() == (first.folder / "evolve.csv").read_bytes()
    assert (cloud / "hyp_evolve.yaml").exists()
    second = runner.train(evolve=2, bucket="mine", name="there")
    assert "continuing with gs://mine/evolve.csv" in second.log
    rows = (cloud / "evolve.csv").read_text().splitlines()
    assert len(rows) == 3
    assert rows[:2] == (first.folder / "evolve.csv").read_text().splitlines()
