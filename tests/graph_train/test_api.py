"""The Python API: light imports, settings and results as for the commands, hooks in YOLOv5's order."""

from pathlib import Path
from typing import Any

import pytest

import graph_train
from graph_train.hooks.callbacks import HOOKS, Callbacks
from graph_train.training.trainer import TrainResult
from tests.graph_train.training_runner import TrainingRunner
from tests.python_process import run_python


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, graph_train; assert graph_train.__all__ == ['export', 'load', 'predict', 'train', 'validate']; "
        "assert not {'oneflow', 'numpy', 'nvidia.dali', 'matplotlib', 'yaml'} & set(sys.modules)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def test_unknown_attribute_raises() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        graph_train.trian  # noqa: B018 - the access is what is tried


def test_unknown_setting_suggests_nearest() -> None:
    with pytest.raises(ValueError, match="unknown setting 'epoch'; did you mean 'epochs'"):
        graph_train.train(epoch=3)
    with pytest.raises(ValueError, match="unknown setting 'conf_thresh'; did you mean 'conf_thres'"):
        graph_train.validate(weights="a.pt", conf_thresh=0.1)
    with pytest.raises(ValueError, match="unknown setting 'sourse'; did you mean 'source'"):
        graph_train.predict(weights="a.pt", sourse="photos")
    with pytest.raises(ValueError, match="unknown setting 'op_set'; did you mean 'opset'"):
        graph_train.export(weights="a.pt", op_set=12)


def test_train_then_validate_gives_same_metrics(runner: TrainingRunner, tmp_path: Path) -> None:
    result = graph_train.train(**runner.flags(**runner.detecting(project=tmp_path, epochs=2, kernels="auto")))
    assert isinstance(result, TrainResult)
    assert result.validation is not None
    assert result.folder == tmp_path / "exp"
    assert result.epochs == 2
    measured = graph_train.validate(
        weights=result.best,
        data=str(runner.data),
        imgsz=64,
        batch_size=8,
        project=str(tmp_path / "val"),
        graph=False,
        noplots=True,
    )
    assert min(result.validation.means) > 0
    # The command folds BatchNorm into the convolutions, so confidences differ in the last digits.
    assert measured.results[0].means == pytest.approx(result.validation.means, rel=1e-5)
    assert result.results[:4] == result.validation.means


def test_hooks_run_in_yolov5_order(runner: TrainingRunner, tmp_path: Path) -> None:
    callbacks = Callbacks()
    recorded: list[str] = []
    details: dict[str, tuple[Any, ...]] = {}

    def recorder_for(hook: str) -> None:
        def record(*arguments: Any) -> None:
            recorded.append(hook)
            details[hook] = arguments

        callbacks.register_action(hook, hook, record)

    for hook in HOOKS:
        recorder_for(hook)
    graph_train.train(callbacks=callbacks, **runner.flags(**runner.detecting(project=tmp_path)))
    validation = ["on_val_start", "on_val_batch_start", *["on_val_image_end"] * 4, "on_val_batch_end", "on_val_end"]
    update = ["optimizer_step", "on_before_zero_grad"]
    start = ["on_pretrain_routine_start", "on_pretrain_routine_end", "on_train_start", "on_train_epoch_start"]
    # the warm-up accumulates from 1 on, so both batches update
    batches = ["on_train_batch_start", *update, "on_train_batch_end"] * 2
    end = ["on_train_epoch_end", *validation, "on_fit_epoch_end", "on_model_save", *validation, "on_train_end"]
    assert recorded == [*start, *batches, *end, "teardown"]
    labels, names = details["on_pretrain_routine_end"]
    assert labels.shape == (10, 5)
    assert tuple(names) == ("red", "green", "blue")
    values, epoch, best, fitness = details["on_fit_epoch_end"]
    assert (len(values), epoch) == (13, 0)
    assert best == fitness == pytest.approx(0.1 * values[5] + 0.9 * values[6]) != 0
    last, best_file, epoch, results = details["on_train_end"]
    assert last.exists()
    assert best_file.exists()
    assert (epoch, len(results)) == (0, 7)
    in_batch, in_file, path, _, image = details["on_val_image_end"]
    assert len(in_batch) > 0
    # 96x64 px at 64 px with half a stride of 32 to spare: 42.7 + 16 and 64 + 16, raised to multiples of 32
    assert image.shape == (3, 64, 96)
    assert Path(path).name.endswith(".jpg")
    assert in_batch.shape == in_file.shape


def test_unsupported_callback_object_is_rejected(runner: TrainingRunner, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"callbacks=5: must be a graph_train.hooks.callbacks.Callbacks"):
        graph_train.train(callbacks=5, **runner.flags(project=tmp_path))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_failing_callback_does_not_end_training(runner: TrainingRunner, tmp_path: Path) -> None:
    callbacks = Callbacks()

    def fail(*_: Any) -> None:
        raise RuntimeError("no connection")

    callbacks.register_action("on_train_batch_end", "remote", fail)
    result = graph_train.train(callbacks=callbacks, **runner.flags(project=tmp_path))
    assert isinstance(result, TrainResult)
    assert callbacks.failed == ["remote"]
    assert result.epochs == 1
    assert "Callback remote failed in on_train_batch_end" in (result.folder / "train.log").read_text()
