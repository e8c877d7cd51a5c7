"""Checkpoints survive damage, disk errors, a second run, and a kill before the first checkpoint."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_train.cli.train import main
from graph_train.host.failures import DivergedError, NotSavedError
from graph_train.runs import run_folder
from graph_train.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from graph_train.runs.run_folder import (
    BEST,
    DAMAGED,
    DAMAGED_BEST,
    EARLIER,
    EARLIER_BEST,
    LAST,
    RunFolder,
    point_to_resume,
)
from graph_train.runs.saving import Saving, Snapshot
from graph_train.settings.train_options import RunOptions
from kernels.host.files import older
from tests.file_limit import file_limit
from tests.graph_train.training_runner import FinishedRun, TrainingRunner


@pytest.fixture(scope="module")
def uninterrupted(runner: TrainingRunner) -> FinishedRun:
    """Return a run of three epochs that saved after every batch and keeps two checkpoints."""
    return runner.train(epochs=3, save_steps=1, seed=5)


@contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def copied(finished: FinishedRun, folder: Path) -> Path:
    return Path(shutil.copytree(finished.folder, folder))


@pytest.fixture
def run(uninterrupted: FinishedRun, tmp_path: Path) -> Path:
    """Return a copy of the uninterrupted run, to change and resume."""
    return copied(uninterrupted, tmp_path / "run")


def assert_same_files(first: Path, second: Path) -> None:
    for name in ("results.csv", f"weights/{LAST}", "weights/best.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_damaged_newest_checkpoint_falls_back_to_previous(
    runner: TrainingRunner, uninterrupted: FinishedRun, run: Path
) -> None:
    last = run / "weights" / LAST
    before = load_checkpoint(older(last, 1)).header["cursor"]
    # After which batch depends on the disk, since a save waits for the one before it.
    assert before != load_checkpoint(last).header["cursor"]
    flip(last)
    log_length = len((run / "train.log").read_text())
    again = runner.train_as_given(resume=run)
    message = again.log[log_length:]
    at = f"epoch {before['epoch']}, batch {before['next_batch']}"
    assert f"{last}: damaged checkpoint (checksum differs)" in message
    assert f"Using the previous checkpoint: {older(last, 1)} ({at})" in message
    assert (run / "weights" / DAMAGED).exists()
    assert_same_files(run, uninterrupted.folder)


def test_damaged_best_weights_do_not_end_resumed_run(runner: TrainingRunner, run: Path) -> None:
    best = run / "weights" / BEST
    best.write_bytes(best.read_bytes()[:100])
    again = runner.train_as_given(resume=run)
    assert f"{best}: empty, truncated or not a safetensors file" in again.log
    assert (run / "weights" / DAMAGED_BEST).stat().st_size == 100
    assert not best.exists()


def test_edited_settings_files_are_ignored_with_warning(runner: TrainingRunner, run: Path) -> None:
    log_length = len((run / "train.log").read_text())
    assert "edits of these" not in runner.train_as_given(resume=run).log[log_length:]
    opt, hyp = run / "opt.yaml", run / "hyp.yaml"
    opt.write_text(opt.read_text().replace("seed: ", "seed: 1"))
    hyp.write_text(hyp.read_text().replace("lr0: ", "lr0: 7"))
    message = runner.train_as_given(resume=run).log
    assert f"{opt}: a resumed run uses the checkpoint's settings; edits of these are ignored: seed=1" in message
    assert f"{hyp}: a resumed run uses the checkpoint's settings; edits of these are ignored: lr0=7" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ema/model.0.conv.weight", float("nan")),
        ("model/model.0.bn.running_var", float("inf")),
        ("first_moment/model.0.conv.weight", float("-inf")),
        ("model/model.0.bn.running_var", -1.0),
        ("ema/model.0.bn.running_var", -1e-30),
    ],
)
def test_impossible_arrays_with_valid_checksum_are_damage(
    runner: TrainingRunner, uninterrupted: FinishedRun, run: Path, name: str, value: float
) -> None:
    last = run / "weights" / LAST
    sound = load_checkpoint(last)
    array = sound.arrays[name].copy()
    array.flat[-1] = value
    save_checkpoint(last, replace(sound, arrays={**sound.arrays, name: array}))
    reason = "is negative" if np.isfinite(value) else "is not finite"
    assert f"{last}: damaged checkpoint ({name} {reason}); use an older one" in runner.train_as_given(resume=run).log
    assert_same_files(run, uninterrupted.folder)


def test_negative_second_moment_is_damage(tmp_path: Path) -> None:
    name = "second_moment/model.0.conv.weight"
    save_checkpoint(tmp_path / LAST, Checkpoint({name: np.array([1, -1], np.float32)}, {}))
    with pytest.raises(ValueError, match=f"{name} is negative"):
        load_checkpoint(tmp_path / LAST)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int32])
def test_arrays_of_other_types_are_rejected(runner: TrainingRunner, run: Path, kind: type) -> None:
    name, last = "model/model.0.conv.weight", run / "weights" / LAST
    sound = load_checkpoint(last)
    save_checkpoint(last, replace(sound, arrays={**sound.arrays, name: sound.arrays[name].astype(kind)}))
    with pytest.raises(ValueError, match=f"checkpoint has {name} of type {np.dtype(kind)}, but this run needs float32"):
        runner.train_as_given(resume=run)


def test_checkpoint_of_another_run_is_rejected(runner: TrainingRunner, run: Path) -> None:
    other = runner.train(epochs=2, seed=6).folder / "weights" / LAST
    own, table = (run / "weights" / LAST).read_bytes(), (run / "results.csv").read_bytes()
    for name in (LAST, "copy.safetensors"):
        file = run / "weights" / name
        shutil.copy(other, file)
        for given in (run, file):
            if name == LAST or given == file:
                with pytest.raises(ValueError, match=rf"results.csv: the results of epoch 0 are not those in {file}"):
                    runner.train_as_given(resume=given)
        assert (run / "results.csv").read_bytes() == table
        (run / "weights" / LAST).write_bytes(own)
    shutil.copy(other, run / "weights" / LAST)
    (run / "results.csv").unlink()  # as the message advises
    assert len(runner.train_as_given(resume=run).rows) == 2


def test_moved_and_renamed_run_is_resumed_without_a_warning(
    runner: TrainingRunner, uninterrupted: FinishedRun, tmp_path: Path
) -> None:
    moved = copied(uninterrupted, tmp_path / "elsewhere" / "renamed")
    for epochs in (3, 4):
        assert "WARNING" not in runner.train_as_given(resume=moved, epochs=epochs).log


def test_resume_with_only_damaged_checkpoints_raises(runner: TrainingRunner, run: Path) -> None:
    for path in (run / "weights").glob("last*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"no checkpoint can be read: .*last\.safetensors.*last\.1\.safetensors"):
        runner.train_as_given(resume=run)


def test_resume_without_checkpoint_restarts_from_settings(
    runner: TrainingRunner, uninterrupted: FinishedRun, run: Path
) -> None:
    for path in (run / "weights").iterdir():
        path.unlink()
    again = runner.train_as_given(resume=run)
    assert "stopped before its first checkpoint; starting from the beginning" in again.log
    assert_same_files(run, uninterrupted.folder)


def test_network_and_results_come_from_checkpoint(
    runner: TrainingRunner, uninterrupted: FinishedRun, run: Path
) -> None:
    os.replace(older(run / "weights" / LAST, 1), run / "weights" / LAST)
    (run / "results.csv").unlink()
    cfg, gone = runner.cfg, runner.cfg.with_suffix(".gone")
    cfg.rename(gone)
    try:
        runner.train_as_given(resume=run)
    finally:
        gone.rename(cfg)
    assert_same_files(run, uninterrupted.folder)


def test_resume_finds_run(tmp_path: Path, uninterrupted: FinishedRun) -> None:
    project = tmp_path / "runs"
    with pytest.raises(ValueError, match="no run in"):
        point_to_resume("last", str(project))
    old, new = (copied(uninterrupted, project / name) for name in ("old", "new"))
    for path in old.rglob("*"):
        os.utime(path, (0, 0))
    assert point_to_resume("last", str(project)).folder == new
    assert point_to_resume(str(old), str(project)).folder == old
    (new / "weights" / LAST).unlink()  # killed between two renames where the file system has no hard links
    assert point_to_resume(str(new / "weights" / LAST), "").file is None
    named = older(old / "weights" / LAST, 1)
    assert (point_to_resume(str(named), "").folder, point_to_resume(str(named), "").file) == (old, named)
    with working_directory(old / "weights"):
        assert point_to_resume(named.name, "").folder == old
    with pytest.raises(ValueError, match="is the weights folder of a run; give the run's folder"):
        point_to_resume(str(old / "weights"), "")
    (old / "weights" / "best.onnx").touch()
    with pytest.raises(
        ValueError, match=r"best.onnx: not a checkpoint; to start a new run from weights, use --weights"
    ):
        point_to_resume(str(old / "weights" / "best.onnx"), "")
    with pytest.raises(ValueError, match="weights folder of its run"):
        point_to_resume(str(shutil.copy(str(named), tmp_path / "elsewhere.safetensors")), "")


def test_private_runs_of_others_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latest_change = run_folder._latest_change
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "opt.yaml").touch()

    def private(folder: Path) -> float:
        if folder.name == "other":
            raise PermissionError
        return latest_change(folder)

    monkeypatch.setattr(run_folder, "_latest_change", private)
    assert point_to_resume("last", str(tmp_path)).folder == tmp_path / "mine"
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(ValueError, match="no run in"):
        point_to_resume("last", str(tmp_path))
    with pytest.raises(PermissionError):
        point_to_resume(str(tmp_path / "other"), "")


@pytest.mark.parametrize("file", ["labels/train/0.txt", "images/val/0.jpg"])
def test_changed_data_set_warns(runner: TrainingRunner, uninterrupted: FinishedRun, run: Path, file: str) -> None:
    path = runner.root / "set" / file
    content = path.read_bytes()
    # Bytes after the end of a JPEG are ignored.
    path.write_bytes(content + b"1 0.5 0.5 0.2 0.2\n")
    try:
        assert "The data set differs from the checkpoint's" in runner.train_as_given(resume=run).log
    finally:
        path.write_bytes(content)
    assert "The data set differs" not in uninterrupted.log


def test_early_stopped_run_stays_finished(runner: TrainingRunner) -> None:
    interrupted = runner.train(patience=2, epochs=9, stop_after=3)
    last = interrupted.folder / "weights" / LAST
    checkpoint = load_checkpoint(last)
    # As if the first epoch had been the best by far.
    header = {**checkpoint.header, "early_stopping": {"best_fitness": 0.99, "best_epoch": 0}}
    save_checkpoint(last, replace(checkpoint, header=header))
    assert len(runner.train_as_given(resume=interrupted.folder).rows) == 3
    assert len(runner.train_as_given(resume=interrupted.folder).rows) == 3
    assert len(runner.train_as_given(resume=interrupted.folder, epochs=10).rows) == 4


def test_new_run_in_old_folder_backs_up_old_checkpoints(runner: TrainingRunner) -> None:
    first = runner.train(name="shared", epochs=2)
    state, best = (first.folder / "weights" / LAST).read_bytes(), first.folder.joinpath("weights", BEST).read_bytes()
    second = runner.train(name="shared", exist_ok=True, epochs=1)
    assert (second.folder / "weights" / EARLIER).read_bytes() == state
    assert not older(second.folder / "weights" / LAST, 1).exists()
    assert (second.folder / "weights" / EARLIER_BEST).read_bytes() == best


def test_two_runs_never_share_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run")
    with pytest.raises(ValueError, match=rf"another run \(process {os.getpid()}\) is using this folder"):
        RunFolder(tmp_path / "run")
    first.close()
    RunFolder(tmp_path / "run").close()


# --- a failing disk --------------------------------------------------------------------------------------------------


def test_failing_disk(runner: TrainingRunner, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    interrupted = runner.train(epochs=4, stop_after=3, seed=5)
    last = interrupted.folder / "weights" / LAST
    state = last.read_bytes()
    # Logs and tables fit on the disk, but no checkpoint.
    with file_limit(len(state) // 2):
        assert main(["--resume", str(interrupted.folder)]) == NotSavedError.exit_code
        (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("graph-train:")]
        assert f"{last}: cannot be written (File too large); the last good checkpoint is {last}" in message
        assert last.read_bytes() == state
        # It trains to the end, but reports that the result is not saved.
        assert main(["--resume", str(interrupted.folder), "--on-save-error", "continue"]) == NotSavedError.exit_code
        assert f"the last good checkpoint is {last}" in capsys.readouterr().err
        assert last.read_bytes() == state
    assert (interrupted.folder / "results.csv").read_text().count("\n") == 1 + 4
    assert (interrupted.folder / "train.log").read_text().count("training continues") == 1
    # With free space again, the run repeats the unsaved steps.
    done = runner.train_as_given(resume=interrupted.folder)
    assert_same_files(done.folder, runner.train(epochs=4, seed=5, name="never-stopped").folder)


@pytest.fixture()
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(path: Path) -> None:
    """Fill up a file system."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def test_full_disk_keeps_checkpoints(
    runner: TrainingRunner, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is so full that not even logs can be written."""
    interrupted = runner.train(epochs=4, stop_after=3, seed=5, project=small_disk)
    state = (interrupted.folder / "weights" / LAST).read_bytes()
    fill(small_disk / "filler")
    assert shutil.disk_usage(small_disk).free == 0
    assert main(["--resume", str(interrupted.folder)]) == NotSavedError.exit_code
    message = capsys.readouterr().err
    assert "No space left on device" in message and "Traceback" not in message
    assert (interrupted.folder / "weights" / LAST).read_bytes() == state
    (small_disk / "filler").unlink()
    done = runner.train_as_given(resume=interrupted.folder)
    assert_same_files(done.folder, runner.train(epochs=4, seed=5, name="never-full").folder)


def test_uncreatable_folder_is_a_user_error(
    runner: TrainingRunner, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert main(["--cfg", str(runner.cfg), "--project", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_non_finite_state_is_not_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    saving = Saving(folder, RunOptions())
    good = Checkpoint({"model/a": np.ones(2, np.float32), "gradient_sum/a": np.full(2, np.nan, np.float32)}, {})
    saving.start(Snapshot(good))
    assert saving.finish()
    saving.start(Snapshot(Checkpoint({"model/a": np.array([1, np.inf], np.float32)}, {})))
    with pytest.raises(DivergedError, match="model/a is not finite; the last good checkpoint is"):
        saving.finish()
    careless = Saving(folder, RunOptions(), require_finite=False)
    careless.start(Snapshot(Checkpoint({"model/a": np.array([1, np.inf], np.float32)}, {})))
    assert not careless.finish()
    assert load_checkpoint(folder.last).arrays["model/a"].tolist() == [1, 1]
    folder.close()


def test_save_waits_for_pending_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def blocking_save(*given: Any, **named: Any) -> None:
        assert go_on.wait(60)
        save_checkpoint(*given, **named)

    monkeypatch.setattr("graph_train.runs.saving.save_checkpoint", blocking_save)
    folder = RunFolder(tmp_path / "run")
    saving = Saving(folder, RunOptions(save_steps=2, keep_saves=1))
    assert [saving.due(number) for number in range(4)] == [False, True, True, True]  # due until it is saved
    arrays = {"model/a": np.zeros(3, np.float32)}
    saving.start(Snapshot(Checkpoint(arrays, {"number": 1})))
    assert not saving.due(5)  # due, but the disk is busy
    go_on.set()
    saving.start(Snapshot(Checkpoint(arrays, {"number": 2})))
    assert saving.finish()
    assert load_checkpoint(folder.last).header["number"] == 2
    assert not saving.due(6)
    folder.close()


def test_exception_while_saving_propagates(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    saving = Saving(folder, RunOptions())
    saving.start(Snapshot(Checkpoint({"model/a": np.ones(2, np.complex64)}, {})))
    with pytest.raises(TypeError, match="complex64"):
        saving.finish()
    save_checkpoint(folder.last, Checkpoint({"model/a": np.ones(2, np.float32)}, {}))
    folder.close()
