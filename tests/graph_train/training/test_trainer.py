"""The trainer between epochs, and which weights it keeps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_train.engine.step import GraphStep
from graph_train.hooks.callbacks import Callbacks
from graph_train.host.devices import cpu_threads
from graph_train.launch.train import train
from graph_train.runs.checkpoint import load_checkpoint, save_checkpoint
from graph_train.runs.cursor import Cursor
from graph_train.runs.run_folder import RunFolder
from graph_train.training.early_stopping import EarlyStopping
from graph_train.training.trainer import Trainer, TrainResult
from tests.graph_train.training_runner import TrainingRunner


def test_unused_gradients_are_dropped_at_epoch_end(runner: TrainingRunner, tmp_path: Path) -> None:
    run, callbacks = runner.assemble(epochs=12, noval=True, nosave=True), Callbacks()
    pending: dict[str, list[bool]] = {"on_train_epoch_start": [], "on_train_epoch_end": []}

    def record(hook: str) -> None:
        sums = [value for name, value in run.state.arrays().items() if name.startswith("gradient_sum/")]
        pending[hook].append(any(value.any() for value in sums))

    for hook in pending:
        callbacks.register_action(hook, callback=lambda *_, hook=hook: record(hook))
    folder = RunFolder(tmp_path / "run")
    try:
        Trainer(run, folder, Cursor(), EarlyStopping(100), callbacks).train()
    finally:
        folder.close()
        run.close()
    assert any(pending["on_train_epoch_end"])  # during warm-up accumulation exceeds an epoch
    assert not any(pending["on_train_epoch_start"])


@pytest.mark.parametrize(("so_far", "kept"), [(0.99, True), (0.0, False)])
def test_best_weights_come_from_best_epoch(runner: TrainingRunner, so_far: float, kept: bool) -> None:
    stopped = runner.train(**runner.detecting(epochs=3, stop_after=3))
    last, best = (stopped.folder / "weights" / f"{name}.safetensors" for name in ("last", "best"))
    assert 0 < load_checkpoint(last).header["cursor"]["best_fitness"] < 0.99
    state = load_checkpoint(last)
    cursor = {**state.header["cursor"], "best_fitness": so_far}
    save_checkpoint(last, replace(state, header={**state.header, "cursor": cursor}))
    before = best.read_bytes()
    runner.train_as_given(resume=stopped.folder)
    assert (best.read_bytes() == before) == kept


def test_changed_thread_count_is_reported_on_resume(runner: TrainingRunner) -> None:
    stopped = runner.train(epochs=2, stop_after=1, noval=True)
    last = stopped.folder / "weights" / "last.safetensors"
    state = load_checkpoint(last)
    assert state.header["threads"] == cpu_threads()
    more = cpu_threads() + 1
    save_checkpoint(last, replace(state, header={**state.header, "threads": more}))
    reported = f"This run used {more} CPU threads before, now {cpu_threads()}; results will differ"
    log = runner.train_as_given(resume=stopped.folder).log
    assert log.count(reported) == 1
    assert f"set OMP_NUM_THREADS={more} to continue exactly" in log
    later = runner.train_as_given(resume=stopped.folder).log  # the changed number is the baseline now
    assert reported not in later.removeprefix(log)


def _recorded(name: str, events: list[str]) -> Callable[..., Any]:
    """Wrap a method of the step so that its calls are recorded."""
    plain = getattr(GraphStep, name)

    def call(*given: Any) -> Any:
        events.append(name)
        return plain(*given)

    return call


def test_step_result_is_read_after_next_step_starts(runner: TrainingRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results do not change if a callback for every batch's end forces each step to be awaited."""
    recorded = runner.train(epochs=2, batch_size=2, graph=True)
    events: list[str] = []
    for name in ("start", "finish"):
        monkeypatch.setattr(GraphStep, name, _recorded(name, events))
    flags = runner.flags(project=runner.root / "runs", name="ahead", epochs=2, batch_size=2, graph=True)
    result = train(**flags)
    assert isinstance(result, TrainResult)
    ahead = result.folder
    batches = events.count("start") // 2
    assert batches > 2
    assert events == 2 * ["start", *(batches - 1) * ["start", "finish"], "finish"]
    assert (ahead / "results.csv").read_text() == (recorded.folder / "results.csv").read_text()
    left, right = (load_checkpoint(folder / "weights" / "last.safetensors") for folder in (ahead, recorded.folder))
    assert left.header["cursor"] == right.header["cursor"]
    assert left.header["counters"] == right.header["counters"]
    assert left.arrays.keys() == right.arrays.keys()
    assert all(np.array_equal(value, right.arrays[name]) for name, value in left.arrays.items())
