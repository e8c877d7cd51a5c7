"""Signals during a run, and closed output pipes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from graph_train.cli.train import main
from graph_train.hooks.callbacks import Callbacks
from graph_train.host.failures import INTERRUPTED
from graph_train.host.interrupts import Interruptible, StopRequest
from graph_train.launch.train import train
from graph_train.runs.checkpoint import load_checkpoint
from graph_train.runs.run_folder import LAST
from tests.graph_train.training_runner import FinishedRun, TrainingRunner

RESULTS = ("results.csv", f"weights/{LAST}", "weights/best.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(runner: TrainingRunner) -> FinishedRun:
    return runner.train(epochs=2, seed=2)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the signal handlers after a run."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


def send_signals_at(hook: str, at: int, *numbers: signal.Signals) -> Callbacks:
    """Send signals to this process on the `at`-th call of a hook, counted from 1."""
    callbacks, calls = Callbacks(), [0]

    def send(*_: object) -> None:
        calls[0] += 1
        if calls[0] == at:
            for number in numbers:
                os.kill(os.getpid(), number)

    callbacks.register_action(hook, callback=send)
    return callbacks


@pytest.mark.parametrize(
    ("hook", "at", "cursor"),
    [("on_train_batch_end", 3, (1, 1)), ("on_val_batch_start", 2, (1, 2)), ("on_train_epoch_end", 1, (0, 2))],
)
def test_signal_saves_and_resume_is_exact(
    runner: TrainingRunner, uninterrupted: FinishedRun, hook: str, at: int, cursor: tuple[int, int]
) -> None:
    place = {"project": runner.root / "runs", "name": f"at-{hook}"}
    with pytest.raises(KeyboardInterrupt):
        train(callbacks=send_signals_at(hook, at, signal.SIGTERM), **runner.flags(epochs=2, seed=2, **place))
    folder = runner.root / "runs" / f"at-{hook}"
    saved = load_checkpoint(folder / "weights" / LAST).header["cursor"]
    assert (saved["epoch"], saved["next_batch"]) == cursor
    assert (
        f"Stopped by SIGTERM; continue with: graph-train --resume {folder / 'weights' / LAST}"
        in (folder / "train.log").read_text()
    )
    runner.train_as_given(resume=folder)
    for name in RESULTS:
        assert (folder / name).read_bytes() == (uninterrupted.folder / name).read_bytes(), name


def test_signals_are_handled_before_the_engine_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list[object] = []

    def record(**_: object) -> None:
        handlers.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP))
        raise KeyboardInterrupt

    monkeypatch.setattr("graph_train.cli.train.options_from_flags", record)
    assert main([]) == INTERRUPTED
    assert len(handlers) == 2
    assert signal.SIG_DFL not in handlers


def test_signal_during_last_validation_keeps_final_state(runner: TrainingRunner, uninterrupted: FinishedRun) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(
            callbacks=send_signals_at("on_val_batch_start", 3, signal.SIGINT),
            **runner.flags(epochs=2, seed=2, project=runner.root / "runs", name="late"),
        )
    for name in RESULTS:
        assert (runner.root / "runs" / "late" / name).read_bytes() == (uninterrupted.folder / name).read_bytes(), name


def test_second_signal_exits_immediately(runner: TrainingRunner) -> None:
    place = {"project": runner.root / "runs", "name": "insisted"}
    with pytest.raises(KeyboardInterrupt):
        train(
            callbacks=send_signals_at("on_train_batch_end", 1, signal.SIGTERM, signal.SIGTERM), **runner.flags(**place)
        )
    assert not (runner.root / "runs" / "insisted" / "weights" / LAST).exists()


def test_signal_before_first_batch_ends_run(runner: TrainingRunner) -> None:
    place = {"project": runner.root / "runs", "name": "early"}
    with pytest.raises(KeyboardInterrupt):
        train(callbacks=send_signals_at("on_pretrain_routine_end", 1, signal.SIGTERM), **runner.flags(**place))
    assert "starting from the beginning" in runner.train_as_given(resume=runner.root / "runs" / "early").log


def test_closed_terminal_does_not_end_run(runner: TrainingRunner, uninterrupted: FinishedRun) -> None:
    # The tests themselves may have been started with nohup, which a run respects.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        train(
            callbacks=send_signals_at("on_train_batch_end", 1, signal.SIGHUP),
            **runner.flags(epochs=2, seed=2, project=runner.root / "runs", name="hung-up"),
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    folder = runner.root / "runs" / "hung-up"
    assert "The terminal was closed (SIGHUP); training continues" in (folder / "train.log").read_text()
    for name in RESULTS:
        assert (folder / name).read_bytes() == (uninterrupted.folder / name).read_bytes(), name


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for context in (StopRequest(), Interruptible()):
            with context:
                assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
                os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


COMMAND = """
import os, sys
from graph_train.host.run_command import run_command
def work():
    for number in range(2000):
        print("a line that fills pipes", number)
        print("and another one", file=sys.stderr)
    sys.stdout.flush()
    os.write(1, b"native libraries write too")
    open({done!r}, "w").close()
sys.exit(run_command("test", work, debug=False))
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("closed", ["pipe", "full disk"])
def test_failing_output_does_not_end_command(
    tmp_path: Path, closed: str, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    done = tmp_path / "done"
    code = [sys.executable, "-c", COMMAND.format(done=str(done))]
    if closed == "pipe":
        process = subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
    else:
        with Path("/dev/full").open("wb") as full:
            # Direct writes to the descriptor fail there, too.
            lines = [line for line in code[2].splitlines() if "native" not in line]
            assert subprocess.run([*code[:2], "\n".join(lines)], stdout=full, stderr=full, check=False).returncode == 0
    assert done.exists()
