"""Commands whose settings are one frozen dataclass: its fields are at once flags, defaults, help and keyword arguments.

Nothing heavy is imported here: `--help` and argument errors answer at once.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from graph_train.cli.parser import CommandParser
from graph_train.options import check_range, refuse_unknown

Options = TypeVar("Options")

SWITCH = "switch"
TEXTS = "texts"
"""One text or several, kept as a tuple."""
NUMBERS = "numbers"
"""One whole number or several, kept as a tuple."""

_KINDS: Mapping[Any, str] = {
    SWITCH: "True or False",
    TEXTS: "a text or a list of them",
    NUMBERS: "a whole number or a list of them",
    str: "a text",
    int: "a whole number",
    float: "a number",
}
_NUMBER_TYPES: Mapping[Any, Any] = {int: int, float: int | float}


def flag(
    default: Any,
    help: str,
    *,
    kind: Any = str,
    aliases: Sequence[str] = (),
    choices: Sequence[str] = (),
    off: str = "",
    refused: str = "",
) -> Any:
    """Declares one flag.

    Args:
        default, help: as argparse has them.
        kind: type of its value, or one of the forms above.
        aliases: other spellings.
        choices: the only texts it may have.
        off: a switch's opposite.
        refused: why no value but the default can be used; the flag exists only to say so.
    """
    about = {"kind": kind, "aliases": aliases, "choices": choices, "off": off, "refused": refused}
    return field(default=default, metadata={**about, "help": f"refused: {refused}" if refused else help})


def dashed(item: "Field[Any]") -> str:
    """The flag as it is typed."""
    return "--" + item.name.replace("_", "-")


def options_of(kind: type[Options], flags: Mapping[str, Any]) -> Options:
    """The settings from flag names with underscores, as the Python API takes them.

    Raises:
        ValueError: a name that is no flag (with the nearest match), or a value that cannot be used.
    """
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    refuse_unknown(flags, known)
    return kind(**{name: _typed(known[name], value) for name, value in flags.items()})


def _typed(item: "Field[Any]", value: Any) -> Any:
    """The value as the command line would have given it: paths become text, a single value of a list a list."""
    kind = item.metadata["kind"]
    if value is None and item.default is None:
        return value
    if kind in (TEXTS, NUMBERS):
        entries = tuple(value) if isinstance(value, list | tuple) else (value,)
        if kind == TEXTS and all(isinstance(entry, str | os.PathLike) for entry in entries):
            return tuple(os.fspath(entry) for entry in entries)
        if kind == NUMBERS and all(isinstance(entry, int) and not isinstance(entry, bool) for entry in entries):
            return entries
    elif kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    elif kind == SWITCH and isinstance(value, bool):
        return value
    elif kind in _NUMBER_TYPES and isinstance(value, _NUMBER_TYPES[kind]) and not isinstance(value, bool):
        return kind(value)
    raise ValueError(f"{item.name}={value!r}: give {_KINDS[kind]}")


def check_flags(options: Any) -> None:
    """Refuses choices that do not exist, and flags that only exist to be refused.

    Raises:
        ValueError: says which flag, and why.
    """
    for item in fields(options):
        value, about = getattr(options, item.name), item.metadata
        if about["refused"] and value != item.default:
            raise ValueError(f"{dashed(item)}: {about['refused']}")
        for entry in value if about["kind"] == TEXTS else (value,):
            if about["choices"] and entry not in about["choices"]:
                raise ValueError(f"{dashed(item)} {entry!r}: choose one of {', '.join(about['choices'])}")


def refuse_changed(options: Any, names: Sequence[str], reason: str) -> None:
    """Refuses flags that have another value than their default, where they would be ignored.

    Raises:
        ValueError: the first of them, with the reason.
    """
    for item in fields(options):
        if item.name in names and getattr(options, item.name) != item.default:
            raise ValueError(f"{item.metadata['off'] or dashed(item)}: {reason}")


def check_ranges(options: Any, ranges: Mapping[str, tuple[int, int]], *, shares: Sequence[str] = ()) -> None:
    """Refuses whole numbers out of their ranges, inclusive, and thresholds outside of 0 to 1.

    Raises:
        ValueError: says which flag, and what would be right.
    """
    for name, (lowest, highest) in ranges.items():
        given = getattr(options, name)
        for value in given if isinstance(given, tuple) else (given,):
            check_range(name, value, lowest, highest)
    for name in shares:
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: must lie between 0 and 1")


def parser_of(kind: type[Any], *, prog: str, description: str) -> argparse.ArgumentParser:
    """The command line of such settings; flags that are not given are left out of the namespace."""
    parser = CommandParser(
        prog=prog,
        description=description,
        epilog="Exit codes: 0 done, 1 internal error, 2 user error, 130 interrupted.",
    )
    for item in fields(kind):
        _add_flag(parser, item)
    return parser


def _add_flag(parser: argparse.ArgumentParser, item: "Field[Any]") -> None:
    about = item.metadata
    names = list(dict.fromkeys([dashed(item), *about["aliases"], "--" + item.name]))
    common: dict[str, Any] = {"dest": item.name, "help": about["help"], "default": argparse.SUPPRESS}
    if about["kind"] == SWITCH:
        parser.add_argument(*names, action="store_true", **common)
        if about["off"]:
            common["help"] = f"the opposite of {names[0]}"
            parser.add_argument(about["off"], action="store_false", **common)
    elif about["kind"] in (TEXTS, NUMBERS):
        parser.add_argument(*names, nargs="+", type=str if about["kind"] == TEXTS else int, **common)
    else:
        if item.default is not MISSING and item.default != "":
            common["help"] += f" (default: {item.default})"
        parser.add_argument(*names, type=about["kind"], choices=about["choices"] or None, **common)
