"""Command-line flags declared as fields of frozen dataclasses, with defaults, help and validation.

The same declarations serve the Python API. Imports nothing heavy, so that `--help` is fast.
"""

import argparse
import difflib
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from numbers import Integral, Real
from typing import Any, TypeVar

from graph_train.settings.parser import CommandParser

Options = TypeVar("Options")

SWITCH = "switch"
OPTIONAL_VALUE = "optional value"
"""A flag with an optional value; without one, the value is `const`. Values have the type of `const`."""
TEXTS = "texts"
"""One or more strings, stored as a tuple."""
NUMBERS = "numbers"
"""One or more integers, stored as a tuple."""

DOWNLOAD_HELP = "download missing published weights such as yolov5s.pt, verified by SHA-256"
DATA_DOWNLOAD_HELP = "download missing data from the yaml's `download` entry if that has a SHA-256"
KERNELS_HELP = "kernel plugin: use it if available (auto), never (off), or fail without it (require)"

_KINDS: Mapping[Any, str] = {
    SWITCH: "True or False",
    TEXTS: "a string or a list of strings",
    NUMBERS: "an integer or a list of integers",
    str: "a string",
    int: "an integer",
    float: "a number",
}
_ACCEPTED: Mapping[type, Any] = {str: str | os.PathLike, int: Integral, float: Real, bool: bool}


def flag(
    default: Any,
    help: str,
    *,
    kind: Any = str,
    aliases: Sequence[str] = (),
    choices: Sequence[str] = (),
    const: Any = None,
    off: str = "",
    rejected: str = "",
) -> Any:
    """Declare one flag.

    Args:
        default, help: as in argparse.
        kind: type of the value, or one of the constants above.
        aliases: alternative names.
        choices: the allowed strings.
        const: the value of the flag if it is given without one.
        off: the flag that turns a switch off.
        rejected: why only the default value is supported. Such a flag exists only for this message.
    """
    about = {"kind": kind, "aliases": aliases, "choices": choices, "const": const, "off": off, "rejected": rejected}
    return field(default=default, metadata={**about, "help": f"rejected: {rejected}" if rejected else help})


def dashed(name: str) -> str:
    """Return the command-line flag for a Python name."""
    return "--" + name.replace("_", "-")


def options_of(kind: type[Options], flags: Mapping[str, Any]) -> Options:
    """Build the settings from keyword arguments of the Python API (flag names with underscores).

    Raises:
        ValueError: an unknown flag (with the nearest match), or an invalid value.
    """
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    reject_unknown(flags, known)
    return kind(**{name: typed(known[name], value) for name, value in flags.items()})


def reject_unknown(names: Iterable[str], known: Collection[str]) -> None:
    """Reject unknown names.

    Raises:
        ValueError: a name is unknown; suggests the nearest match.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"unknown setting {name!r}{hint}")


def _given(item: "Field[Any]", value: Any) -> str:
    """Return a setting as one line; the text of an array has several."""
    return f"{item.name}={' '.join(repr(value).split()):.60}"


def _can_be_encoded(text: str) -> bool:
    """Return whether a text can be an argument of a command, unlike NUL and halves of surrogate pairs."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def typed(item: "Field[Any]", value: Any) -> Any:
    """Convert a Python value to what the command line would give: paths to strings, single values to tuples.

    Raises:
        ValueError: the value has the wrong type.
    """
    kind = item.metadata["kind"]
    if value is None and item.default is None:
        return value
    if kind == OPTIONAL_VALUE:
        if value is None or isinstance(value, bool):
            return item.metadata["const"] if value else item.default
        kind = type(item.metadata["const"])
    entries = tuple(value) if kind in (TEXTS, NUMBERS) and isinstance(value, list | tuple) else (value,)
    entry_kind = {TEXTS: str, NUMBERS: int, SWITCH: bool}.get(kind, kind)
    if not all(_has_type(entry, entry_kind) for entry in entries):
        raise ValueError(f"{_given(item, value)}: must be {_KINDS[kind]}")
    try:
        made = tuple(os.fsdecode(entry) if entry_kind is str else entry_kind(entry) for entry in entries)
    except OverflowError:
        raise ValueError(f"{_given(item, value)}: too large") from None
    except (TypeError, ValueError):  # NumPy's times count as integers
        raise ValueError(f"{_given(item, value)}: must be {_KINDS[kind]}") from None
    if entry_kind is str and not all(map(_can_be_encoded, made)):
        raise ValueError(f"{_given(item, value)}: contains characters that are not allowed in a file name")
    return made if kind in (TEXTS, NUMBERS) else made[0]


