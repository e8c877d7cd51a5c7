"""Search for the weights in a saved object: a dictionary with pickled modules, or a state dictionary."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kernels.host.paths import printable
from models.pickle_reader import Global, Instance, checked_key, escaped

Array = npt.NDArray[Any]
Part = Literal["model", "ema", "state_dict"]

_MAX_DEPTH = 64
_MAX_ENTRIES = 200_000
_MAX_PREFIX_LENGTH = 1000
_MAX_PLAIN_DEPTH = 8
_MAX_PLAIN_SIZE = 100_000
"""Values and characters of a network's yaml with aliases expanded; YOLOv5's have about 500."""

# Naming these classes is harmless: they stay inert `Instance`s.
_CLASS_PREFIXES = ("models.", "ultralytics.nn.", "yolov5.models.", "torch.nn.", "oneflow.nn.", "oneflow.framework.")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}(\.[A-Za-z_][A-Za-z0-9_]{0,99}){0,20}")
_PLAIN = frozenset(
    {
        *("collections.OrderedDict", "collections.defaultdict", "types.SimpleNamespace", "argparse.Namespace"),
        *(
            f"{module}.{name}"
            for module in ("builtins", "__builtin__")
            for name in ("set", "frozenset", "list", "dict")
        ),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("int", "complex", "object")),
        *("copyreg._reconstructor", "copy_reg._reconstructor", "_codecs.encode"),
        *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "_local.PosixPath")),
        *("datetime.datetime", "datetime.date", "ultralytics.utils.IterableSimpleNamespace"),
        *("numpy.ndarray", "numpy.dtype"),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *("oneflow.Tensor", "oneflow.Size", "oneflow._oneflow_internal.Size"),
    }
)


@dataclass(frozen=True)
class FoundWeights:
    """The weights found in a file, independent of the file format.

    Attributes:
        tensors: tensor objects of the file format, by name in the state dictionary.
        part: the part of the file that was used.
    """

    tensors: dict[str, Any]
    part: Part
    epoch: int | None
    class_names: tuple[str, ...] | None
    config: Mapping[str, Any] | None
    stride: Any


def is_plain_or_module(name: Global) -> bool:
    """Return whether a name is a plain container or a class of a network package."""
    return str(name) in _PLAIN or (
        str(name).startswith(_CLASS_PREFIXES)
        and _NAME.fullmatch(name.module) is not None
        and _NAME.fullmatch(name.name) is not None
    )


def _first_or_empty(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments else None


def _pairs(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    source = _first_or_empty(arguments)
    if isinstance(source, dict):
        return dict(source)
    pairs = source if isinstance(source, (list, tuple)) else ()
    return {
        checked_key(pair[0]): pair[1]
        for pair in pairs
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], (str, int))
    }


def _members(arguments: tuple[Any, ...]) -> list[Any]:
    source = _first_or_empty(arguments)
    return list(source) if isinstance(source, (list, tuple, set)) else []


PLAIN_REDUCERS: Mapping[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _pairs,
    "collections.defaultdict": lambda arguments: {},
    "builtins.dict": _pairs,
    "builtins.set": _members,
    "__builtin__.set": _members,
    "builtins.frozenset": _members,
    "__builtin__.frozenset": _members,
    "builtins.list": _members,
}


def find_weights(top: Any, is_tensor: Callable[[Any], bool], prefer: Literal["model", "ema"]) -> FoundWeights:
    """Find the preferred network of a checkpoint, the other one if it is missing, or a plain state dictionary.

    Args:
        top: the saved object.
        is_tensor: returns whether a value is a tensor of the file format.
        prefer: the network of a training checkpoint to use.

    Raises:
        ValueError: no weights found.
    """
    if isinstance(top, Instance):
        return _from_network(top, "model", None, is_tensor)
    if not isinstance(top, dict):
        raise ValueError(f"contains a {type(top).__name__}, but no weights")
    epoch = top.get("epoch") if isinstance(top.get("epoch"), int) else None
    for part in (prefer, "ema" if prefer == "model" else "model"):
        network = top.get(part)
        if isinstance(network, Instance):
            return _from_network(network, part, epoch, is_tensor)
        if isinstance(network, dict):
            tensors = {str(name): value for name, value in network.items() if is_tensor(value)}
            if tensors:
                return FoundWeights(tensors, part, epoch, None, None, None)
    inner = top["state_dict"] if isinstance(top.get("state_dict"), dict) else top
    tensors = {str(name).removeprefix("module."): value for name, value in inner.items() if is_tensor(value)}
    if not tensors:
        keys = escaped(", ".join(str(key) for key in list(top)[:8]))
        raise ValueError(f"contains no weights (its keys: {keys or 'none'})")
    return FoundWeights(tensors, "state_dict", epoch, None, None, None)


def _from_network(network: Instance, part: Part, epoch: int | None, is_tensor: Callable[[Any], bool]) -> FoundWeights:
    tensors = dict(_entries(network, "", 0, is_tensor, [0]))
    if not tensors:
        raise ValueError(f"its {part!r} ({escaped(network.kind)}) contains no weights")
    state = network.state if isinstance(network.state, dict) else {}
    # Data-parallel training wraps the network.
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
        inner = _mapping(state.get("_modules")).get("module")
        state = inner.state if isinstance(inner, Instance) and isinstance(inner.state, dict) else state
    config = state.get("yaml")
    return FoundWeights(
        tensors,
        part,
        epoch,
        _class_names(state.get("names")),
        config if isinstance(config, dict) else None,
        state.get("stride"),
    )


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _entries(
    module: Instance, prefix: str, depth: int, is_tensor: Callable[[Any], bool], count: list[int]
) -> Iterator[tuple[str, Any]]:
    """Yield names and tensors in state dictionary order: parameters, buffers, then child modules."""
    state = module.state if isinstance(module.state, dict) else {}
    parameters, buffers, children = (_mapping(state.get(part)) for part in ("_parameters", "_buffers", "_modules"))
    skipped = state.get("_non_persistent_buffers_set")
    skipped = skipped if isinstance(skipped, (set, list, tuple)) else ()
    count[0] += 1 + sum(map(len, (parameters, buffers, children, skipped)))
    if depth > _MAX_DEPTH or count[0] > _MAX_ENTRIES or len(prefix) > _MAX_PREFIX_LENGTH:
        raise ValueError("its modules are nested too deeply")
    excluded = {name for name in skipped if isinstance(name, str)}
    for name, value in parameters.items():
        if is_tensor(value):
            yield f"{prefix}{name}", value
    for name, value in buffers.items():
        if is_tensor(value) and name not in excluded:
            yield f"{prefix}{name}", value
    for name, child in children.items():
        if isinstance(child, Instance):
            yield from _entries(child, f"{prefix}{name}.", depth + 1, is_tensor, count)


def _class_names(names: Any) -> tuple[str, ...] | None:
    if isinstance(names, dict):
        names = [names[index] for index in range(len(names))] if set(names) == set(range(len(names))) else None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, (str, int)) for name in names):
        return None
    return shown_names(names)


def shown_names(names: Sequence[Any]) -> tuple[str, ...]:
    """Return class names as printable text: they go to terminals, file names and reports."""
    return tuple(printable(str(name)) for name in names)


def plain_config(config: Mapping[str, Any] | None, known: Sequence[str]) -> dict[str, Any] | None:
    """Return the known keys of a network's yaml; None if their values are not plain data."""
    if config is None:
        return None
    kept = {key: config[key] for key in known if key in config}
    return kept if _is_plain(kept) else None


def _is_plain(value: Any) -> bool:
    """Return whether a value is plain data of reasonable size; shared objects count at each occurrence."""
    waiting, size = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        # Count before expanding: lists that repeat the same list take no space in a file.
        size += len(item) if isinstance(item, (dict, list, str)) else 0
        if size > _MAX_PLAIN_SIZE or depth > _MAX_PLAIN_DEPTH:
            return False
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                return False
            waiting += [(part, depth + 1) for part in item.values()]
        elif isinstance(item, list):
            waiting += [(part, depth + 1) for part in item]
        elif item is not None and not isinstance(item, (str, int, float)):
            return False
    return True


def as_float32(value: Array) -> Array:
    """Convert half and double precision to float32; keep integers. The result owns its memory."""
    if value.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, which `transfer` rejects
            return np.array(value, np.float32)
    return np.array(value)
