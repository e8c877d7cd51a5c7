"""The detection network: the layers of a `ModelSpec` as a OneFlow module."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.framework.activation_type import ActivationType
from kernels.framework.global_rows import local_shard
from kernels.runtime import Tensor, flow
from models import layout
from models.batch_norm import BatchNorm2d
from models.blocks import BRANCHING, CONSTRUCTORS, Concat, Conv
from models.catalogue import BLOCKS, Activation
from models.head import Detect
from models.initialise import initialise
from models.layers import (
    Conv2d,
    MaxPool2d,
    Module,
    PackedLayer,
    Upsample,
    ZeroPad2d,
    fork,
    get_attribute,
    make_activation,
    tensor_of,
)
from models.spec import LayerSpec, ModelSpec
from models.targets import HeadGeometry

nn: Any = flow.nn


class DetectionModel(flow.nn.Module):
    """A YOLOv5-style detector. Keys of `state_dict()` are the reference's, `model.N.…`.

    Attributes:
        spec: the specification it was built from.
        names: class names, "0", "1", … until set.
        stride: px per cell of each level.
    """

    def __init__(self, spec: ModelSpec, *, seed: int | None = 0) -> None:
        """Build the layers.

        Args:
            spec: from `models.spec.load_model_spec`.
            seed: seed of the initialisation; None leaves weights undefined, if all of them are loaded afterwards.
        """
        super().__init__()
        self.spec = spec
        self.names: list[str] = [str(index) for index in range(spec.num_classes)]
        activation = make_activation(spec.activation)
        self.model = nn.Sequential(*(_make_layer(layer, spec, activation) for layer in spec.layers))
        self._inputs = tuple(layer.inputs for layer in spec.layers)
        self._branches = _branches(spec)
        self._uncounted_batches = 0
        self._activation_number = int(ActivationType.FLOAT32)  # an int, since modules are pickled when saved
        self._packed_weights = self._numbered_weights()
        if seed is not None:
            initialise(self, seed)

    def _numbered_weights(self) -> tuple[str, ...]:
        """Assign an index to each layer whose weight is packed; return the weights' names in that order."""
        found = [(name, module) for name, module in self.named_modules() if isinstance(module, PackedLayer)]
        for number, (_, module) in enumerate(found):
            module.weight_index = number
        return tuple(f"{name}.{module.weight_name}" for name, module in found)

    @property
    def activation_type(self) -> ActivationType:
        """Data type of the activations, see `compute_in`."""
        return ActivationType(self._activation_number)

    @property
    def stride(self) -> tuple[int, ...]:
        """Px per cell of each level."""
        return self.spec.strides

    @property
    def num_classes(self) -> int:
        """Number of classes of the head."""
        return self.spec.num_classes

    @property
    def head(self) -> Detect:
        """The detection head, the last layer."""
        return self.model[len(self._inputs) - 1]

    @property
    def anchors_cells(self) -> npt.NDArray[np.float32]:
        """(levels, anchors, 2) float32: width, height in grid cells of the level; a copy on the host."""
        return local_shard(self.head.anchors).numpy()

    @property
    def head_geometry(self) -> HeadGeometry:
        """Current geometry of the head for the loss."""
        return HeadGeometry(self.anchors_cells, tuple(float(px) for px in self.stride), self.num_classes)

    def set_anchors_px(self, anchors_px: npt.ArrayLike) -> None:
        """Replace the anchors, (levels, anchors, 2) in px; existing losses keep the old ones."""
        self.head.set_anchors_px(anchors_px)

    def compute_in(self, activation_type: ActivationType) -> "DetectionModel":
        """Set the data type of activations and return the network; weights, statistics and maps stay float32."""
        self._activation_number = int(activation_type)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the raw maps of each level, (B, anchors, ny, nx, 5 + classes) float32.

        Args:
            images: (B, `spec.channels`, H, W), sides multiples of `spec.coarsest_stride`: uint8, or float32 in [0, 1].
        """
        return [self.head.cells_of(raw) for raw in self.raw_maps(images)]

    def raw_maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps as `Detect.raw_maps` does, for the loss and for decoding."""
        with self._activations(images):
            return deque(self._layer_outputs(images), maxlen=1).pop()  # frees earlier outputs

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the output of every layer but the head, float32, in the axis order of `Layout.fastest_for`.

        It is not transposed, because OneFlow's kernel for that does not support GPUs newer than 8.9.
        """
        with self._activations(images):
            return [layout.to_float32(output) for output in list(self._layer_outputs(images))[:-1]]

    def _activations(self, images: Tensor) -> AbstractContextManager[None]:
        chosen = layout.Layout.fastest_for(images, self.activation_type)
        weights = (
            [tensor_of(get_attribute(self, name)) for name in self._packed_weights] if chosen.packed_weights else []
        )
        return layout.activations(chosen, weights)

    def _layer_outputs(self, images: Tensor) -> Iterator[Any]:
        x: Any = layout.from_images(images)
        waiting = {-1: fork(x, self._branches[-1])}
        for index, (layer, inputs) in enumerate(zip(self.model, self._inputs)):  # noqa: B905 - see Detect.forward
            sources = [waiting[source].pop(0) for source in inputs]
            if self.spec.layers[index].kind == "Detect":
                yield layer.raw_maps(sources)
                return
            x = layer(sources if _takes_list(self.spec.layers[index]) else sources[0])
            if index in self._branches:
                waiting[index] = fork(x, self._branches[index])
            yield x

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode raw maps to (B, N, 5 + classes): cx, cy, w, h in px, then sigmoid confidences.

        Levels are concatenated in order.
        """
        return self.head.decode(maps)

    def synchronise_statistics(self, enabled: bool) -> None:
        """Set whether BatchNorm computes statistics over all ranks if the batch is sharded."""
        for module in self.modules():
            if isinstance(module, BatchNorm2d):
                module.synchronised = enabled

    def count_batch(self) -> None:
        """Count a forward pass in training mode for `num_batches_tracked`; called by the step.

        The buffers are updated by `state_dict()`, so a step only increments an integer.
        """
        self._uncounted_batches += 1

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return OneFlow's `state_dict`, with `num_batches_tracked` up to date."""
        if self._uncounted_batches:
            for module in self.modules():
                if isinstance(module, BatchNorm2d):
                    _count(module.num_batches_tracked, self._uncounted_batches)
            self._uncounted_batches = 0
        return super().state_dict(*args, **kwargs)

    def fuse(self) -> "DetectionModel":
        """Fold each BatchNorm into its preceding convolution, in place, for inference; return the network."""
        with flow.no_grad():
            for module in self.modules():
                if isinstance(module, Conv) and not module.folded:
                    _fold(module)
        self._packed_weights = self._numbered_weights()
        return self


