"""Parsing of a model yaml into a validated, frozen description of a network, without OneFlow.

The yaml has YOLOv5's structure: `nc`, `depth_multiple`, `width_multiple`, `anchors`, and the rows
`[from, repeats, block, arguments]` of `backbone` and `head`. Nothing in it is executed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.host.paths import why_missing
from kernels.host.quantity import quantity
from kernels.host.safe_yaml import load_yaml
from models.catalogue import (
    BLOCKS,
    MAX_INTEGER,
    Activation,
    ArgumentError,
    Size,
    block_name,
    parse_activation,
    scaled_channels,
    scaled_repeats,
)

CONFIG_FOLDER = Path(__file__).parent / "configs"
Anchors = tuple[tuple[tuple[float, float], ...], ...]
"""[level][anchor] -> width, height in px."""

CONFIG_KEYS = "nc depth_multiple width_multiple channel_multiple anchors activation backbone head ch inplace".split()
_WORDS: Mapping[str, Any] = {"None": None, "True": True, "False": False}
MIN_GRID_PX = 32
# The network's strides are powers of two well below this size, so the division is exact.
PROBE_PX = 1024
_RGB_CHANNELS = 3
_MAX_REPEATS = 1000
_MAX_SIDE = 4 * PROBE_PX
_MAX_WEIGHTS = 1 << 31
"""Approximate total of all layers; YOLOv5x6 has 0.14e9. A larger network would only run out of memory."""
_MAX_ANCHORS = 1000
_MAX_ANCHOR_PX = 1e5


@dataclass(frozen=True)
class LayerSpec:
    """One row of the yaml, resolved.

    Attributes:
        inputs: indices of the input layers; -1 is the image.
        arguments: keyword arguments of the block, without channels and repeats.
        repeats: after multiplication by the depth multiple.
        size: height and width of the output for a square image of `PROBE_PX`.
    """

    index: int
    where: str
    kind: str
    inputs: tuple[int, ...]
    arguments: Mapping[str, Any]
    repeats: int
    in_channels: tuple[int, ...]
    out_channels: int
    size: Size


@dataclass(frozen=True)
class ModelSpec:
    """The specification of a network.

    Attributes:
        source: the yaml, for error messages.
        channels: image channels.
        anchors_px: width and height of each anchor, by level.
        layers: all layers in their order; the last one is the head.
        strides: px per cell of each level.
        saved: the layers that other layers refer to, with repetitions.
    """

    source: str
    num_classes: int
    channels: int
    anchors_px: Anchors
    depth_multiple: float
    width_multiple: float
    activation: Activation
    layers: tuple[LayerSpec, ...]
    strides: tuple[int, ...]
    saved: tuple[int, ...]
    config: Mapping[str, Any]
    """The yaml with overrides applied: plain data that rebuilds the same network."""

    @property
    def coarsest_stride(self) -> int:
        """The coarsest stride of any layer; image sides must be multiples of it."""
        return PROBE_PX // min(min(layer.size) for layer in self.layers[:-1])

    @property
    def grid_px(self) -> int:
        """Image sides are rounded to multiples of this; at least 32, as in YOLOv5."""
        return max(self.coarsest_stride, MIN_GRID_PX)

    def require_rgb(self) -> None:
        """Reject a network whose input is not RGB, because images are read from files as RGB.

        Raises:
            ValueError: the network has another number of input channels.
        """
        if self.channels != _RGB_CHANNELS:
            raise ValueError(
                f"{self.source}: ch={self.channels}: images have {_RGB_CHANNELS} channels (grey ones are converted); "
                "remove ch"
            )

    @property
    def anchors_per_level(self) -> int:
        """Number of anchors of each level."""
        return len(self.anchors_px[0])


def shipped_configs() -> dict[str, Path]:
    """Return the paths of the shipped model yamls by name without suffix."""
    return {path.stem: path for path in sorted(CONFIG_FOLDER.rglob("*.yaml"))}


def find_config(cfg: str | Path) -> Path:
    """Return the yaml file behind a path or a shipped name (`yolov5n`, `yolov5n.yaml`, `models/yolov5n.yaml`).

    Raises:
        FileNotFoundError: neither a file nor a shipped name.
    """
    path = Path(cfg)
    if path.is_file():
        return path
    shipped = shipped_configs()
    # YOLOv5 users write models/NAME.yaml and models/hub/NAME.yaml.
    if path.suffix in ("", ".yaml") and str(path.parent) in (".", "hub", "models", "models/hub"):
        name = path.name.removesuffix(".yaml")
        if name in shipped:
            return shipped[name]
    raise FileNotFoundError(f"{cfg}: {why_missing(path, 'model yaml')}; give a file or one of: {', '.join(shipped)}")


def load_model_spec(
    cfg: str | Path | Mapping[str, Any],
    *,
    num_classes: int | None = None,
    anchors: int | Sequence[Sequence[float]] | None = None,
    source: str = "model configuration",
) -> ModelSpec:
    """Read and check a model yaml.

    Args:
        cfg: path, name of a shipped configuration with or without `.yaml`, or the mapping itself (as in
            `ModelSpec.config` or a weight file).
        num_classes: replaces `nc` of the yaml.
        anchors: replaces the yaml's: a number of anchors per level (placeholders for auto-anchor, as in YOLOv5), or one
            flat list `w, h, w, h, …` in px for each level.
        source: name of a mapping in error messages.

    Raises:
        FileNotFoundError: no such file or shipped name.
        ValueError: an invalid row, with file and line and the valid choices.
    """
    if isinstance(cfg, Mapping):
        config, lines = dict(cfg), None
    else:
        path = find_config(cfg)
        source = str(path)
        config, lines = _read_yaml(path)
    for key, value in (("nc", num_classes), ("anchors", anchors)):
        if value is not None:
            config[key] = value
    return _Builder(source, config, lines).build()


def _read_yaml(path: Path) -> tuple[dict[Any, Any], dict[Any, list[str]]]:
    """Return the mapping, and "file:line" of each row of backbone and head."""
    file = load_yaml(path)
    lines = {
        key: [file.line(key, position) for position in range(len(rows))]
        for key, rows in file.data.items()
        if isinstance(rows, list)
    }
    return file.data, lines


class _Builder:
    """A builder that walks the rows once, tracking channels and sizes."""

    def __init__(self, source: str, config: dict[Any, Any], lines: Mapping[Any, list[str]] | None) -> None:
        self._source = source
        self._config = config
        unknown = [str(key) for key in config if key not in CONFIG_KEYS]
        if unknown:
            raise ValueError(f"{source}: unknown key {unknown[0]!r}; known keys: {', '.join(CONFIG_KEYS)}")
        self._num_classes = self._integer("nc")
        self._channels = self._integer("ch", _RGB_CHANNELS)
        self._depth = self._number("depth_multiple", 1.0)
        self._width = self._number("width_multiple", 1.0)
        self._divisor = self._integer("channel_multiple", 8)
        self._activation = self._read_activation()
        self._rows = self._read_rows(lines)
        self._layers: list[LayerSpec] = []

    def build(self) -> ModelSpec:
        anchors = self._config.get("anchors")
        if isinstance(anchors, float) and anchors.is_integer():
            anchors = int(anchors)
        per_level = self._anchors_per_level(anchors)
        # A row that already has the head's width (as in YOLOv3 yamls) is not scaled.
        unscaled = per_level * (self._num_classes + 5)
        weights = 0
        for where, row in self._rows:
            layer = self._layer(where, row, unscaled)
            weights += _weights(layer, unscaled)
            if weights > _MAX_WEIGHTS:
                raise ValueError(f"{where}: {layer.kind} makes the network larger than {_MAX_WEIGHTS:.1e} weights")
            self._layers.append(layer)
        return self._finish(anchors)

    def _finish(self, anchors: object) -> ModelSpec:
        layers = tuple(self._layers)
        heads = [layer for layer in layers if layer.kind == "Detect"]
        if len(heads) != 1 or heads[0] is not layers[-1]:
            raise ValueError(f"{self._source}: the last row, and no other, must be Detect; found {len(heads)} of them")
        head = heads[0]
        used = {index for layer in layers for index in layer.inputs}
        for layer in layers[:-1]:
            if layer.index not in used:
                raise ValueError(
                    f"{layer.where}: the output of layer {layer.index} is unused; delete the row or use it"
                )
        if head.arguments["num_classes"] != self._num_classes:
            raise ValueError(
                f"{head.where}: Detect has {quantity(head.arguments['num_classes'], 'class')}, but nc is "
                f"{self._num_classes}; write nc"
            )
        own = head.arguments["anchors"]
        strides = tuple(self._stride(head, layers[index].size) for index in head.inputs)
        return ModelSpec(
            source=self._source,
            num_classes=self._num_classes,
            channels=self._channels,
            anchors_px=_in_stride_order(self._anchors_px(anchors if own == "anchors" else own, head), strides),
            depth_multiple=self._depth,
            width_multiple=self._width,
            activation=self._activation,
            layers=layers,
            strides=strides,
            # Negative numbers are relative; only -1, the previous layer, is not saved.
            saved=tuple(sorted(self._saved(layers))),
            config=self._config,
        )

    def _saved(self, layers: tuple[LayerSpec, ...]) -> list[int]:
        kept: list[int] = []
        for layer, (_, row) in zip(layers, self._rows, strict=True):
            given = row[0] if isinstance(row[0], list) else [row[0]]
            kept += [index for index, raw in zip(layer.inputs, given, strict=True) if raw != -1]
        return kept

    # --- one row ---

    def _layer(self, where: str, row: list[Any], unscaled: int) -> LayerSpec:
        raw_inputs, repeats, block, values = row
        kind = block_name(block)
        if kind is None:
            known = ", ".join(BLOCKS)
            raise ValueError(f"{where}: layer {len(self._layers)}: unknown block {str(block)!r}; known blocks: {known}")
        rule = BLOCKS[kind]
        try:
            arguments = rule.read([self._resolve(value) for value in values])
            inputs = self._inputs(raw_inputs, many=rule.channels in ("joined", "none"))
            count = self._repeats(repeats)
            channels = tuple(self._layers[index].out_channels if index >= 0 else self._channels for index in inputs)
            out_channels = self._out_channels(rule.channels, arguments, channels, unscaled)
            if not rule.repeats_inside and count > 1 and rule.channels in ("joined", "none"):
                raise ArgumentError(f"cannot be repeated {count} times")
            if not rule.repeats_inside and count > 1 and out_channels != channels[0]:
                raise ArgumentError(f"is repeated {count} times, so it must keep its {channels[0]} channels")
            _check_channels(kind, arguments, channels[0], out_channels)
            size = self._size(rule, arguments, inputs, 1 if rule.repeats_inside else count)
        except ArgumentError as problem:
            raise ValueError(f"{where}: {kind} {problem}") from None
        return LayerSpec(
            index=len(self._layers),
            where=where,
            kind=kind,
            inputs=inputs,
            arguments={name: value for name, value in arguments.items() if name != "out_channels"},
            repeats=count,
            in_channels=channels,
            out_channels=out_channels,
            size=size,
        )

    def _resolve(self, value: object) -> object:
        if isinstance(value, str):
            if value == "nc":
                return self._num_classes
            return _WORDS.get(value, value)
        return value

    def _inputs(self, raw: object, *, many: bool) -> tuple[int, ...]:
        layer_index = len(self._layers)
        given = raw if isinstance(raw, list) else [raw]
        if not many and len(given) != 1:
            raise ArgumentError(f"takes one input, but has {raw}")
        if not given:
            raise ArgumentError("has no input")
        inputs = []
        for number in given:
            if isinstance(number, bool) or not isinstance(number, int):
                raise ArgumentError(f"has input {number!r}: must be the number of an earlier layer")
            index = number if number >= 0 else layer_index + number
            if not 0 <= index < layer_index and not (layer_index == 0 and number == -1):
                usable = f"layer {layer_index} can use 0 to {layer_index - 1}, or -1 to {-layer_index}"
                raise ArgumentError(
                    f"has input {number}: {usable if layer_index else 'the input of layer 0 is the image: write -1'}"
                )
            inputs.append(index)
        return tuple(inputs)

    def _repeats(self, repeats: object) -> int:
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise ArgumentError(f"is repeated {repeats!r} times: must be an integer >= 1")
        if repeats > _MAX_REPEATS or scaled_repeats(repeats, self._depth) > _MAX_REPEATS:
            raise ArgumentError(f"is repeated {repeats} times: at most {_MAX_REPEATS}, including depth_multiple")
        return scaled_repeats(repeats, self._depth)

    def _out_channels(self, rule: str, arguments: dict[str, Any], channels: tuple[int, ...], unscaled: int) -> int:
        if rule == "joined":
            return sum(channels)
        if rule == "kept":
            return channels[0]
        if rule == "none":
            return 0
        wanted: int = arguments["out_channels"]
        return wanted if wanted == unscaled else scaled_channels(wanted, self._width, self._divisor)

    def _size(self, rule: Any, arguments: dict[str, Any], inputs: tuple[int, ...], count: int) -> Size:
        sizes = {self._layers[index].size if index >= 0 else (PROBE_PX, PROBE_PX) for index in inputs}
        if rule.channels == "none":
            return (0, 0)
        if len(sizes) != 1:
            raise ArgumentError(
                f"has inputs {list(inputs)} with different strides: "
                + ", ".join(f"{PROBE_PX / height:g}" for height, _ in sorted(sizes))
            )
        size = sizes.pop()
        for _ in range(count):
            size = rule.size(size, arguments)
            if min(size) < 1:
                raise ArgumentError(f"has an empty output for a square image of {PROBE_PX} px")
            if max(size) > _MAX_SIDE:
                raise ArgumentError(
                    f"enlarges a side of {PROBE_PX} px to {max(size)} cells; at most {_MAX_SIDE} are supported"
                )
        return size

    # --- the head and the scalars ---

    def _stride(self, head: LayerSpec, size: Size) -> int:
        if size[0] != size[1] or PROBE_PX % size[0]:
            raise ValueError(
                f"{head.where}: the stride of a level with {size[0]}x{size[1]} cells for {PROBE_PX}x{PROBE_PX} px is "
                "not an integer"
            )
        return PROBE_PX // size[0]

    def _anchors_per_level(self, anchors: object) -> int:
        if isinstance(anchors, int) and not isinstance(anchors, bool) and 1 <= anchors <= _MAX_ANCHORS:
            return anchors
        if (
            isinstance(anchors, (list, tuple))
            and anchors
            and isinstance(anchors[0], (list, tuple))
            and len(anchors[0]) > 1
        ):
            return len(anchors[0]) // 2
        raise ValueError(
            f"{self._source}: anchors={anchors!r:.60}: must be a number of anchors per level, "
            "or one list of widths and heights in px per level"
        )

    def _anchors_px(self, anchors: object, head: LayerSpec) -> Anchors:
        per_level = self._anchors_per_level(anchors)
        levels = len(head.inputs)
        if isinstance(anchors, int):
            placeholders = tuple((float(2 * number), float(2 * number + 1)) for number in range(per_level))
            return (placeholders,) * levels
        assert isinstance(anchors, Sequence)
        if len(anchors) != levels:
            raise ValueError(
                f"{head.where}: {quantity(len(anchors), 'row')} of anchors for {quantity(levels, 'level')}; write one "
                "per level"
            )
        for row in anchors:
            numbers = isinstance(row, (list, tuple)) and all(
                isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= _MAX_ANCHOR_PX
                for value in row
            )
            if not numbers or len(row) != 2 * per_level:
                raise ValueError(
                    f"{self._source}: row of anchors {row!r:.80}: must be {per_level} pairs of width, height in px"
                )
        return tuple(tuple((float(w), float(h)) for w, h in zip(row[::2], row[1::2], strict=True)) for row in anchors)

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{self._source}: {key}={value!r:.60}: must be an integer >= 1")
        if value > MAX_INTEGER:
            raise ValueError(f"{self._source}: {key}={value}: must be at most {MAX_INTEGER}")
        return value

    def _number(self, key: str, default: float) -> float:
        value = self._config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 64:
            raise ValueError(f"{self._source}: {key}={value!r:.60}: must be a number above 0, at most 64")
        return float(value)

    def _read_activation(self) -> Activation:
        text = self._config.get("activation")
        if text is None:
            return Activation("SiLU")
        try:
            return parse_activation(text)
        except ArgumentError as problem:
            raise ValueError(f"{self._source}: activation={text!r:.60} {problem}") from None

    def _read_rows(self, lines: Mapping[Any, list[str]] | None) -> list[tuple[str, list[Any]]]:
        found = []
        for part in ("backbone", "head"):
            rows = self._config.get(part)
            if not isinstance(rows, list) or not rows:
                raise ValueError(f"{self._source}: {part} must be a list of rows [from, repeats, block, arguments]")
            for number, row in enumerate(rows):
                where = f"{self._source}, {part} row {number}" if lines is None else lines[part][number]
                if not isinstance(row, list) or len(row) != 4 or not isinstance(row[3], list):
                    raise ValueError(f"{where}: row {row!r:.80} must be [from, repeats, block, [arguments]]")
                found.append((where, row))
        return found


def _weights(layer: LayerSpec, head_channels: int) -> int:
    """Estimate a layer's weights as one convolution from inputs to outputs per repeat."""
    kernel = layer.arguments.get("kernel", 1) if layer.kind not in ("MaxPool2d", "SPPF") else 1
    outputs = head_channels if layer.kind == "Detect" else layer.out_channels
    return layer.repeats * sum(layer.in_channels) * outputs * kernel**2 // layer.arguments.get("groups", 1)


