"""Runs killed at any moment resume exactly; `graph-bench kills` repeats this more often."""

from pathlib import Path

import pytest
import yaml

from benchmarks.cli import main
from benchmarks.harness.results import read_result
from tests.graph_train.tiny import TINY


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("number", "kills"), [("KILL", 8), ("TERM", 4)])
def test_killed_runs_match_uninterrupted(tmp_path: Path, number: str, kills: int) -> None:
    cfg, result = tmp_path / "tiny.yaml", tmp_path / "kills.json"
    cfg.write_text(yaml.safe_dump(TINY))
    flags = ["--kills", str(kills), "--signal", number, "--cfg", str(cfg), "--imgsz", "64", "--batch-size", "16"]
    assert main(["kills", *flags, "--save-steps", "3", "--json", str(result)]) == 0
    body = read_result(result)
    assert [end["differences"] for end in body["chains"]] == [[]] * len(body["chains"])
    assert body["exact_resumes"] == kills
    assert (body["states_different"], body["damaged_files"]) == (0, 0)
    assert body["states_equal"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_long_run_uses_no_more_memory(tmp_path: Path) -> None:
    cfg, result = tmp_path / "tiny.yaml", tmp_path / "soak.json"
    cfg.write_text(yaml.safe_dump(TINY))
    flags = ["--minutes", "3", "--cfg", str(cfg), "--imgsz", "64", "--train-flags=--noplots"]
    assert main(["soak", *flags, "--json", str(result), "--plot", str(tmp_path / "soak.png")]) == 0
    grown = {name: values["grown"] for name, values in read_result(result)["growth"].items()}
    assert (grown["descriptors"], grown["threads"], grown["children"]) == (0, 0, 0)
    # Allocators retain some memory; leaking a batch or a checkpoint per epoch would exceed this by far.
    assert grown["rss_mb"] < 30
    assert grown["shared_mb"] < 5
