"""Numbers that are not finite: one bad batch costs one update; many end the run, which says where they come from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from graph_train.checkpoint import load_checkpoint, save_checkpoint
from graph_train.cli.train import main
from graph_train.failures import DivergedError
from graph_train.nonfinite import BATCH_FILE, first_bad_tensor
from graph_train.step import EagerStep, GraphStep
from kernels.runtime import flow
from tests.graph_train.lab import Lab
from tests.graph_train.tiny import random_batch, tiny_schedule, tiny_step


@pytest.mark.parametrize("kind", [EagerStep, GraphStep])
def test_a_bad_batch_leaves_no_trace(kind: type[EagerStep] | type[GraphStep]) -> None:
    step = tiny_step(kind)
    settings = replace(tiny_schedule().at(20, 3), update=True)
    images, labels = (flow.tensor(value) for value in random_batch(0, side=64, labels=5))
    assert step(images, labels, settings).updated
    step.state.flush()
    before = step.state.arrays()
    # A scale that lets the layers behind it overflow stands for a batch that does.
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
    assert {name.split(".")[-1] for name in changed} == {"num_batches_tracked", "restorable_statistics"}
    assert step(images, labels, settings).updated
    assert (step.state.counters.skipped, step.state.counters.skipped_in_row) == (2, 0)


def test_the_first_bad_tensor_is_named() -> None:
    images, labels = random_batch(0, side=64, labels=5)

    def named(step: EagerStep | GraphStep, labels: np.ndarray = labels) -> str:
        return first_bad_tensor(step.state.network, step.criterion, images, labels, flow.tensor)

    assert named(tiny_step(EagerStep)).startswith("no tensor of it is")
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
    assert "loss is 1 of 1 values not finite" in named(tiny_step(EagerStep), bad)


def test_a_run_that_diverges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = Lab(tmp_path)
    begun = lab.train(epochs=3, batch_size=2, stop_after=1)
    last = begun.folder / "weights" / "last.safetensors"
    # Weights so large that the forward pass overflows: the state is finite, its losses are not.
    checkpoint = load_checkpoint(last)
    arrays = {name: value * 1e30 if name.endswith("bn.weight") else value for name, value in checkpoint.arrays.items()}
    save_checkpoint(last, replace(checkpoint, arrays=arrays))
    state = last.read_bytes()
    assert main(["--resume", str(begun.folder), "--max-nonfinite", "2"]) == DivergedError.exit_code
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("graph-train:")]
    assert "stopped: 2 updates in a row were not finite (--max-nonfinite); epoch 0, batch" in said
    assert "not finite; the batch is kept in" in said
    assert last.read_bytes() == state
    with safe_open(str(begun.folder / BATCH_FILE), framework="numpy") as file:
        assert file.get_tensor("images").shape == (2, 3, 64, 64)
        assert file.get_tensor("labels").shape[2] == 5
        assert len(json.loads(file.metadata()["files"])) == 2
    log = (begun.folder / "train.log").read_text()
    assert log.count("not finite; the update that it belongs to is left out") == 1
    # Without a limit the run goes to its end, and never replaces a good state by what has overflowed.
    ended = lab.train_as_given(resume=begun.folder, max_nonfinite=0)
    assert len(ended.rows) == 3
