"""What is checked before a run begins."""

import shutil
from typing import Any

import pytest

from graph_train.hooks.callbacks import Callbacks
from graph_train.launch.train import train
from tests.graph_train.training_runner import TrainingRunner


@pytest.mark.parametrize("freeze", [11, [0, 10]])
@pytest.mark.parametrize("evolve", [0, 1])
def test_freezing_unknown_layers_leaves_no_run_folder(runner: TrainingRunner, freeze: Any, evolve: int) -> None:
    with pytest.raises(ValueError, match=r"--freeze .*1[01]: the network has only layers 0 to 9"):
        runner.train(freeze=freeze, evolve=evolve)
    assert not (runner.root / "runs").exists()


def test_network_for_grey_images_is_rejected(runner: TrainingRunner) -> None:
    grey = runner.root / "grey.yaml"
    grey.write_text(f"{runner.cfg.read_text()}ch: 1\n")
    with pytest.raises(ValueError, match=r"grey.yaml: ch=1: images have 3 channels .*; remove ch"):
        runner.train(cfg=grey)
    assert not (runner.root / "runs").exists()


def test_callbacks_cannot_change_the_labels(runner: TrainingRunner) -> None:
    callbacks = Callbacks()
    callbacks.register_action("on_pretrain_routine_end", "mine", lambda labels, names: labels.fill(99))
    train(callbacks=callbacks, **runner.flags(project=runner.root / "callbacks"))
    assert callbacks.failed == ["mine"]


def test_freezing_all_layers_raises(runner: TrainingRunner) -> None:
    with pytest.raises(ValueError, match="--freeze 10: freezes all 10 layers; freeze fewer"):
        runner.train(freeze=10)


def test_freeze_is_compared_with_weights_before_data_are_read(runner: TrainingRunner) -> None:
    weights = runner.train().folder / "weights" / "best.safetensors"
    shutil.rmtree(runner.root / "set" / "images")
    (runner.root / "set" / "images" / "train").mkdir(parents=True)
    (runner.root / "set" / "images" / "val").mkdir()
    with pytest.raises(ValueError, match="--freeze 11: the network has only layers 0 to 9"):
        runner.train(cfg="", weights=weights, freeze=11)
