"""The checks of `graph-bench kills` detect each kind of damage."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.resilience.run_check import damaged_files, differences, known_states, newest_state, state_of
from graph_train.runs.checkpoint import load_checkpoint, save_checkpoint
from tests.graph_train.training_runner import TrainingRunner


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TrainingRunner(tmp_path_factory.mktemp("runner")).train(epochs=2, noplots=False, save_period=1).folder


@pytest.fixture
def folder(reference: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(reference, tmp_path / "run")
    yield tmp_path / "run"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_row(path: Path) -> None:
    path.write_text(path.read_text().replace("1", "2"))


def test_uninterrupted_run_passes(folder: Path, reference: Path) -> None:
    assert damaged_files(folder, reference) == []
    assert differences(folder, reference) == []
    assert newest_state(folder, known_states(reference)) == {"epoch": 2, "batch": 0, "equal": True}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("weights/last.safetensors", cut),
        ("weights/epoch0.safetensors", cut),
        ("weights/best.safetensors", cut),
        ("results.png", cut),
        ("labels.jpg", cut),
        ("report.json", cut),
        ("report.html", cut),
        ("results.csv", other_row),
    ],
)
def test_damaged_file_is_reported(folder: Path, reference: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    (found,) = damaged_files(folder, reference)
    assert found.startswith(f"{name}: ")


def test_temporary_file_is_ignored(folder: Path, reference: Path) -> None:
    (folder / "weights" / ".last.1234.tmp.safetensors").write_bytes(b"half")
    assert damaged_files(folder, reference) == []


def test_different_weights_or_state_are_detected(folder: Path, reference: Path) -> None:
    last = folder / "weights" / "last.safetensors"
    state = load_checkpoint(last)
    name = next(name for name in state.arrays if name.startswith("model/"))
    arrays = {**state.arrays, name: np.nextafter(state.arrays[name], np.float32(9))}
    save_checkpoint(last, replace(state, arrays=arrays))
    shutil.copy(folder / "weights" / "epoch0.safetensors", folder / "weights" / "best.safetensors")
    assert differences(folder, reference) == ["weights/best.safetensors", "weights/last.safetensors"]
    assert newest_state(folder, known_states(reference))["equal"] is False


def test_state_absent_from_reference_run_is_detected(folder: Path, reference: Path) -> None:
    last = folder / "weights" / "last.safetensors"
    state = load_checkpoint(last)
    cursor = {**state.header["cursor"], "epoch": 1, "next_batch": 1}
    save_checkpoint(last, replace(state, header={**state.header, "cursor": cursor}))
    assert state_of(load_checkpoint(last)) == (1, 1)
    assert newest_state(folder, known_states(reference)) == {"epoch": 1, "batch": 1, "equal": None}
    last.unlink()
    assert newest_state(folder, {}) == {"epoch": None, "batch": None, "equal": None}
