"""Inference of a network: decoded predictions and, optionally, the validation loss.

The network is executed eagerly, or as one compiled graph per input shape; both share its weights.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.ranks.exchange import Exchange
from graph_train.ranks.placement import Placement
from kernels.framework.eager_runs import EagerRuns
from kernels.framework.global_rows import local_shard, sharded_by_batch
from kernels.framework.graph_memory import compile_graph
from kernels.framework.module_graph import ModuleGraph
from kernels.plugin import is_loaded, runs_cuda_kernels
from kernels.runtime import Tensor, flow
from models.loss import DetectionLoss
from models.network import DetectionModel
from models.padded_labels import label_capacity, pad_labels


def on_device(images: npt.NDArray[Any] | Tensor, device: Any) -> Tensor:
    """Return images, an array or a tensor, as a tensor on the device, without copying host memory if possible."""
    tensor = flow.from_numpy(images) if isinstance(images, np.ndarray) else images
    return tensor.to(device)


def on_host(values: npt.NDArray[Any] | Tensor) -> npt.NDArray[Any]:
    """Return an array or a tensor as an array."""
    return values if isinstance(values, np.ndarray) else values.numpy()


class _Predictor(flow.nn.Module):
    """Network, decoding and loss as one module."""

    def __init__(self, network: DetectionModel, criterion: DetectionLoss | None) -> None:
        super().__init__()
        self.network, self.criterion = network, criterion

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        maps = self.network.raw_maps(images)
        decoded = sharded_by_batch(self.network.decode(maps))
        return (decoded,) if self.criterion is None else (decoded, self.criterion(maps, labels).parts)


class Inference:
    """Inference of a network, with the signature `graph_train.validation.measuring.Forward`.

    Args:
        network: a `DetectionModel`; it is put into evaluation mode.
        criterion: a `DetectionLoss` for the validation loss, or None.
        graph: whether to compile a graph per shape and type of the input; None: once these are frequent (`EagerRuns`).
        label_floor: minimum label capacity, so that there are few shapes.
        placement: placement of the network; None for its device.
        exchange: the collectives.
    """

    def __init__(
        self,
        network: DetectionModel,
        criterion: DetectionLoss | None = None,
        *,
        graph: bool | None = None,
        label_floor: int = 0,
        placement: Placement | None = None,
        exchange: Exchange = Exchange(),  # noqa: B008 - a frozen value
    ) -> None:
        self._module = _Predictor(network.eval(), criterion.eval() if criterion is not None else None)
        self._placement = placement or Placement(str(next(iter(network.parameters())).device))
        self._exchange = exchange
        self._graph = graph
        self._label_floor = label_floor
        self._graphs: dict[tuple[tuple[int, ...], str, tuple[int, ...]], ModuleGraph] = {}
        self._eager_runs = EagerRuns()

    def compile_at_once(self) -> None:
        """Compile every shape at its first batch from now on, to measure the memory of graphs; no effect if eager."""
        if self._graph is None:
            self._graph = True

    @property
    def graphs(self) -> int:
        """Number of compiled graphs."""
        return len(self._graphs)

    def __call__(
        self, images: npt.NDArray[Any] | Tensor, label_rows: npt.NDArray[np.float32], total: int | None = None
    ) -> tuple[npt.NDArray[np.float32] | Tensor, npt.NDArray[np.float32] | None]:
        """Predict a batch.

        Args:
            images: (B, 3, H, W) RGB: uint8, or float32 in [0, 1].
            label_rows: (n, 6) image, class, centre x, y, width, height, normalised; may be empty.
            total: number of images of the batch over all ranks; None with a single rank.
        Returns:
            Predictions (B, N, 5 + classes), boxes in px and confidences, as a tensor if CUDA kernels do NMS, else an
            array; box, objectness and class loss (3,), or None.
        """
        rows, total = int(images.shape[0]), int(images.shape[0]) if total is None else total
        images = self._placement.shard_batch(images, total)
        labels = self._placement.shard_batch(self._padded(label_rows, rows), total)
        with flow.no_grad():
            outputs = self._run(images, labels)
        # Cloned, because a graph reuses the memory of its outputs.
        decoded = (
            local_shard(outputs[0]).clone()
            if is_loaded() and runs_cuda_kernels(images)
            else self._placement.local_rows(outputs[0])
        )
        return decoded, self._placement.to_numpy(outputs[1])[:3] if len(outputs) > 1 else None

    def _padded(self, rows: npt.NDArray[np.float32], batch: int) -> npt.NDArray[np.float32]:
        if self._module.criterion is None:
            return pad_labels(rows[:0], batch, label_capacity(0))
        max_labels = int(np.bincount(rows[:, 0].astype(np.int64), minlength=1).max()) if len(rows) else 0
        (max_labels,) = self._exchange.all_reduce_max(max_labels)
        return pad_labels(rows, batch, label_capacity(max(max_labels, self._label_floor)))

    def _run(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        # By type, too: views of augmented inference are float32, and small ones have the size of the uint8 image.
        key = (tuple(images.shape), str(images.dtype), tuple(labels.shape))
        if self._is_eager(key):
            return self._module(images, labels)
        if key not in self._graphs:
            graph = ModuleGraph(self._module)
            compile_graph(graph, images, labels)
            self._graphs[key] = graph
        return self._graphs[key](images, labels)

    def _is_eager(self, key: tuple[tuple[int, ...], str, tuple[int, ...]]) -> bool:
        if self._graph is None:
            return key not in self._graphs and self._eager_runs.should_run_eagerly(key)
        return not self._graph
