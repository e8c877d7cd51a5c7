"""Plots of the feature maps of each layer, for `--visualize`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.detection.inference import on_device
from kernels.framework.graph_memory import compile_graph
from kernels.framework.module_graph import ModuleGraph
from kernels.runtime import Tensor, flow
from models.layout import Layout
from models.network import DetectionModel

Array = npt.NDArray[Any]

SHOWN_CHANNELS = 32
_COLUMNS = 8
_MIN_TILE_PX = 64
_GAP_PX = 2


class _Layers(flow.nn.Module):
    """The outputs of all layers but the head."""

    def __init__(self, network: DetectionModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network.features(images))


class FeatureMaps:
    """The feature maps of a network's layers, except the head, saved to files.

    Args:
        network: the network; it is put into evaluation mode.
        graph: whether to compile a graph per input shape instead of running op by op.
    """

    def __init__(self, network: DetectionModel, *, graph: bool = True) -> None:
        self._module = _Layers(network.eval())
        self._activation_type = network.activation_type
        self._kinds = [layer.kind for layer in network.spec.layers]
        self._device = next(iter(network.parameters())).device
        self._graph = graph
        self._graphs: dict[tuple[int, ...], ModuleGraph] = {}

    def write(self, images: Any, folders: Sequence[Path]) -> None:
        """Write `stage<layer>_<block>_features.png` and `.npy` (C, h, w) for each layer, named as in YOLOv5.

        Args:
            images: (B, 3, H, W) uint8 RGB.
            folders: output folder of each image.
        """
        images = on_device(images, self._device)
        with flow.no_grad():
            outputs = [output.numpy() for output in self._run(images)]
        if Layout.fastest_for(images, self._activation_type).channels_last:
            outputs = [output.transpose(0, 3, 1, 2) for output in outputs]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for layer, output in enumerate(outputs):
            for maps, folder in zip(output, folders, strict=True):
                stem = folder / f"stage{layer}_{self._kinds[layer]}_features"
                np.save(stem.with_suffix(".npy"), np.ascontiguousarray(maps))
                _mosaic(maps[:SHOWN_CHANNELS]).save(stem.with_suffix(".png"))

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        if not self._graph:
            return self._module(images)
        shape = tuple(images.shape)
        if shape not in self._graphs:
            graph = ModuleGraph(self._module)
            compile_graph(graph, images)
            self._graphs[shape] = graph
        return self._graphs[shape](images)


def _mosaic(maps: Array) -> Any:
    """Return an image of the channels (C, h, w) side by side, each normalised to its range."""
    from matplotlib import colormaps
    from PIL import Image

    count, height, width = maps.shape
    scale = max(1, -(-_MIN_TILE_PX // max(height, width)))
    columns = min(_COLUMNS, count)
    step_y, step_x = height * scale + _GAP_PX, width * scale + _GAP_PX
    canvas = np.full((-(-count // columns) * step_y + _GAP_PX, columns * step_x + _GAP_PX, 3), 255, np.uint8)
    for number, values in enumerate(maps):
        span = float(np.ptp(values)) or 1.0
        coloured = colormaps["viridis"]((values - values.min()) / span)[..., :3]
        tile = (coloured * 255).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
        top, left = (number // columns) * step_y + _GAP_PX, (number % columns) * step_x + _GAP_PX
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return Image.fromarray(canvas)
