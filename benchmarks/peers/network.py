"""YOLOv5's network in PyTorch, from the resolved rows of a model yaml; parameters are named as in the reference."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_NORM_EPS, _NORM_MOMENTUM = 1e-3, 0.03


class Conv(nn.Module):
    """Convolution, BatchNorm, SiLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, padding: int | None = None
    ) -> None:
        super().__init__()
        border = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, border, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=_NORM_EPS, momentum=_NORM_MOMENTUM)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolutions with an optional shortcut."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels), Conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """Two 1x1 branches, one of them with bottlenecks, merged by a third 1x1."""

    def __init__(self, in_channels: int, out_channels: int, repeats: int, shortcut: bool, expansion: float) -> None:
        super().__init__()
        inner = int(out_channels * expansion)
        self.cv1, self.cv2 = Conv(in_channels, inner), Conv(in_channels, inner)
        self.cv3 = Conv(2 * inner, out_channels)
        self.m = nn.Sequential(*(Bottleneck(inner, shortcut) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPPF(nn.Module):
    """Three max pools in sequence, concatenated with their input."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(in_channels, in_channels // 2), Conv(in_channels // 2 * 4, out_channels)
        self.m = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        stages = [self.cv1(x)]
        for _ in range(3):
            stages.append(self.m(stages[-1]))
        return self.cv2(torch.cat(stages, 1))


class Concat(nn.Module):
    """Concatenation of channels."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map several (B, C_i, H, W) to (B, sum of C_i, H, W)."""
        return torch.cat(list(maps), 1)


class Detect(nn.Module):
    """One 1x1 convolution per level."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, anchors_cells: Any) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.tensor(anchors_cells, dtype=torch.float32))
        self.per_level, self.outputs = len(anchors_cells[0]), num_classes + 5
        self.m = nn.ModuleList(nn.Conv2d(channels, self.per_level * self.outputs, 1) for channels in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map [(B, C_i, ny, nx)] to raw predictions [(B, anchors, ny, nx, 5 + classes)]."""
        maps = []
        for convolution, feature in zip(self.m, features, strict=True):
            raw = convolution(feature)
            batch, _, rows, columns = raw.shape
            by_anchor = raw.view(batch, self.per_level, self.outputs, rows, columns)
            maps.append(by_anchor.permute(0, 1, 3, 4, 2).contiguous())
        return maps


Row = Mapping[str, Any]


def _conv(row: Row) -> nn.Module:
    given = row["arguments"]
    if given["groups"] != 1 or given["dilation"] != 1 or given["activation"] is not True:
        raise ValueError(f"layer {row['index']}: the PyTorch peer supports plain convolutions with SiLU only")
    return Conv(row["in_channels"][0], row["out_channels"], given["kernel"], given["stride"], given["padding"])


def _c3(row: Row) -> nn.Module:
    given = row["arguments"]
    if given["groups"] != 1:
        raise ValueError(f"layer {row['index']}: the PyTorch peer does not support a grouped C3")
    return C3(row["in_channels"][0], row["out_channels"], row["repeats"], given["shortcut"], given["expansion"])


_BUILDERS: Mapping[str, Callable[[Row], nn.Module]] = {
    "Conv": _conv,
    "C3": _c3,
    "SPPF": lambda row: SPPF(row["in_channels"][0], row["out_channels"], row["arguments"]["kernel"]),
    "Upsample": lambda row: nn.Upsample(scale_factor=row["arguments"]["scale_factor"], mode="nearest"),
    "Concat": lambda row: Concat(),
    "Detect": lambda row: Detect(row["in_channels"], row["num_classes"], row["anchors_cells"]),
}


class Network(nn.Module):
    """The layers of `benchmarks.harness.points.network_rows`."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        for row in rows:
            if row["kind"] not in _BUILDERS or (row["repeats"] != 1 and row["kind"] != "C3"):
                raise ValueError(
                    f"layer {row['index']} is {row['repeats']} x {row['kind']}: the PyTorch peer knows "
                    f"{', '.join(_BUILDERS)}, and repeats C3 only"
                )
        self.model = nn.Sequential(*(_BUILDERS[row["kind"]](row) for row in rows))
        self._inputs = [tuple(row["inputs"]) for row in rows]
        self._takes_list = [row["kind"] in ("Concat", "Detect") for row in rows]
        self._kept = {index for inputs in self._inputs for index in inputs}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) in [0, 1] to the raw predictions of each level."""
        outputs: dict[int, Any] = {-1: images}
        x: Any = images
        for index, (layer, inputs, takes_list) in enumerate(
            zip(self.model, self._inputs, self._takes_list, strict=True)
        ):
            sources = [outputs[source] for source in inputs]
            x = layer(sources if takes_list else sources[0])
            if index in self._kept:
                outputs[index] = x
        return x
