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


def test_file_that_cannot_be_compared_fails(small_vectors: Path, tmp_path: Path) -> None:
    """An unknown name, a missing array, a damaged file, a training without its initial state: each with the reason."""
    vectors = dict(np.load(small_vectors / "loss_nl2.npz"))
    np.savez(tmp_path / "losses_nl2.npz", **vectors)
    np.savez(tmp_path / "loss_nl2.npz", **{name: value for name, value in vectors.items() if name != "tbox_1"})
    (tmp_path / "nms.npz").write_bytes(b"PK")
    shutil.copy(small_vectors / "train_sgd.npz", tmp_path)
    shutil.copy(small_vectors / "model_counts.npz", tmp_path / "model_yolov9.npz")
    shutil.copy(small_vectors / "bbox_iou.npz", tmp_path)
    done = run(tmp_path, "--mode", "eager")
    assert done.returncode == 1
    failed = {line.split()[0]: line.split("FAIL")[1].strip() for line in done.stdout.splitlines() if "FAIL" in line}
    assert failed["losses_nl2.npz"] == "no check is known for a file of this name"
    assert failed["loss_nl2.npz"] == "array tbox_1 is missing"
    assert failed["nms.npz"].startswith("not a readable .npz file")
    assert failed["train_sgd.npz"].startswith("train_common.npz, which has the initial state of all runs, is missing")
    assert failed["model_yolov9.npz"].startswith("the file's name should be model_ and the name of a shipped")
    assert "6 cases: 1 passed, 5 failed, 0 forgiven" in done.stdout


def test_missing_vectors_are_an_error(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 2
    shutil.rmtree(tmp_path)
    assert run(tmp_path).returncode == 2
