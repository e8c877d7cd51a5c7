"""Callbacks: registration and calls; a failing callback is reported once and then disabled."""

import logging

import pytest

from graph_train.hooks.callbacks import HOOKS, Callbacks, TrainingHooks

_REFERENCE = (
    "on_pretrain_routine_start on_pretrain_routine_end on_train_start on_train_epoch_start on_train_batch_start "
    "optimizer_step on_before_zero_grad on_train_batch_end on_train_epoch_end on_val_start on_val_batch_start "
    "on_val_image_end on_val_batch_end on_val_end on_fit_epoch_end on_model_save on_train_end on_params_update teardown"
)


class _Recorder(TrainingHooks):
    def __init__(self) -> None:
        self.seen: list[object] = []

    def on_train_start(self) -> None:
        self.seen.append("start")

    def on_train_epoch_end(self, epoch: int) -> None:
        self.seen.append(epoch)


class _Faulty(_Recorder):
    def on_train_epoch_end(self, epoch: int) -> None:
        raise RuntimeError(f"no connection\nin epoch {epoch}")


def test_hook_names_match_yolov5() -> None:
    assert tuple(_REFERENCE.split()) == HOOKS


def test_only_overridden_hooks_are_called() -> None:
    callbacks, recorder = Callbacks(), _Recorder()
    callbacks.add(recorder)
    assert [hook for hook in HOOKS if callbacks.listens(hook)] == ["on_train_start", "on_train_epoch_end"]
    callbacks.run("on_train_start")
    callbacks.run("on_train_epoch_end", epoch=3)
    callbacks.run("teardown")
    assert recorder.seen == ["start", 3]


def test_failing_logger_is_disabled(caplog: pytest.LogCaptureFixture) -> None:
    callbacks, faulty, healthy = Callbacks(), _Faulty(), _Recorder()
    callbacks.add(faulty, "remote logger")
    callbacks.add(healthy)
    with caplog.at_level(logging.ERROR):
        for epoch in range(3):
            callbacks.run("on_train_epoch_end", epoch)
        callbacks.run("on_train_start")
    assert healthy.seen == [0, 1, 2, "start"]
    assert faulty.seen == []
    assert callbacks.failed == ["remote logger"]
    assert [record.getMessage() for record in caplog.records] == [
        "Callback remote logger failed in on_train_epoch_end and is disabled "
        "(RuntimeError: no connection in epoch 0); training continues"
    ]


class _SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "shown"),
    [(_SilentError(), "_SilentError: no message"), (ValueError("\x1b[2J\0"), r"ValueError: \x1b[2J\x00")],
)
def test_error_of_a_callback_is_printable(error: Exception, shown: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise error

    callbacks = Callbacks()
    callbacks.register_action("teardown", "mine", fail)
    callbacks.run("teardown")
    assert caplog.messages == [f"Callback mine failed in teardown and is disabled ({shown}); training continues"]


def test_keyboard_interrupt_propagates() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    callbacks = Callbacks()
    callbacks.register_action("on_train_start", callback=interrupt)
    with pytest.raises(KeyboardInterrupt):
        callbacks.run("on_train_start")


def test_register_function() -> None:
    callbacks, seen = Callbacks(), []
    callbacks.register_action("on_fit_epoch_end", "mine", lambda vals, epoch, best_fitness, fi: seen.append(fi))
    callbacks.run("on_fit_epoch_end", [0.0] * 13, 0, 0.5, 0.4)
    assert seen == [0.4]


def test_invalid_registration_raises() -> None:
    with pytest.raises(ValueError, match="did you mean 'on_train_end'"):
        Callbacks().register_action("on_train_endd", callback=print)
    with pytest.raises(ValueError, match="is not callable"):
        Callbacks().register_action("on_train_end", callback=None)
    for hook in (None, 5, ["on_train_end"]):
        with pytest.raises(ValueError, match=r"unknown hook .*; known hooks|did you mean"):
            Callbacks().register_action(hook, callback=print)  # type: ignore[arg-type]
    for hooks in (None, print, TrainingHooks, {"on_train_end": print}):
        with pytest.raises(ValueError, match=r"hooks=.*: must be an object of a subclass of TrainingHooks"):
            Callbacks().add(hooks)  # type: ignore[arg-type]


def test_callbacks_of_a_run_stay_in_that_run() -> None:
    callbacks, own, added = Callbacks(), _Recorder(), _Faulty()
    callbacks.add(own)
    with callbacks.run_scope():
        callbacks.add(added, "logger of the first run")
        callbacks.run("on_train_epoch_end", 0)
        callbacks.stop_training = True
    assert callbacks.failed == ["logger of the first run"]
    with callbacks.run_scope():
        assert not callbacks.stop_training
        assert callbacks.failed == []
        second = _Recorder()
        callbacks.add(second, "logger of the first run")
        callbacks.run("on_train_epoch_end", 1)
    callbacks.run("on_train_start")
    assert own.seen == [0, 1, "start"]
    assert second.seen == [1]


def test_failed_user_callback_stays_disabled() -> None:
    callbacks, faulty = Callbacks(), _Faulty()
    callbacks.add(faulty)
    with callbacks.run_scope():
        callbacks.run("on_train_epoch_end", 0)
    with callbacks.run_scope():
        callbacks.run("on_train_start")
    assert faulty.seen == []
