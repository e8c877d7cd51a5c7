"""Non-finite values: one batch skips one update; many end the run with a message on their origin."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from graph_train.cli.train import main
from graph_train.engine.state import Counters
from graph_train.engine.step import EagerStep, GraphStep, StepResult
from graph_train.host.failures import DivergedError
from graph_train.runs.checkpoint import load_checkpoint, save_checkpoint
from graph_train.runs.cursor import Cursor
from graph_train.runs.run_folder import RunFolder
from graph_train.training.early_stopping import EarlyStopping
from graph_train.training.nonfinite import BATCH_FILE, NonFiniteWatch, SuspectBatch, first_bad_tensor
from graph_train.training.trainer import Trainer
from kernels.framework.activation_type import ActivationType
from kernels.plugin import load_plugin
from kernels.runtime import flow
from models.loss import DetectionLoss
from models.loss_config import LossConfig
from tests.distributed.jobs import JobRunner
from tests.graph_train.tiny import random_batch, tiny_schedule, tiny_step
from tests.graph_train.training_runner import TrainingRunner


@pytest.mark.parametrize("kind", [EagerStep, GraphStep])
def test_nonfinite_batch_keeps_state_finite(kind: type[EagerStep] | type[GraphStep]) -> None:
    step = tiny_step(kind)
    settings = replace(tiny_schedule().at(20, 3), update=True)
    images, labels = (flow.tensor(value) for value in random_batch(0, side=64, labels=5))
    assert step(images, labels, settings).updated
    step.state.flush()
    before = step.state.arrays()
    # A scale that makes later layers overflow simulates such a batch.
    scale = step.state.network.model[1].bn.weight
    sound = scale.numpy().copy()
    with flow.no_grad():
        scale.fill_(3e38)
    for number in (1, 2):
        step(images, labels, replace(settings, update=False))
        result = step(images, labels, settings)
        assert (result.updated, result.skipped, result.finite) == (False, True, False)
        assert step.state.counters.skipped_in_row == number
    with flow.no_grad():
        scale.copy_(flow.tensor(sound))
    step.state.flush()
    after = step.state.arrays()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    # As in YOLOv5, finite channels include the batch in their statistics: here, those of layers before the overflow.
    assert {name.split(".")[-1] for name in changed} == {"num_batches_tracked", "running_mean", "running_var"}
    assert {name for name in changed if "running" in name} == {
        f"model/model.{layer}.bn.running_{kind}" for layer in (0, 1) for kind in ("mean", "var")
    }
    assert all(np.isfinite(value).all() for value in after.values())
    assert step(images, labels, settings).updated
    assert (step.state.counters.skipped, step.state.counters.skipped_in_row) == (2, 0)


def test_first_nonfinite_tensor_is_reported() -> None:
    images, labels = random_batch(0, side=64, labels=5)

    def named(step: EagerStep | GraphStep, labels: np.ndarray = labels, **how: Any) -> str:
        return first_bad_tensor(step.state.network, step.criterion, images, labels, flow.tensor, **how)

    assert "all tensors are finite" in named(tiny_step(EagerStep))
    steep = tiny_step(EagerStep)
    steep.criterion = DetectionLoss(steep.state.network.head_geometry, LossConfig(objectness=1e3))
    assert named(steep, loss_scale=1e38).startswith("the gradient of model.9.m.")
    step = tiny_step(EagerStep)
    weight = step.state.network.model[2].conv.weight
    with flow.no_grad():
        weight[1, 2, 0, 0] = float("nan")
    assert named(step) == f"weight model.2.conv.weight has 1 of {weight.numel()} values not finite"
    step = tiny_step(EagerStep)
    with flow.no_grad():
        step.state.network.model[1].bn.weight.fill_(3e38)
    assert named(step).startswith("the output of model.1")
    bad = labels.copy()
    bad[0, 0, 1:3] = np.nan
    assert "loss has 1 of 1 values not finite" in named(tiny_step(EagerStep), bad)


def test_first_nonfinite_tensor_in_bfloat16() -> None:
    """The inspected tensors have the data type of the run."""
    load_plugin("require")
    images, labels = random_batch(0, side=64, labels=5)
    step = tiny_step(EagerStep, activation_type=ActivationType.BFLOAT16)
    network, kinds = step.state.network, set()
    network.model[1].register_forward_hook(lambda *given: kinds.add(given[2].dtype))
    text = first_bad_tensor(network, step.criterion, images, labels, flow.tensor)
    assert "all tensors are finite" in text
    assert kinds == {flow.bfloat16}
    with flow.no_grad():
        network.model[1].bn.weight.fill_(3e38)
    text = first_bad_tensor(network, step.criterion, images, labels, flow.tensor)
    assert text.startswith("the output of model.1")


@pytest.mark.distributed
def test_first_nonfinite_tensor_on_other_rank(tmp_path: Path) -> None:
    runner = JobRunner(tmp_path)
    try:
        job = runner.run([], 2, module="tests.graph_train.training.nonfinite_job")
    finally:
        runner.close()
    assert [job.text(rank).splitlines()[-1] for rank in range(2)] == ["the box loss has 1 of 1 values not finite"] * 2


def _result(*, updated: bool = False, total: float = 1.0) -> StepResult:
    return StepResult(total, 0, 0, 0, float("nan"), updated=updated, skipped=not updated)


def test_overflow_of_loss_scale_is_expected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Like PyTorch's GradScaler, which starts with a scale that is too large and tries a larger one now and then."""
    copied: list[int] = []

    def batch() -> SuspectBatch:
        copied.append(1)
        return SuspectBatch(np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 1, 5), np.float32), {"epoch": 0, "batch": 3})

    watch = NonFiniteWatch(4, tmp_path, lambda _: "explained")
    with caplog.at_level("INFO", logger="graph_train"):
        for number, scale in enumerate((65536.0, 32768.0), 1):
            watch.check(_result(), number, batch, loss_scale=scale)
        watch.check(_result(updated=True), 0, batch, loss_scale=16384.0)
        watch.check(_result(), 1, batch, loss_scale=16384.0)
        assert [(record.levelname, record.message) for record in caplog.records] == [
            ("INFO", f"Gradients overflow: skipping the update, loss scale halved to {scale}")
            for scale in (32768, 8192)
        ]
        assert not copied
        # The loss itself, or gradients without a scale, are not.
        watch.check(_result(total=float("nan")), 2, batch, loss_scale=4096.0)
        watch.check(_result(updated=True), 0, batch, loss_scale=4096.0)
        watch.check(_result(), 1, batch, loss_scale=1.0)
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
            f"Epoch 0, batch 3: non-finite {what}; skipping the update" for what in ("loss", "gradients")
        ]
        watch.check(_result(updated=True), 0, batch)
    for number in (1, 2, 3):
        watch.check(_result(), number, batch, loss_scale=4096.0 / 2**number)
    with pytest.raises(DivergedError, match="after 4 consecutive"):
        watch.check(_result(), 4, batch, loss_scale=256.0)
    assert (tmp_path / BATCH_FILE).exists()