def _count(counter: Tensor, batches: int) -> None:
    """Increment a counter on the host, since OneFlow cannot add integers on GPUs newer than 8.9."""
    local = local_shard(counter)
    with flow.no_grad():
        local.copy_(flow.tensor(local.numpy() + batches))


def _branches(spec: ModelSpec) -> dict[int, list[int]]:
    """Return the number of ops that use each layer's output, as a list with an entry per consuming layer."""
    branches: dict[int, list[int]] = {}
    for layer in spec.layers:
        for source in layer.inputs:
            branches.setdefault(source, []).append(2 if layer.kind in BRANCHING else 1)
    return branches


def _takes_list(layer: LayerSpec) -> bool:
    return layer.kind in ("Concat", "Detect")


_PLAIN: Mapping[str, Callable[[Mapping[str, Any]], Module]] = {
    "Upsample": lambda arguments: Upsample(arguments["scale_factor"]),
    "MaxPool2d": lambda arguments: MaxPool2d(arguments["kernel"], arguments["stride"], arguments["padding"]),
    "ZeroPad2d": lambda arguments: ZeroPad2d(arguments["borders"]),
}


def _make_layer(layer: LayerSpec, spec: ModelSpec, activation: Module) -> Module:
    arguments = dict(layer.arguments)
    if layer.kind == "Detect":
        return Detect(layer.in_channels, spec.num_classes, spec.anchors_px, spec.strides)
    if layer.kind == "Concat":
        return Concat()
    if layer.kind in _PLAIN:
        return _stacked([_PLAIN[layer.kind](arguments) for _ in range(layer.repeats)])
    arguments["activation"] = _activation(arguments.get("activation", True), activation)
    in_channels, build = layer.in_channels[0], CONSTRUCTORS[layer.kind]
    if BLOCKS[layer.kind].repeats_inside:
        return build(in_channels, layer.out_channels, repeats=layer.repeats, **arguments)
    blocks = [build(in_channels, layer.out_channels, **arguments)]
    return _stacked(
        blocks + [build(layer.out_channels, layer.out_channels, **arguments) for _ in range(layer.repeats - 1)]
    )


def _stacked(blocks: list[Module]) -> Module:
    return blocks[0] if len(blocks) == 1 else nn.Sequential(*blocks)


def _activation(choice: bool | Activation, default: Module) -> Module:
    if isinstance(choice, Activation):
        return make_activation(choice)
    return default if choice else nn.Identity()


def _fold(block: Conv) -> None:
    """Replace convolution and BatchNorm of a block by an equivalent convolution with bias."""
    convolution, norm = block.conv, block.bn
    device = convolution.weight.device
    gain, shift, mean, variance = (
        tensor.numpy().astype(np.float64) for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = gain / np.sqrt(variance + norm.eps)
    folded = Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
    weight = convolution.weight.numpy()
    weight = np.multiply(weight, scale.astype(np.float32).reshape(-1, 1, 1, 1), out=np.empty_like(weight))
    folded.weight = nn.Parameter(flow.from_numpy(weight).to(device))
    folded.bias = nn.Parameter(flow.tensor((shift - mean * scale).astype(np.float32), device=device))
    block.conv = folded
    del block.bn
    block.folded = True
