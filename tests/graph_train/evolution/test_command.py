"""The evolution command when its process is killed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.graph_train.training_runner import TrainingRunner


@pytest.mark.slow
def test_killed_evolution_command_resumes_exactly(tmp_path: Path) -> None:
    """The training process ends with the killed command, and the same command resumes."""
    runner = TrainingRunner(tmp_path)

    def command(name: str) -> list[str]:
        flags = {**runner.flags(evolve=4, seed=5), "project": runner.root / "killed", "name": name}
        switches = {"graph": "--eager", "noplots": "--noplots"}
        values = [item for key, value in flags.items() if key not in switches for item in (f"--{key}", str(value))]
        return [sys.executable, "-m", "graph_train", *values, *switches.values(), "--exist-ok"]

    subprocess.run(command("whole"), check=True, capture_output=True, timeout=500)
    process = subprocess.Popen(command("cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole, cut = runner.root / "killed" / "whole", runner.root / "killed" / "cut"
    while not (cut / "evolve.csv").exists() or len((cut / "evolve.csv").read_text().splitlines()) < 3:
        time.sleep(0.2)
        assert process.poll() is None
    while not (cut / ".request.json").exists():
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    # The process may have just started; then it ends right after starting.
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    subprocess.run(command("cut"), check=True, capture_output=True, timeout=500)
    for file in ("evolve.csv", "hyp_evolve.yaml"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes()
