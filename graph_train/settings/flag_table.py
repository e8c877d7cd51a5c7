"""Frozen dataclasses whose fields are at once the flags of a command, their defaults, help and keyword arguments.

Nothing heavy is imported here: `--help` and argument errors answer at once.
"""

import argparse
import difflib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from graph_train.settings.parser import CommandParser

Options = TypeVar("Options")

SWITCH = "switch"
OPTIONAL_VALUE = "optional value"
"""A flag that also stands alone, and then has the value `const`; the type is that of `const`."""
TEXTS = "texts"
"""One text or several, kept as a tuple."""
NUMBERS = "numbers"
"""One whole number or several, kept as a tuple."""

DOWNLOAD_HELP = "fetch published weights that are not here (such as yolov5s.pt), verified by SHA-256"
DATA_DOWNLOAD_HELP = "fetch missing data from the yaml's `download`, if it gives a SHA-256"

_KINDS: Mapping[Any, str] = {
    SWITCH: "True or False",
    TEXTS: "a text or a list of them",
    NUMBERS: "a whole number or a list of them",
    str: "a text",
    int: "a whole number",
    float: "a number",
}
_ACCEPTED: Mapping[type, Any] = {str: str | os.PathLike, int: int, float: int | float, bool: bool}


def flag(
    default: Any,
    help: str,
    *,
    kind: Any = str,
    aliases: Sequence[str] = (),
    choices: Sequence[str] = (),
    const: Any = None,
    off: str = "",
    refused: str = "",
) -> Any:
    """Declare one flag.

    Args:
        default, help: as argparse has them.
        kind: type of its value, or one of the forms above.
        aliases: other spellings.
        choices: the only texts it may have.
        const: the value of a flag that stands alone.
        off: a switch's opposite.
        refused: why no value but the default can be used; the flag exists only to say so.
    """
    about = {"kind": kind, "aliases": aliases, "choices": choices, "const": const, "off": off, "refused": refused}
    return field(default=default, metadata={**about, "help": f"refused: {refused}" if refused else help})


def dashed(name: str) -> str:
    """Return the command-line flag of a Python name."""
    return "--" + name.replace("_", "-")


def options_of(kind: type[Options], flags: Mapping[str, Any]) -> Options:
    """Return the settings from flag names with underscores, as the Python API takes them.

    Raises:
        ValueError: a name that is no flag (with the nearest match), or a value that cannot be used.
    """
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    refuse_unknown(flags, known)
    return kind(**{name: typed(known[name], value) for name, value in flags.items()})


def refuse_unknown(names: Iterable[str], known: Collection[str]) -> None:
    """Refuse a name that is no flag, with the nearest one that is.

    Raises:
        ValueError: says which.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"unknown setting {name!r}{hint}")


def typed(item: "Field[Any]", value: Any) -> Any:
    """Convert a value to the command line's form: paths become text, one entry a list, True a flag alone.

    Raises:
        ValueError: the value is of another kind.
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
        raise ValueError(f"{item.name}={value!r}: give {_KINDS[kind]}")
    made = tuple(os.fspath(entry) if entry_kind is str else entry_kind(entry) for entry in entries)
    return made if kind in (TEXTS, NUMBERS) else made[0]


def _has_type(value: Any, kind: type) -> bool:
    """Return whether a value may stand for one of this type; truth values are no numbers."""
    return isinstance(value, _ACCEPTED[kind]) and isinstance(value, bool) == (kind is bool)


def check_flags(options: Any) -> None:
    """Refuse choices that do not exist, and flags that only exist to be refused.

    Raises:
        ValueError: says which flag, and why.
    """
    for item in fields(options):
        value, about = getattr(options, item.name), item.metadata
        if about["refused"] and value != item.default:
            raise ValueError(f"{dashed(item.name)}: {about['refused']}")
        for entry in value if about["kind"] == TEXTS else (value,):
            if about["choices"] and entry not in about["choices"]:
                raise ValueError(f"{dashed(item.name)} {entry!r}: choose one of {', '.join(about['choices'])}")


def refuse_changed(options: Any, names: Sequence[str], reason: str) -> None:
    """Refuse flags that have another value than their default, where they would be ignored.

    Raises:
        ValueError: the first of them, with the reason.
    """
    for item in fields(options):
        if item.name in names and getattr(options, item.name) != item.default:
            raise ValueError(f"{item.metadata['off'] or dashed(item.name)}: {reason}")


def check_range(name: str, value: float, lowest: int, highest: int) -> None:
    """Refuse a number out of its range, inclusive, under the flag's name.

    Raises:
        ValueError: it lies outside.
    """
    if not lowest <= value <= highest:
        bound = f"at least {lowest}" if value < lowest else f"at most {highest}"
        raise ValueError(f"{dashed(name)} {value}: must be {bound}")


def check_ranges(options: Any, ranges: Mapping[str, tuple[int, int]], *, shares: Sequence[str] = ()) -> None:
    """Refuse whole numbers out of their ranges, inclusive, and thresholds outside of 0 to 1.

    Raises:
        ValueError: says which flag, and what would be right.
    """
    for name, (lowest, highest) in ranges.items():
        given = getattr(options, name)
        for value in given if isinstance(given, tuple) else (given,):
            check_range(name, value, lowest, highest)
    for name in shares:
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"{dashed(name)} {getattr(options, name)}: must lie between 0 and 1")


def parser_of(kind: type[Any], *, prog: str, description: str, exit_codes: str = "") -> argparse.ArgumentParser:
    """Return the parser of such settings; flags that are not given are left out of the namespace.

    Args:
        kind, prog, description: the dataclass, the command and what it does.
        exit_codes: how the command may end, where it differs from the usual.
    """
    parser = CommandParser(
        prog=prog,
        description=description,
        epilog=f"Exit codes: {exit_codes or '0 done, 1 internal error, 2 user error, 130 interrupted'}.",
    )
    add_flags(parser, kind)
    return parser


def add_flags(parser: "argparse._ActionsContainer", kind: type[Any]) -> None:
    """Add the flags of a dataclass to a parser, or to one group of its help."""
    for item in fields(kind):
        _add_flag(parser, item)


_OFF_HELP = {"--eager": "run the step op by op instead of as a graph"}
"""Help of flags that switch another one off, where `disable --flag` would say too little."""


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
