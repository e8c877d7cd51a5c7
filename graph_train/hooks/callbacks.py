"""Callbacks of a training run, with YOLOv5's hook names. A failing callback never stops the training.

A callback object inherits `TrainingHooks` and overrides the hooks it needs; a function can be registered for a single
hook. Hooks run in the main thread of every rank, in the order of registration; loggers are registered on rank 0 only.
"""

import contextlib
import difflib
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.host.paths import printable

_LOG = logging.getLogger(__name__)


class TrainingHooks:
    """Base class of callbacks: all hooks, with YOLOv5's arguments. Arrays and tensors must not be modified."""

    def on_pretrain_routine_start(self) -> None:
        """Run before the run is assembled; the run folder exists."""

    def on_pretrain_routine_end(self, labels: np.ndarray, names: Sequence[str]) -> None:
        """Run when data and network are ready.

        `labels`: (n, 5) [class, cx, cy, w, h] of the whole train set, normalised.
        """

    def on_train_start(self) -> None:
        """Run before the first epoch."""

    def on_train_epoch_start(self) -> None:
        """Run before the first batch of an epoch."""

    def on_train_batch_start(self) -> None:
        """Run before a batch is moved to the device."""

    def optimizer_step(self) -> None:
        """Run after a step that updated the weights; the update itself is part of the compiled step."""

    def on_before_zero_grad(self) -> None:
        """Run right after `optimizer_step`."""

    def on_train_batch_end(  # noqa: PLR0917 - the reference's arguments
        self, model: Any, ni: int, imgs: Any, targets: Any, paths: Sequence[str], vals: Sequence[float]
    ) -> None:
        """Run after a batch. `ni`: iteration of the run; `vals`: mean box, objectness and class loss of the epoch."""

    def on_train_epoch_end(self, epoch: int) -> None:
        """Run after the last batch of an epoch, before its validation."""

    def on_val_start(self) -> None:
        """Run before the first validation batch."""

    def on_val_batch_start(self) -> None:
        """Run before a validation batch."""

    def on_val_image_end(self, pred: np.ndarray, predn: np.ndarray, path: str, names: Sequence[str], im: Any) -> None:
        """Run after each validation image.

        `pred`, `predn`: (n, 6) x1, y1, x2, y2, confidence, class, in px of the network input and of the image.
        """

    def on_val_batch_end(  # noqa: PLR0917 - the reference's arguments
        self, batch_i: int, im: Any, targets: Any, paths: Sequence[str], shapes: Any, out: Sequence[np.ndarray]
    ) -> None:
        """Run after a validation batch. `out`: detections of each image, like `pred` of `on_val_image_end`."""

    def on_val_end(  # noqa: PLR0917 - the reference's arguments
        self,
        nt: np.ndarray,
        tp: np.ndarray,
        fp: np.ndarray,
        p: np.ndarray,
        r: np.ndarray,
        f1: np.ndarray,
        ap: np.ndarray,
        ap50: np.ndarray,
        ap_class: np.ndarray,
        confusion_matrix: np.ndarray,
    ) -> None:
        """Run after a validation. Arrays are per class with labels, except `nt`: labels per class, over all classes."""

    def on_fit_epoch_end(self, vals: Sequence[float], epoch: int, best_fitness: float, fi: float) -> None:
        """Run after an epoch and its validation.

        `vals`: 13 numbers as in `results_csv.RESULT_KEYS`; `fi`: this epoch's fitness.
        """

    def on_model_save(self, last: Path, epoch: int, final_epoch: bool, best_fitness: float, fi: float) -> None:
        """Run after a checkpoint is written."""

    def on_train_end(self, last: Path, best: Path, epoch: int, results: Sequence[float]) -> None:
        """Run after the validation of the best weights. `results`: P, R, mAP50, mAP50-95 and the val losses."""

    def on_params_update(self, params: Mapping[str, Any]) -> None:
        """Run when a setting has been determined, such as the batch size by AutoBatch."""

    def teardown(self) -> None:
        """Run at the end of the run, also after a failure."""


HOOKS: tuple[str, ...] = tuple(name for name in vars(TrainingHooks) if not name.startswith("_"))
"""Names of all hooks."""


def _text(error: Exception) -> str:
    """Return an error's text; "" if its class cannot make one."""
    try:
        return str(error)
    except Exception:
        return ""


@dataclass(frozen=True)
class _Action:
    owner: str
    call: Callable[..., object]


class Callbacks:
    """The registered callbacks.

    If a callback raises, the error is logged once (its traceback at level DEBUG), and all hooks of its owner are
    disabled. `KeyboardInterrupt` and `SystemExit` are not caught.
    """

    def __init__(self) -> None:
        self._actions: dict[str, list[_Action]] = {hook: [] for hook in HOOKS}
        self.failed: list[str] = []
        """Owners that were disabled."""
        self.stop_training = False
        """A callback may set this to stop the run, which saves its state, after the current batch."""

    def add(self, hooks: TrainingHooks, name: str = "") -> None:
        """Register all hooks that the object's class overrides; `name` is used in messages.

        Raises:
            ValueError: `hooks` is not an object of a subclass of `TrainingHooks`.
        """
        if not isinstance(hooks, TrainingHooks):
            raise ValueError(f"hooks={hooks!r:.60}: must be an object of a subclass of TrainingHooks")
        owner = name or type(hooks).__name__
        for hook in HOOKS:
            if getattr(type(hooks), hook) is not getattr(TrainingHooks, hook):
                self._actions[hook].append(_Action(owner, getattr(hooks, hook)))

    def register_action(self, hook: str, name: str = "", callback: Callable[..., object] | None = None) -> None:
        """Register a function for a hook, as in YOLOv5.

        Raises:
            ValueError: the hook is unknown (with the nearest match), or the callback is not callable.
        """
        if not isinstance(hook, str) or hook not in self._actions:
            close = difflib.get_close_matches(str(hook), HOOKS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known hooks: {', '.join(HOOKS)}"
            raise ValueError(f"unknown hook {hook!r:.60}; {hint}")
        if not callable(callback):
            raise ValueError(f"hook {hook!r}: {callback!r} is not callable")
        self._actions[hook].append(_Action(name or getattr(callback, "__qualname__", repr(callback)), callback))

    @contextlib.contextmanager
    def run_scope(self) -> Iterator[None]:
        """Unregister callbacks added in this context at its end, and reset the state of an earlier run."""
        registered = {hook: tuple(actions) for hook, actions in self._actions.items()}
        self.failed.clear()
        self.stop_training = False
        try:
            yield
        finally:
            for hook, actions in registered.items():
                self._actions[hook] = [action for action in actions if action.owner not in self.failed]

    def listens(self, hook: str) -> bool:
        """Return whether a hook has callbacks, so that work that only they need can be skipped."""
        return bool(self._actions[hook])

    def run(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Call all callbacks of a hook."""
        for action in tuple(self._actions[hook]):
            if action.owner in self.failed:
                continue
            try:
                action.call(*args, **kwargs)
            except Exception as error:  # a failing callback must not stop the training
                self._disable(action.owner, hook, error)

    def _disable(self, owner: str, hook: str, error: Exception) -> None:
        self.failed.append(owner)
        for actions in self._actions.values():
            actions[:] = [action for action in actions if action.owner != owner]
        reason = printable(" ".join(_text(error).split())) or "no message"
        _LOG.error(
            "Callback %s failed in %s and is disabled (%s: %s); training continues",
            owner,
            hook,
            type(error).__name__,
            reason,
        )
        _LOG.debug("%s", "".join(traceback.format_exception(error)))
