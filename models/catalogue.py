"""Blocks of a model yaml: their arguments, and how they change channels and image size.

This module does not import OneFlow, so that an invalid yaml is rejected early. The modules are in `models.blocks`,
under the same names.
"""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Size = tuple[int, int]
"""Height and width in pixels or cells."""
Arguments = Mapping[str, Any]


MAX_INTEGER = 1 << 20
"""Limit of all arguments of blocks; larger ones would only run out of memory."""
_MAX_ACTIVATION_LENGTH = 100


class ArgumentError(ValueError):
    """An invalid argument of a block; the caller adds file and line."""


# --- kinds of values -------------------------------------------------------------------------------------------------


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive(value: object) -> int:
    if not _is_int(value) or value < 1:  # type: ignore[operator]
        raise ArgumentError("must be an integer >= 1")
    if value > MAX_INTEGER:  # type: ignore[operator]
        raise ArgumentError(f"must be at most {MAX_INTEGER}")
    return value  # type: ignore[return-value]


def _non_negative(value: object) -> int:
    if value == 0 and _is_int(value):
        return 0
    if not _is_int(value) or value < 0:  # type: ignore[operator]
        raise ArgumentError("must be an integer >= 0")
    return _positive(value)


def _optional(kind: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value is None else kind(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError("must be True or False")
    return value


def _ratio(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 4:
        raise ArgumentError("must be a number above 0 and at most 4")
    return float(value)


def _scale(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= MAX_INTEGER or value % 1:
        raise ArgumentError(f"must be an integer from 1 to {MAX_INTEGER}")
    return int(value)


def _kernels(value: object) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not sizes or any(not _is_int(size) or not 1 <= size <= MAX_INTEGER or size % 2 == 0 for size in sizes):
        raise ArgumentError("must be a list of odd integers >= 1")
    return sizes


def _odd_int(value: object) -> int:
    if _positive(value) % 2 == 0:
        raise ArgumentError("must be an odd integer >= 1")
    return _positive(value)


def _one_or_two(value: object) -> int:
    if value not in (1, 2) or not _is_int(value):
        raise ArgumentError("must be 1 or 2")
    return _positive(value)


def _borders(value: object) -> tuple[int, int, int, int]:
    if _is_int(value):
        value = [value] * 4
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise ArgumentError("must be one integer or [left, right, top, bottom]")
    left, right, top, bottom = (_non_negative(side) for side in value)
    return left, right, top, bottom


def _nearest(value: object) -> str:
    if value != "nearest":
        raise ArgumentError("must be 'nearest', the only supported mode")
    return "nearest"


def _channel_axis(value: object) -> int:
    if value != 1 or not _is_int(value):
        raise ArgumentError("must be 1: only channels can be concatenated")
    return 1


def _nothing(value: object) -> None:
    if value is not None:
        raise ArgumentError("must be None; give scale_factor instead")


@dataclass(frozen=True)
class Activation:
    """Name of an activation and its positional arguments, e.g. LeakyReLU (0.1,)."""

    name: str
    arguments: tuple[float, ...] = ()


ACTIVATIONS: Mapping[str, int] = {
    # name -> maximum number of arguments
    "SiLU": 0,
    "ReLU": 0,
    "ReLU6": 0,
    "LeakyReLU": 1,
    "ELU": 1,
    "Hardswish": 0,
    "Mish": 0,
    "GELU": 0,
    "Sigmoid": 0,
    "Tanh": 0,
    "Identity": 0,
}


def parse_activation(text: object) -> Activation:
    """Parse an activation such as `nn.LeakyReLU(0.1)`; the text is never executed."""
    known = f"known activations: {', '.join('nn.' + name + '()' for name in ACTIVATIONS)}"
    # Very long text could exhaust the parser's stack.
    if len(str(text)) > _MAX_ACTIVATION_LENGTH:
        raise ArgumentError(f"is not an activation; {known}")
    try:
        node = ast.parse(str(text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ArgumentError(f"is not an activation; {known}") from None
    if not isinstance(node, ast.Call):
        raise ArgumentError(f"is not an activation; {known}")
    if isinstance(node.func, ast.Attribute):
        name = node.func.attr
    else:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in ACTIVATIONS:
        raise ArgumentError(f"is not an activation; {known}")
    values = [
        float(argument.value)
        for argument in node.args
        if isinstance(argument, ast.Constant)
        and isinstance(argument.value, (int, float))
        and not isinstance(argument.value, bool)
        and abs(argument.value) <= MAX_INTEGER
    ]
    if len(values) != len(node.args) or any(keyword.arg != "inplace" for keyword in node.keywords):
        raise ArgumentError("may have only finite numbers as arguments")
    if len(values) > ACTIVATIONS[name]:
        raise ArgumentError(f"takes at most {ACTIVATIONS[name]} number(s)")
    return Activation(name, tuple(values))


def _activation(value: object) -> bool | Activation:
    return value if isinstance(value, bool) else parse_activation(value)


# --- image sizes -----------------------------------------------------------------------------------------------------


def same_padding(kernel: int, dilation: int = 1) -> int:
    """Return "same" padding for stride 1 and an odd kernel: half the dilated kernel, rounded down."""
    return (dilation * (kernel - 1) + 1) // 2


def _window_size(size: Size, kernel: int, stride: int, padding: int, dilation: int = 1) -> Size:
    height, width = ((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side in size)
    return height, width


def _convolved(size: Size, arguments: Arguments) -> Size:
    dilation, padding = arguments.get("dilation", 1), arguments.get("padding")
    if padding is None:
        padding = same_padding(arguments["kernel"], dilation)
    return _window_size(size, arguments["kernel"], arguments["stride"], padding, dilation)


def _focused(size: Size, arguments: Arguments) -> Size:
    return _convolved((size[0] // 2, size[1] // 2), arguments)


def _pooled(size: Size, arguments: Arguments) -> Size:
    kernel, stride = arguments["kernel"], arguments["stride"]
    return _window_size(size, kernel, kernel if stride is None else stride, arguments["padding"])


def _bordered(size: Size, arguments: Arguments) -> Size:
    left, right, top, bottom = arguments["borders"]
    return size[0] + top + bottom, size[1] + left + right


def _upsampled(size: Size, arguments: Arguments) -> Size:
    return size[0] * arguments["scale_factor"], size[1] * arguments["scale_factor"]


def _unchanged(size: Size, arguments: Arguments) -> Size:
    return size


# --- the table -------------------------------------------------------------------------------------------------------


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()


@dataclass(frozen=True)
class BlockParameter:
    """One positional argument of a block in a yaml row."""

    name: str
    check: Callable[[object], Any]
    default: Any = REQUIRED


@dataclass(frozen=True)
class BlockRule:
    """How to read a row with this block.

    Attributes:
        channels: number of output channels. "scaled": the first argument times the width multiple; "kept": that of the
            input; "joined": the sum over the inputs; "none": the head.
        repeats_inside: whether the block repeats its inner part; other blocks are stacked.
    """

    parameters: tuple[BlockParameter, ...]
    channels: Literal["scaled", "kept", "joined", "none"] = "scaled"
    repeats_inside: bool = False
    size: Callable[[Size, Arguments], Size] = field(default=_unchanged)

    def read(self, values: Sequence[object]) -> dict[str, Any]:
        """Validate the positional values of a row and return them by name; an ArgumentError has no file and line."""
        if len(values) > len(self.parameters):
            names = ", ".join(parameter.name for parameter in self.parameters) or "none"
            raise ArgumentError(f"has {len(values)} arguments; it takes at most {len(self.parameters)}: {names}")
        read: dict[str, Any] = {}
        for position, parameter in enumerate(self.parameters):
            value = values[position] if position < len(values) else parameter.default
            if value is REQUIRED:
                raise ArgumentError(f"needs argument {position + 1}, {parameter.name}")
            try:
                read[parameter.name] = parameter.check(value)
            except ArgumentError as problem:
                raise ArgumentError(f"has {parameter.name}={value!r}: {problem}") from None
        return read


def _table_entry(value: object) -> object:
    return value


_OUT = BlockParameter("out_channels", _positive)
_GROUPS = BlockParameter("groups", _positive, 1)
_ACT = BlockParameter("activation", _activation, True)
_STRIDE = BlockParameter("stride", _positive, 1)
_PADDING = BlockParameter("padding", _optional(_non_negative), None)
_DILATION = BlockParameter("dilation", _positive, 1)
_SHORTCUT = BlockParameter("shortcut", _flag, True)
_EXPANSION = BlockParameter("expansion", _ratio, 0.5)
_KERNEL = BlockParameter("kernel", _positive, 1)
_SPP_KERNELS = BlockParameter("kernels", _kernels, (5, 9, 13))

_CSP = BlockRule((_OUT, _SHORTCUT, _GROUPS, _EXPANSION), repeats_inside=True)

BLOCKS: Mapping[str, BlockRule] = {
    "Conv": BlockRule((_OUT, _KERNEL, _STRIDE, _PADDING, _GROUPS, _DILATION, _ACT), size=_convolved),
    "DWConv": BlockRule((_OUT, _KERNEL, _STRIDE, _DILATION, _ACT), size=_convolved),
    "C3": _CSP,
    "C3x": _CSP,
    "C3TR": _CSP,
    "C3Ghost": _CSP,
    "C3SPP": BlockRule((_OUT, _SPP_KERNELS, BlockParameter("repeats", _positive, 1), _SHORTCUT, _GROUPS, _EXPANSION)),
    "SPPF": BlockRule((_OUT, BlockParameter("kernel", _odd_int, 5))),
    "SPP": BlockRule((_OUT, _SPP_KERNELS)),
    "Bottleneck": BlockRule((_OUT, _SHORTCUT, _GROUPS, _EXPANSION)),
    "BottleneckCSP": _CSP,
    "GhostConv": BlockRule((_OUT, _KERNEL, _STRIDE, _GROUPS, _ACT), size=_convolved),
    "GhostBottleneck": BlockRule(
        (_OUT, BlockParameter("kernel", _odd_int, 3), BlockParameter("stride", _one_or_two, 1)), size=_convolved
    ),
    "Focus": BlockRule((_OUT, _KERNEL, _STRIDE, _PADDING, _GROUPS, _ACT), size=_focused),
    "Upsample": BlockRule(
        (
            BlockParameter("size", _nothing, None),
            BlockParameter("scale_factor", _scale, 2),
            BlockParameter("mode", _nearest, "nearest"),
        ),
        channels="kept",
        size=_upsampled,
    ),
    "MaxPool2d": BlockRule(
        (
            BlockParameter("kernel", _positive),
            BlockParameter("stride", _optional(_positive), None),
            BlockParameter("padding", _non_negative, 0),
        ),
        channels="kept",
        size=_pooled,
    ),
    "ZeroPad2d": BlockRule((BlockParameter("borders", _borders),), channels="kept", size=_bordered),
    "Concat": BlockRule((BlockParameter("axis", _channel_axis, 1),), channels="joined"),
    "Detect": BlockRule(
        (BlockParameter("num_classes", _positive), BlockParameter("anchors", _table_entry)), channels="none"
    ),
}
"""Every block of a model yaml; `nn.Upsample`, `nn.MaxPool2d` and `nn.ZeroPad2d` may have their prefix `nn.`."""


def block_name(text: object) -> str | None:
    """Return the table's name of a block as a yaml spells it, or None if there is none."""
    name = str(text).removeprefix("torch.").removeprefix("nn.")
    return name if name in BLOCKS else None


def scaled_channels(channels: int, multiple: float, divisor: int = 8) -> int:
    """Return output channels times the width multiple, rounded up to a multiple of the divisor."""
    return math.ceil(channels * multiple / divisor) * divisor


def scaled_repeats(repeats: int, multiple: float) -> int:
    """Return the repeats times the depth multiple, rounded half to even, at least 1; a single block stays single."""
    return max(round(repeats * multiple), 1) if repeats > 1 else repeats
