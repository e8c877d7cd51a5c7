"""A network that compiles in a second, with every type of connection in YOLOv5."""

from typing import TypeVar

import numpy as np

from graph_train.engine.schedule import Schedule
from graph_train.engine.state import TrainingState
from graph_train.engine.step import StepConfig, TrainStep
from kernels.framework.activation_type import ActivationType
from kernels.ops.update.function import UpdateRule
from kernels.runtime import flow
from models.loss import DetectionLoss
from models.loss_config import LossConfig
from models.network import DetectionModel
from models.padded_labels import label_capacity, pad_labels
from models.spec import load_model_spec

Step = TypeVar("Step", bound=TrainStep)

TINY = {
    "nc": 3,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]],
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "C3", [16]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "SPPF", [16, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 3], 1, "Concat", [1]],
        [-1, 1, "Conv", [16, 1, 1]],
        [[8, 5], 1, "Detect", ["nc", "anchors"]],
    ],
}


def tiny_network(seed: int = 0) -> DetectionModel:
    """Return a network of 10 layers and two levels (strides 8 and 16)."""
    return DetectionModel(load_model_spec(TINY), seed=seed)


def steepen(network: DetectionModel, images: np.ndarray) -> DetectionModel:
    """Scale the head so that the confidences of each image span 0 to 1.

    This gives an untrained network with detections. Images (B, 3, H, W) uint8 must resemble those it will be used on;
    boxes keep the size of their anchors.
    """
    with flow.no_grad():
        maps = network.eval()(flow.tensor(images.astype(np.float32) / 255))
        for layer, raw in zip(network.head.m, maps, strict=True):
            by_output = raw.numpy().transpose(1, 4, 0, 2, 3).reshape(layer.bias.shape[0], -1)
            wanted = np.tile([0.5] * 4 + [2.0] * (1 + network.num_classes), network.head.anchors_per_level)
            steepness = (wanted / by_output.std(axis=1)).astype(np.float32)
            layer.bias.copy_(flow.tensor((layer.bias.numpy() - by_output.mean(axis=1)) * steepness))
            layer.weight.copy_(flow.tensor(layer.weight.numpy() * steepness[:, None, None, None]))
    return network


def tiny_step(
    kind: type[Step],
    *,
    rule: UpdateRule = "sgd",
    batch_size: int = 4,
    activation_type: ActivationType = ActivationType.FLOAT32,
) -> Step:
    """Return a step on the tiny network, with the same initial state in every call."""
    network = tiny_network().compute_in(activation_type)
    state = TrainingState(network, tiny_network(), rule=rule)
    criterion = DetectionLoss(network.head_geometry, LossConfig())
    return kind(state, criterion, StepConfig(tiny_schedule(batch_size).weight_decays))


def tiny_schedule(batch_size: int = 4, *, optimizer: str = "SGD") -> Schedule:
    """Return a schedule: warm-up of 12 iterations in epochs of 6, accumulating up to 16 / 4 batches."""
    return Schedule(
        epochs=10,
        batches_per_epoch=6,
        batch_size=batch_size,
        warmup=12,
        nominal_batch=16,
        optimizer=optimizer,  # type: ignore[arg-type]
    )


def random_batch(number: int, *, side: int, labels: int, batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return images (B, 3, side, side) uint8 and padded labels that depend on the arguments only."""
    random = np.random.default_rng([number, side, labels])
    images = random.integers(0, 256, (batch, 3, side, side), dtype=np.uint8)
    rows = [
        [image, random.integers(3), *random.uniform(0.1, 0.9, 2), *random.uniform(0.1, 0.5, 2)]
        for image in range(batch)
        for _ in range(labels)
    ]
    return images, pad_labels(np.array(rows, np.float32).reshape(-1, 6), batch, label_capacity(labels))
