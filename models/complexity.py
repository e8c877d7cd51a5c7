"""Size of a network: parameters and multiply-accumulates of each layer, and a table of them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from models.attention import MultiheadAttention
from models.batch_norm import BatchNorm2d
from models.blocks import GhostBottleneck
from models.catalogue import BLOCKS, Size
from models.head import Detect
from models.layers import Conv2d, Linear, Module
from models.network import DetectionModel
from models.spec import PROBE_PX, LayerSpec

REPORT_PX = 640
"""Image size of the GFLOPs that YOLOv5 reports."""

_NORM_FLOPS = 8
"""Operations of BatchNorm per element, as counted by the profiler that YOLOv5 uses."""


@dataclass(frozen=True)
class LayerSize:
    """One row of the table."""

    layer: LayerSpec
    parameters: int
    macs: int
    """Multiply-accumulates of convolutions and linear layers (not of attention), for one image."""


@dataclass(frozen=True)
class Complexity:
    """Size of a network for a square image of `image_px`."""

    layers: tuple[LayerSize, ...]
    parameters: int
    trainable: int
    modules: int
    image_px: int
    macs: int
    flops: int
    """Twice the multiply-accumulates, plus the operations of normalisation and attention."""

    def __str__(self) -> str:
        lines = [f"{'':>3} {'from':>16} {'n':>3} {'parameters':>11}  {'block':<16} arguments"]
        for size in self.layers:
            layer = size.layer
            inputs = str(list(layer.inputs) if len(layer.inputs) > 1 else layer.inputs[0])
            shown = [layer.in_channels if len(layer.in_channels) > 1 else layer.in_channels[0], layer.out_channels]
            given = [] if layer.kind == "Detect" else list(layer.arguments.values())
            arguments = ", ".join(str(value) for value in shown + given)
            lines.append(
                f"{layer.index:>3} {inputs:>16} {layer.repeats:>3} {size.parameters:>11,}  {layer.kind:<16} {arguments}"
            )
        return "\n".join([*lines, self.headline])

    @property
    def headline(self) -> str:
        """A one-line summary: modules, parameters, gradients, GFLOPs."""
        return (
            f"{self.modules} modules, {self.parameters:,} parameters, {self.trainable:,} trained, "
            f"{self.flops / 1e9:.1f} GFLOPs at {self.image_px} px"
        )


def measure(model: DetectionModel, image_px: int = REPORT_PX) -> Complexity:
    """Count parameters and operations without running the network.

    Operations are proportional to the area of the feature map, attention scores to its square. Map sizes are those of
    the spec for an image of `PROBE_PX`, scaled to `image_px`.
    """
    area = (image_px / PROBE_PX) ** 2
    rows, flops = [], 0.0
    for spec, layer in zip(model.spec.layers, model.model, strict=True):
        counted = [_operations(module, math.prod(size) * area) for module, size in _sized_modules(model, spec, layer)]
        rows.append(LayerSize(spec, _parameters(layer), round(sum(each.macs for each in counted))))
        flops += sum(2 * each.macs + each.other_flops for each in counted)
    return Complexity(
        layers=tuple(rows),
        parameters=_parameters(model),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        modules=sum(1 for _ in model.modules()),
        image_px=image_px,
        macs=sum(row.macs for row in rows),
        flops=round(flops),
    )


def _parameters(module: Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class _Operations:
    macs: float = 0.0
    other_flops: float = 0.0


def _operations(module: Module, cells: float) -> _Operations:
    """Count the operations of a module without its children for one image, given the cells of its output map."""
    if isinstance(module, (Conv2d, Linear)):
        return _Operations(macs=module.weight.numel() * cells)
    if isinstance(module, BatchNorm2d):
        return _Operations(other_flops=_NORM_FLOPS * module.num_features * cells)
    if isinstance(module, MultiheadAttention):
        channels = module.in_proj_weight.shape[1]
        # Four projections, which profilers do not count as linear layers, attention scores and weighted sums.
        return _Operations(other_flops=2 * cells * channels * (4 * channels + 2 * cells))
    return _Operations()


def _sized_modules(model: DetectionModel, spec: LayerSpec, layer: Module) -> Iterator[tuple[Module, Size]]:
    """Yield every module inside a layer, with the size of its output map in an image of `PROBE_PX`."""
    sizes = [model.spec.layers[index].size if index >= 0 else (PROBE_PX, PROBE_PX) for index in spec.inputs]
    if isinstance(layer, Detect):
        yield from zip(layer.m, sizes, strict=True)
        return
    rule = BLOCKS[spec.kind]
    before = sizes[0]
    for block in layer if spec.repeats > 1 and not rule.repeats_inside else [layer]:
        after = rule.size(before, spec.arguments)
        for name, module in block.named_modules():
            # Attention includes its projection; a ghost bottleneck downsamples in its middle.
            if name.endswith("ma.out_proj"):
                continue
            early = isinstance(block, GhostBottleneck) and name.startswith("conv.0.")
            yield module, before if early else after
        before = after
