"""Detectors from weight files: single networks, ensembles, and augmented inference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from graph_train.detection.augmented_views import AugmentedInference
from graph_train.detection.inference import Inference, on_host
from graph_train.detection.micro_batches import MicroBatched
from kernels.host.quantity import quantity
from models.network import DetectionModel
from models.spec import load_model_spec
from models.weights import LoadedWeights, load_weights, transfer
from pipelines.data.dataset import load_dataset

Array = npt.NDArray[Any]

_NO_LABELS = np.zeros((0, 6), np.float32)


def rebuild_network(path: Path, *, part: Literal["ema", "model"] = "ema") -> DetectionModel:
    """Build the network of a weight file, not fused.

    Args:
        path: a file in any format of `models.weights.load_weights`.
        part: for a training checkpoint, the moving average ("ema") or the trained network ("model").
    Raises:
        ValueError: the file has no network configuration, or lacks arrays of the network.
        OSError: there is no such file.
    """
    weights = load_weights(path, prefer=part)
    if weights.config is None:
        raise ValueError(f"{path}: has no network configuration; use weights saved by graph-train, or a YOLOv5 .pt")
    network = DetectionModel(load_model_spec(weights.config, source=f"{path}: its network"), seed=None)
    report = transfer(network, weights)
    incomplete = [name for name in (*report.missing, *report.mismatched) if "num_batches_tracked" not in name]
    if incomplete:
        raise ValueError(
            f"{path}: {quantity(len(incomplete), 'array')} missing or of the wrong shape, first {incomplete[0]}"
        )
    network.names = _class_names(weights, network.num_classes)
    return network


def load_network(path: Path) -> DetectionModel:
    """Load the averaged network of a weight file, fused and in evaluation mode; errors as in `rebuild_network`."""
    return rebuild_network(path).eval().fuse()


def _class_names(weights: LoadedWeights, number: int) -> list[str]:
    names = weights.class_names
    return list(names) if names is not None and len(names) == number else [str(category) for category in range(number)]


def named_classes(data: str | Path, number: int) -> tuple[str, ...]:
    """Return the class names in a dataset yaml for weights with `number` classes.

    Raises:
        ValueError: the yaml is invalid, or has a different number of classes.
        OSError: no such file.
    """
    names = load_dataset(data, require=()).class_names
    if len(names) != number:
        raise ValueError(f"--data {data}: has {quantity(len(names), 'class')}, but the weights have {number}")
    return names


@dataclass(frozen=True)
class Detector:
    """A detector with one network, or an ensemble of several networks with common NMS.

    `__call__` maps images (B, 3, H, W) uint8 (array or tensor) to decoded predictions (B, N, 5 + classes) float32 in px
    of these images, and to None for the loss. It has the signature that validation expects; labels are ignored.
    """

    members: tuple[Callable[[Any], Array], ...]
    class_names: tuple[str, ...]
    stride: int
    networks: tuple[DetectionModel, ...]

    def __call__(self, images: Any, label_rows: Array = _NO_LABELS) -> tuple[Array, None]:
        """Return the concatenated predictions of all members."""
        parts = [member(images) for member in self.members]
        return parts[0] if len(parts) == 1 else np.concatenate([on_host(part) for part in parts], axis=1), None


def load_detector(
    paths: Sequence[str | Path], *, device: str, graph: bool | None = None, augment: bool = False
) -> Detector:
    """Load a detector.

    Args:
        paths: weight files; several form an ensemble and must have the same number of classes.
        device: device, from `select_device`.
        graph: whether to compile a graph per image size; None: once a size is frequent.
        augment: whether to use augmented inference.

    Raises:
        ValueError, OSError: a file is invalid, or does not match the first.
    """
    networks = [load_network(Path(path)).to(device) for path in paths]
    for path, network in zip(paths, networks, strict=True):
        network.spec.require_rgb()
        if network.num_classes != networks[0].num_classes:
            raise ValueError(
                f"{path}: has {quantity(network.num_classes, 'class')}, but {paths[0]} has {networks[0].num_classes}; "
                "the members of an ensemble must have the same classes"
            )
    return Detector(
        members=tuple(_member(network, graph=graph, augment=augment) for network in networks),
        class_names=tuple(networks[0].names),
        stride=max(network.spec.grid_px for network in networks),
        networks=tuple(networks),
    )


def _member(network: DetectionModel, *, graph: bool | None, augment: bool) -> Callable[[Any], Array]:
    plain = Inference(network, graph=graph)

    def predict(images: Any) -> Array:
        return plain(images, _NO_LABELS)[0]

    weight = next(iter(network.parameters()))
    run = MicroBatched(predict, on_cpu=not weight.is_cuda) if graph is not False else predict
    if not augment:
        return run
    views = AugmentedInference(run, network.stride, grid_px=network.spec.coarsest_stride, device=weight.device)
    return lambda images: views(images, _NO_LABELS)[0]
