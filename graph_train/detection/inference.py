"""Runs a network without training it: decoded predictions, and the validation loss beside them.

One module, executed eagerly or as one compiled graph for each input shape; both read the same weights in place.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.ranks.exchange import Exchange
from graph_train.ranks.placement import Placement
from kernels.framework.global_rows import local_shard, sharded_by_batch
from kernels.framework.graph_memory import compile_graph
from kernels.plugin import is_loaded, runs_cuda_kernels
from kernels.runtime import Tensor, flow
from models.padded_labels import label_capacity, pad_labels


def on_device(images: Any, device: Any) -> Tensor:
    """Return a batch's images, NumPy array or tensor, as a tensor on the device; shares host memory where it can."""
    tensor = flow.from_numpy(images) if isinstance(images, np.ndarray) else images
    return tensor.to(device)


def on_host(values: Any) -> npt.NDArray[Any]:
    """Return an array, or the values of a tensor, as an array."""
    return values if isinstance(values, np.ndarray) else values.numpy()


class _Predictor(flow.nn.Module):
    """Network, decoding and loss as one module."""

    def __init__(self, network: Any, criterion: Any | None) -> None:
        super().__init__()
        self.network, self.criterion = network, criterion

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        maps = self.network.raw_maps(images)
        decoded = sharded_by_batch(self.network.decode(maps))
        return (decoded,) if self.criterion is None else (decoded, self.criterion(maps, labels).parts)


class _PredictGraph(flow.nn.Graph):
    """One input shape, captured."""

    def __init__(self, module: _Predictor) -> None:
        super().__init__()
        self.predict = module

    def build(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return self.predict(images, labels)


class Inference:
    """Callable that takes a batch and gives predictions, as `graph_train.validation.measuring` wants it.

    Args:
        network: a `DetectionModel`; put into evaluation mode here.
        criterion: a `DetectionLoss` for the validation loss, or None to skip it.
        graph: compile (once per input shape) instead of running op by op.
        label_floor: smallest label capacity, so that few shapes arise.
        placement: where the network is; None for the one device it is on.
        exchange: with the other ranks, if there are any.
    """

    def __init__(
        self,
        network: Any,
        criterion: Any | None = None,
        *,
        graph: bool = True,
        label_floor: int = 0,
        placement: Placement | None = None,
        exchange: Exchange = Exchange(),  # noqa: B008 - a frozen value
    ) -> None:
        self._module = _Predictor(network.eval(), criterion.eval() if criterion is not None else None)
        self._placement = placement or Placement(str(next(iter(network.parameters())).device))
        self._exchange = exchange
        self._graph = graph
        self._label_floor = label_floor
        self._graphs: dict[tuple[tuple[int, ...], tuple[int, ...]], _PredictGraph] = {}

    @property
    def graphs(self) -> int:
        """Number of shapes that were compiled so far."""
        return len(self._graphs)

    def __call__(
        self, images: Any, label_rows: npt.NDArray[np.float32], total: int | None = None
    ) -> tuple[npt.NDArray[np.float32] | Tensor, npt.NDArray[np.float32] | None]:
        """Predict a batch.

        Args:
            images: (B, 3, H, W) RGB: uint8, or float32 in [0, 1].
            label_rows: (n, 6) image, class, centre x, y, width, height, normalised; may be empty.
            total: images of the batch over all ranks, of which `images` are this rank's; None: all of them.
        Returns:
            (B, N, 5 + classes) boxes in px and confidences, on the device where CUDA kernels suppress them; (3,) box,
            objectness and class loss, or None.
        """
        rows, total = int(images.shape[0]), int(images.shape[0]) if total is None else total
        images = self._placement.shard_batch(images, total)
        labels = self._placement.shard_batch(self._padded(label_rows, rows), total)
        with flow.no_grad():
            outputs = self._run(images, labels)
        # A graph uses the memory of its results again.
        decoded = (
            local_shard(outputs[0]).clone()
            if is_loaded() and runs_cuda_kernels(images)
            else self._placement.local_rows(outputs[0])
        )
        return decoded, self._placement.to_numpy(outputs[1])[:3] if len(outputs) > 1 else None

    def _padded(self, rows: npt.NDArray[np.float32], batch: int) -> npt.NDArray[np.float32]:
        if self._module.criterion is None:
            return pad_labels(rows[:0], batch, label_capacity(0))
        need = int(np.bincount(rows[:, 0].astype(np.int64), minlength=1).max()) if len(rows) else 0
        (need,) = self._exchange.all_reduce_max(need)
        return pad_labels(rows, batch, label_capacity(max(need, self._label_floor)))

    def _run(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        if not self._graph:
            return self._module(images, labels)
        key = (tuple(images.shape), tuple(labels.shape))
        if key not in self._graphs:
            graph = _PredictGraph(self._module)
            compile_graph(graph, images, labels)
            self._graphs[key] = graph
        return self._graphs[key](images, labels)