def test_saved_batch_has_loss_scale_of_its_step(tmp_path: Path) -> None:
    """With half of it, the recomputed step might be finite."""
    run = TrainingRunner(tmp_path).assemble(max_nonfinite=1)
    run.step._scales_loss = True
    run.state.counters = Counters(loss_scale=4.0)
    with flow.no_grad():
        run.state.network.model[1].bn.weight.fill_(3e38)
    folder = RunFolder(tmp_path / "run")
    try:
        with pytest.raises(DivergedError):
            Trainer(run, folder, Cursor(), EarlyStopping(100)).train()
    finally:
        folder.close()
        run.close()
    with safe_open(str(tmp_path / "run" / BATCH_FILE), framework="numpy") as file:
        assert file.metadata()["loss_scale"] == "4.0"


def test_diverging_run_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = TrainingRunner(tmp_path)
    interrupted = runner.train(epochs=3, batch_size=2, stop_after=1)
    last = interrupted.folder / "weights" / "last.safetensors"
    # Weights so large that the forward pass overflows: the state is finite, its losses are not.
    checkpoint = load_checkpoint(last)
    arrays = {name: value * 1e30 if name.endswith("bn.weight") else value for name, value in checkpoint.arrays.items()}
    save_checkpoint(last, replace(checkpoint, arrays=arrays))
    state = last.read_bytes()
    assert main(["--resume", str(interrupted.folder), "--max-nonfinite", "2"]) == DivergedError.exit_code
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("graph-train:")]
    assert "stopped after 2 consecutive non-finite updates (--max-nonfinite); epoch 0, batch" in message
    assert "not finite; batch saved to" in message
    assert last.read_bytes() == state
    with safe_open(str(interrupted.folder / BATCH_FILE), framework="numpy") as file:
        assert file.get_tensor("images").shape == (2, 3, 64, 64)
        assert file.get_tensor("labels").shape[2] == 5
        assert len(json.loads(file.metadata()["files"])) == 2
    log = (interrupted.folder / "train.log").read_text()
    assert log.count("; skipping the update") == 1
    # Without a limit the run finishes, and never replaces a finite checkpoint by a non-finite one.
    ended = runner.train_as_given(resume=interrupted.folder, max_nonfinite=0)
    assert len(ended.rows) == 3


@pytest.mark.parametrize("kind", [EagerStep, GraphStep])
def test_nonfinite_channel_keeps_running_statistics(kind: type[EagerStep] | type[GraphStep]) -> None:
    step = tiny_step(kind)
    settings = replace(tiny_schedule().at(20, 3), update=False)
    images, labels = (flow.tensor(value) for value in random_batch(0, side=64, labels=5))
    weight, norm = step.state.network.model[1].conv.weight, step.state.network.model[1].bn
    before = [value.numpy().copy() for value in (norm.running_mean, norm.running_var)]
    with flow.no_grad():
        weight[0, 0, 0, 0] = float("nan")
    step(images, labels, settings)
    for old, new in zip(before, (norm.running_mean, norm.running_var), strict=True):
        assert new.numpy()[0] == old[0]
        assert (new.numpy()[1:] != old[1:]).all()
        assert np.isfinite(new.numpy()).all()