def _check_channels(kind: str, arguments: Mapping[str, Any], in_channels: int, out_channels: int) -> None:
    """Validate the channels of a block, for clearer messages than OneFlow's."""
    inner = int(out_channels * arguments["expansion"]) if "expansion" in arguments else in_channels // 2
    if inner < 1 and ("expansion" in arguments or kind in ("SPP", "SPPF")):
        raise ArgumentError(f"has {in_channels} input and {out_channels} output channels, but no hidden ones")
    grouped = {
        "Conv": (in_channels, out_channels),
        "GhostConv": (in_channels, out_channels // 2),
        "Focus": (4 * in_channels, out_channels),
        "Bottleneck": (inner, out_channels),
        "BottleneckCSP": (inner, inner),
        "C3": (inner, inner),
        "C3x": (inner, inner),
    }
    groups = arguments.get("groups", 1)
    for channels in grouped.get(kind, ()):
        if channels % groups:
            raise ArgumentError(f"has groups={groups}, which does not divide its {channels} channels")
    # Channels must be divisible by 4 attention heads, or halved once or twice by ghost convolutions.
    divisors = {
        "C3TR": (inner, 4),
        "C3Ghost": (inner, 4),
        "GhostBottleneck": (out_channels, 4),
        "GhostConv": (out_channels, 2),
    }
    channels, divisor = divisors.get(kind, (0, 1))
    if channels % divisor:
        raise ArgumentError(f"has {channels} hidden channels; must be a multiple of {divisor}")
    if kind == "GhostBottleneck" and arguments["stride"] == 1 and in_channels != out_channels:
        raise ArgumentError(f"has stride 1, so it must keep its {in_channels} channels")


def _in_stride_order(anchors: Anchors, strides: tuple[int, ...]) -> Anchors:
    """Return the anchors in the order of the strides, reversed if the yaml lists them the other way round."""
    areas = [sum(width * height for width, height in level) / len(level) for level in anchors]
    growth = areas[-1] - areas[0]
    if growth and (growth > 0) != (strides[-1] > strides[0]):
        return anchors[::-1]
    return anchors
