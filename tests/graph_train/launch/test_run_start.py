"""Resuming after the data set has changed."""

from pathlib import Path

import pytest
import yaml

from graph_train.hooks.callbacks import Callbacks, TrainingHooks
from graph_train.launch.train import train
from graph_train.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from graph_train.runs.run_folder import LAST
from tests.graph_train.training_runner import FinishedRun, TrainingRunner


@pytest.fixture
def runner(tmp_path: Path) -> TrainingRunner:
    return TrainingRunner(tmp_path)


@pytest.fixture
def stopped(runner: TrainingRunner) -> FinishedRun:
    """Return a run that was stopped in its first epoch."""
    return runner.train(epochs=2, stop_after=1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("opt.yaml", "epochs: 2\n", "opt.yaml: has neither cfg nor weights; start a new run"),
        ("opt.yaml", "epochz: 2\n", "opt.yaml: unknown setting 'epochz'; did you mean 'epochs'?; start a new run"),
        ("hyp.yaml", None, "hyp.yaml: no such file; start a new run"),
    ],
)
def test_damaged_settings_of_run_without_checkpoint_are_named(
    runner: TrainingRunner, stopped: FinishedRun, name: str, content: str | None, message: str
) -> None:
    for file in (stopped.folder / "weights").iterdir():
        file.unlink()
    if content is None:
        (stopped.folder / name).unlink()
    else:
        (stopped.folder / name).write_text(content)
    with pytest.raises((ValueError, OSError)) as raised:
        runner.train_as_given(resume=stopped.folder)
    assert str(raised.value) == f"{stopped.folder}/{message}"


def test_changed_class_count_is_reported(runner: TrainingRunner, stopped: FinishedRun) -> None:
    content = yaml.safe_load(runner.data.read_text())
    runner.data.write_text(yaml.safe_dump({**content, "names": [*content["names"], "yellow"]}))
    with pytest.raises(ValueError, match=r"4 classes, but the run was started with 3.*--weights"):
        runner.train_as_given(resume=stopped.folder)


def test_ignored_edits_are_printable(runner: TrainingRunner, stopped: FinishedRun) -> None:
    settings = stopped.folder / "opt.yaml"
    settings.write_text(settings.read_text().replace("batch_size: 4", 'batch_size: "\\e[2J"'))
    log = runner.train_as_given(resume=stopped.folder).log
    assert r"edits of these are ignored: batch_size=\x1b[2J (checkpoint: 4)" in log


def test_position_beyond_epoch_end_raises(runner: TrainingRunner, stopped: FinishedRun) -> None:
    path = stopped.folder / "weights" / LAST
    sound = load_checkpoint(path)
    header = {**sound.header, "cursor": {**sound.header["cursor"], "next_batch": 10**15}}
    save_checkpoint(path, Checkpoint(sound.arrays, header))
    with pytest.raises(ValueError, match=f"at batch {10**15}, but an epoch has 2"):
        runner.train_as_given(resume=stopped.folder)


def test_shrunken_epoch_ends_at_position(runner: TrainingRunner) -> None:
    stopped = runner.train(epochs=1, batch_size=2, stop_after=3)
    for number in range(4):
        (runner.data.parent / "images" / "train" / f"{number}.jpg").unlink()
    whole = runner.train_as_given(resume=stopped.folder)
    assert "The data set differs from the checkpoint's" in whole.log
    assert len(whole.rows) == 1 and whole.recorded.shapes == []


def test_image_removed_during_training_does_not_prevent_resume(runner: TrainingRunner) -> None:
    class Remover(TrainingHooks):
        def on_train_epoch_end(self, epoch: int) -> None:
            (runner.data.parent / "images" / "train" / "3.jpg").unlink(missing_ok=True)

    callbacks = Callbacks()
    callbacks.add(Remover())
    flags = runner.flags(project=runner.root / "runs", name="gone", epochs=3)
    with pytest.raises(OSError, match=rf"3\.jpg: can no longer be read.*graph-train --resume {runner.root}/runs/gone"):
        train(callbacks=callbacks, **flags)
    assert len(runner.train_as_given(resume=runner.root / "runs" / "gone").rows) == 3