def _has_type(value: Any, kind: type) -> bool:
    """Return whether a value is acceptable for a type; a bool is not a number."""
    return isinstance(value, _ACCEPTED[kind]) and isinstance(value, bool) == (kind is bool)


def check_flags(options: Any) -> None:
    """Reject invalid choices, and flags that are not supported.

    Raises:
        ValueError: names the flag and the reason.
    """
    for item in fields(options):
        value, about = getattr(options, item.name), item.metadata
        if about["rejected"] and value != item.default:
            raise ValueError(f"{dashed(item.name)}: {about['rejected']}")
        for entry in value if about["kind"] == TEXTS else (value,):
            if about["choices"] and entry not in about["choices"]:
                raise ValueError(f"{dashed(item.name)} {entry!r}: must be one of {', '.join(about['choices'])}")


def reject_changed(options: Any, names: Sequence[str], reason: str) -> None:
    """Reject those of the named flags that differ from their defaults, because they would be ignored.

    Raises:
        ValueError: names the first such flag and the reason.
    """
    for item in fields(options):
        if item.name in names and getattr(options, item.name) != item.default:
            raise ValueError(f"{item.metadata['off'] or dashed(item.name)}: {reason}")


def reject_empty(options: Any, names: Sequence[str]) -> None:
    """Reject empty text for flags that need a value.

    Raises:
        ValueError: names the first such flag and its default.
    """
    for item in fields(options):
        if item.name in names and not getattr(options, item.name):
            raise ValueError(f"{dashed(item.name)} '': empty; give a value, or remove the flag to use {item.default}")


def check_range(name: str, value: float, lowest: int, highest: int) -> None:
    """Reject a number outside its range; both bounds are inclusive.

    Raises:
        ValueError: it is out of range.
    """
    if not lowest <= value <= highest:
        bound = f"at least {lowest}" if value < lowest else f"at most {highest}"
        if isinstance(value, float) and math.isnan(value):
            bound = f"a number from {lowest} to {highest}"
        raise ValueError(f"{dashed(name)} {value}: must be {bound}")


def check_ranges(options: Any, ranges: Mapping[str, tuple[int, int]], *, fractions: Sequence[str] = ()) -> None:
    """Reject integers outside their ranges (inclusive) and fractions outside [0, 1].

    Raises:
        ValueError: names the flag and the allowed range.
    """
    for name, (lowest, highest) in ranges.items():
        given = getattr(options, name)
        for value in given if isinstance(given, tuple) else (given,):
            check_range(name, value, lowest, highest)
    for name in fractions:
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"{dashed(name)} {getattr(options, name)}: must be between 0 and 1")


def parser_of(kind: type[Any], *, prog: str, description: str, exit_codes: str = "") -> argparse.ArgumentParser:
    """Return the parser of a settings dataclass; the namespace contains only the flags that were given.

    Args:
        kind: the dataclass.
        prog, description: as in argparse.
        exit_codes: description of the exit codes, if they differ from the usual ones.
    """
    parser = CommandParser(
        prog=prog,
        description=description,
        epilog=f"Exit codes: {exit_codes or '0 success, 1 internal error, 2 user error, 130 interrupted'}.",
    )
    add_flags(parser, kind)
    return parser


def add_flags(parser: "argparse._ActionsContainer", kind: type[Any]) -> None:
    """Add the flags of a dataclass to a parser or an argument group."""
    for item in fields(kind):
        _add_flag(parser, item)


_OFF_HELP = {"--eager": "run op by op (eager) instead of as a graph"}
"""Help for flags that turn another flag off, if `disable --flag` is not clear enough."""


def _add_flag(parser: "argparse._ActionsContainer", item: "Field[Any]") -> None:
    about, kind = item.metadata, item.metadata["kind"]
    names = list(dict.fromkeys([dashed(item.name), *about["aliases"], "--" + item.name]))
    common: dict[str, Any] = {"dest": item.name, "help": about["help"], "default": argparse.SUPPRESS}
    if kind == SWITCH:
        parser.add_argument(*names, action="store_true", **common)
        if about["off"]:
            common["help"] = _OFF_HELP.get(about["off"], f"disable {names[0]}")
            parser.add_argument(about["off"], action="store_false", **common)
    elif kind == OPTIONAL_VALUE:
        parser.add_argument(*names, nargs="?", const=about["const"], type=type(about["const"]), **common)
    elif kind in (TEXTS, NUMBERS):
        parser.add_argument(*names, nargs="+", type=str if kind == TEXTS else int, **common)
    else:
        if item.default not in (MISSING, None, ""):
            common["help"] += f" (default: {item.default})"
        parser.add_argument(*names, type=kind, choices=about["choices"] or None, **common)
