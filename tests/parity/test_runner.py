"""The command `tests.parity` without the kernel plugin, in a child process."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.parity", str(folder), "--kernels", "off", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


def test_passes_with_kernels_off(goldens: Path) -> None:
    done = run(goldens, "--mode", "eager", "--only", "loss_")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" ok ") == len(list(goldens.glob("loss_*.npz")))
    assert run(goldens, "--only", "bbox_iou").returncode == 0


def test_wrong_value_is_detected(goldens: Path, tmp_path: Path) -> None:
    vectors = dict(np.load(goldens / "nms.npz"))
    name = next(name for name in vectors if name.endswith("_image0") and vectors[name].ndim == 2 and len(vectors[name]))
    vectors[name] = vectors[name] + np.float32(1.0)
    np.savez(tmp_path / "nms.npz", **vectors)
    done = run(tmp_path)
    assert done.returncode == 1
    assert "FAIL" in done.stdout


def test_missing_vectors_are_an_error(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 2
    shutil.rmtree(tmp_path)
    assert run(tmp_path).returncode == 2
