"""A point of measurement (network, batch, image size) as files that our workers and PyTorch's both read."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.flags import MAX_BATCH_SIZE, MAX_IMAGE_PX

BATCHES = 4
"""Batches that the steps cycle through."""
_MIN_LABELS, _MAX_LABELS = 4, 24
_POSITIVE = re.compile("[1-9][0-9]{0,9}")
_SMALLEST_SIDE, _LARGEST_SIDE = 0.03, 0.6
_LEARNING_RATE, _MOMENTUM = 1e-3, 0.937


@dataclass(frozen=True)
class Point:
    """The network, batch size and image size of a measurement."""

    model: str
    batch_size: int
    imgsz: int

    def __str__(self) -> str:
        return f"{self.model} batch {self.batch_size} at {self.imgsz} px"


def parse_point(text: str) -> Point:
    """Parse `MODEL:BATCH:PX`, such as yolov5s:4:320 or own.yaml:4:320.

    Raises:
        ValueError: malformed or too large, or the size is not a multiple of 32.
    """
    parts = text.split(":")
    if len(parts) != 3 or not parts[0] or not all(map(_POSITIVE.fullmatch, parts[1:])):
        raise ValueError(f"--points {text}: must be MODEL:BATCH:PX, such as yolov5s:4:320")
    model = parts[0] if Path(parts[0]).is_file() else parts[0].removesuffix(".yaml")
    point = Point(model, int(parts[1]), int(parts[2]))
    if point.batch_size > MAX_BATCH_SIZE or point.imgsz > MAX_IMAGE_PX:
        raise ValueError(f"--points {text}: must be at most {MAX_BATCH_SIZE} images of {MAX_IMAGE_PX} px")
    if point.imgsz % 32:
        raise ValueError(f"--points {text}: the image size must be a multiple of 32")
    return point


def write_point(folder: Path, point: Point, num_classes: int | None = None) -> dict[str, Any]:
    """Write point.json, weights.npz and batches.npz. Imports OneFlow.

    Args:
        folder: output folder.
        point: point to train.
        num_classes: overrides the model yaml's.
    Returns:
        Parameters, multiply-accumulates of one image's forward pass, images per step and estimated GFLOP per step.
    """
    from models.complexity import measure
    from models.loss_config import LossConfig
    from models.network import DetectionModel
    from models.spec import load_model_spec

    spec = load_model_spec(point.model, num_classes=num_classes)
    network = DetectionModel(spec, seed=0)
    config = LossConfig().scaled(heads=len(spec.strides), classes=spec.num_classes, image_px=point.imgsz)
    write_network(folder, point, network, config, update_settings(point.batch_size))
    images, labels = random_batches(point, spec.num_classes)
    np.savez(folder / "batches.npz", images=images, labels=labels)
    size = measure(network, point.imgsz)
    # The backward pass computes two gradients where the forward pass computes one output.
    gflop = 3 * size.flops * point.batch_size / 1e9
    return {"parameters": size.parameters, "macs": size.macs, "images": point.batch_size, "step_gflop": gflop}


def write_network(folder: Path, point: Point, network: Any, config: Any, update: Mapping[str, Any]) -> None:
    """Write point.json and weights.npz of a network in its present state.

    Args:
        folder: output folder.
        point: point to train.
        network: a `DetectionModel`.
        config: a scaled `LossConfig`.
        update: settings from `update_settings`.
    """
    from models.loss import DetectionLoss

    balance = DetectionLoss(network.head_geometry, config).balance.numpy().tolist()
    description = {
        "point": asdict(point),
        "network": network_rows(network),
        "head": {"anchors_cells": network.anchors_cells.tolist(), "balance": balance},
        "loss": asdict(config),
        "update": update,
    }
    (folder / "point.json").write_text(json.dumps(description), encoding="utf-8")
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in network.state_dict().items()})


def write_data(folder: Path, index: Any, schedule: Any) -> None:
    """Write images.json: images and labels of an `ImageIndex`, and each step's settings from a `Schedule`."""
    numbers = range(schedule.epochs * schedule.batches_per_epoch)
    steps = (schedule.at(number, number // schedule.batches_per_epoch) for number in numbers)
    content = {
        "paths": [str(path.resolve()) for path in index.paths],
        "labels": [rows.tolist() for rows in index.labels],
        "steps": [
            {"learning_rates": step.learning_rates, "momentum": step.momentum, "update": step.update} for step in steps
        ],
    }
    (folder / "images.json").write_text(json.dumps(content), encoding="utf-8")


def network_rows(network: Any) -> list[dict[str, Any]]:
    """Return the resolved rows of the model yaml as plain data."""
    rows = []
    for layer in network.spec.layers:
        row = asdict(layer)
        for name in ("anchors", "num_classes"):
            row["arguments"].pop(name, None)
        if layer.kind == "Detect":
            row |= {"num_classes": network.num_classes, "anchors_cells": network.anchors_cells.tolist()}
        rows.append(row)
    return rows


def update_settings(batch_size: int) -> dict[str, Any]:
    """Return the settings of optimizer and EMA; every step updates, as after warm-up at batch 64."""
    from graph_train.engine.schedule import EMA_DECAY, EMA_TAU, scaled_weight_decay
    from graph_train.settings.hyperparameters import Hyperparameters
    from kernels.ops.update.function import MAX_GRADIENT_NORM

    decay = scaled_weight_decay(Hyperparameters().weight_decay, batch_size)
    return {
        "learning_rates": [_LEARNING_RATE] * 3,
        "weight_decays": [0.0, decay, 0.0],
        "momentum": _MOMENTUM,
        "max_norm": MAX_GRADIENT_NORM,
        "ema_decay": EMA_DECAY,
        "ema_tau": EMA_TAU,
    }


def random_batches(point: Point, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images (BATCHES, B, 3, S, S) uint8 and padded labels (BATCHES, B, T, 5) that depend on the point only."""
    from models.padded_labels import label_capacity, pad_labels

    random = np.random.default_rng([point.batch_size, point.imgsz])
    shape = (BATCHES, point.batch_size, 3, point.imgsz, point.imgsz)
    images = random.integers(0, 256, shape, dtype=np.uint8)
    capacity = label_capacity(_MAX_LABELS)
    labels = []
    for _ in range(BATCHES):
        counts = random.integers(_MIN_LABELS, _MAX_LABELS + 1, point.batch_size)
        total = int(counts.sum())
        sides = np.exp(random.uniform(math.log(_SMALLEST_SIDE), math.log(_LARGEST_SIDE), (total, 2)))
        centres = sides / 2 + random.random((total, 2)) * (1 - sides)
        columns = (np.repeat(np.arange(point.batch_size), counts), random.integers(0, num_classes, total))
        labels.append(pad_labels(np.column_stack([*columns, centres, sides]), point.batch_size, capacity))
    return images, np.stack(labels)


def l2_norm(arrays: Sequence[np.ndarray]) -> float:
    """Return the L2 norm over all arrays, accumulated in float64."""
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays))
