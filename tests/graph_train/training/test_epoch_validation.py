"""What callbacks hear of a validation, by hand: one image of 100 x 60 px, halved, with borders of 7 and 9 px."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_train.hooks.callbacks import Callbacks
from graph_train.training.epoch_validation import ValidationHooks
from graph_train.validation.measuring import ImageDetections

HOOKS = ("on_val_start", "on_val_batch_start", "on_val_image_end", "on_val_batch_end")


@dataclass(frozen=True)
class Place:
    original_hw: tuple[int, int] = (60, 100)
    ratio_hw: tuple[float, float] = (0.5, 0.5)
    pad_wh: tuple[float, float] = (7.0, 9.0)


@dataclass(frozen=True)
class Batch:
    images: Any = field(default_factory=lambda: np.zeros((1, 3, 48, 64), np.uint8))
    labels: Any = field(default_factory=lambda: np.zeros((0, 6), np.float32))
    paths: tuple[Path, ...] = (Path("a.jpg"),)
    geometry: tuple[Place, ...] = (Place(),)


def test_boxes_come_in_px_of_the_batch_and_of_the_file() -> None:
    callbacks, heard = Callbacks(), []
    for hook in HOOKS:
        callbacks.register_action(hook, callback=lambda *given, hook=hook: heard.append((hook, given)))
    hooks, batch = ValidationHooks(callbacks, ["ball"]), Batch()
    in_file = np.array([[10, 20, 30, 40, 0.9, 0]], np.float32)
    for _ in hooks.batches([batch]):
        hooks.image(ImageDetections(Path("a.jpg"), (60, 100), in_file, np.zeros((0, 5), np.float32)))
    assert [name for name, _ in heard] == list(HOOKS)
    in_batch, told, path, names, image = heard[2][1]
    np.testing.assert_array_equal(in_batch, np.array([[12, 19, 22, 29, 0.9, 0]], np.float32))
    np.testing.assert_array_equal(told, in_file)
    assert (path, names) == ("a.jpg", ("ball",))
    assert image.shape == (3, 48, 64)
    number, images, labels, paths, geometry, found = heard[3][1]
    assert (number, paths, geometry) == (0, ["a.jpg"], batch.geometry)
    assert images is batch.images
    assert labels is batch.labels
    np.testing.assert_array_equal(found[0], in_batch)


def test_an_image_before_its_batch_is_a_defect() -> None:
    callbacks = Callbacks()
    callbacks.register_action("on_val_image_end", callback=lambda *_: None)
    nothing = np.zeros((0, 6), np.float32)
    with pytest.raises(RuntimeError, match="before its batch"):
        ValidationHooks(callbacks, ["ball"]).image(ImageDetections(Path("a.jpg"), (60, 100), nothing, nothing[:, :5]))
