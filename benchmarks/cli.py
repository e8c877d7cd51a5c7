"""`graph-bench`: benchmarks of the trainer, its kernels and its peers; `benchmarks.registry` says how to add one."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import MAX_BATCH_SIZE, MAX_IMAGE_PX
from benchmarks.registry import BENCHMARKS, COMMANDS
from graph_train.host.interrupts import Interruptible
from graph_train.host.run_command import run_command
from graph_train.settings.flag_table import check_range
from graph_train.settings.parser import CommandParser
from kernels.host.paths import output_file

_MAY_BE_ZERO = ("seed", "seeds", "first_seed", "images", "labels", "steps")
_MAX_COUNT = 1_000_000_000
_MAX_NUMBER = {
    "threads": 4096,
    "workers": 4096,
    "imgsz": MAX_IMAGE_PX,
    "batch_size": MAX_BATCH_SIZE,
    "seed": (1 << 32) - 1,
}
"""Limits that catch typing errors, which would otherwise exhaust memory or never end."""


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every benchmark; those that only some have are in `benchmarks.harness.flags`."""
    parser.add_argument("--device", default="cpu", help="cpu or a GPU number")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads per side")
    parser.add_argument("--json", metavar="FILE", help="write the result, with machine, versions and commit, to FILE")
    parser.add_argument("--plot", metavar="FILE", help="plot the result to FILE (.png, .svg or .pdf)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def build_parser() -> argparse.ArgumentParser:
    """Return the top-level parser; each subcommand has its own parser."""
    entries = {**BENCHMARKS, **COMMANDS}
    width = max((len(name) for name in entries), default=0)
    listing = "\n".join(f"  {name:<{width}}  {entry.summary}" for name, entry in entries.items())
    parser = CommandParser(
        prog="graph-bench",
        description="Measure speed. Competitors alternate within one run; results are medians and quartiles.",
        epilog=f"subcommands (graph-bench NAME --help):\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subcommand", choices=tuple(entries), metavar="SUBCOMMAND")
    return parser


def benchmark_parser(name: str) -> CommandParser:
    """Return the parser of one benchmark's flags."""
    entry = BENCHMARKS[name]
    parser = CommandParser(prog=f"graph-bench {name}", description=entry.summary)
    add_common_arguments(parser)
    import_module(entry.module).add_arguments(parser)
    return parser


def command_parser(name: str) -> CommandParser:
    """Return the parser of a subcommand that is not a benchmark."""
    entry = COMMANDS[name]
    parser = CommandParser(prog=f"graph-bench {name}", description=entry.summary)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    import_module(entry.module).add_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; `--help` and usage errors do not wait for heavy imports."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = build_parser().parse_args(given[:1]).subcommand
    if name in COMMANDS:
        flags = command_parser(name).parse_args(given[1:])
        module = import_module(COMMANDS[name].module)
        return _run(name, lambda: module.run(flags), flags, process_ends=arguments is None)
    flags = benchmark_parser(name).parse_args(given[1:])
    module = import_module(BENCHMARKS[name].module)
    return _run(name, lambda: _measure(name, module, flags), flags, process_ends=arguments is None)


def _run(name: str, command: Callable[[], int], flags: argparse.Namespace, *, process_ends: bool) -> int:
    """Run a subcommand; SIGTERM, like Ctrl+C, also ends its worker processes."""

    def interruptible() -> int:
        with Interruptible():
            return command()

    return run_command(f"graph-bench {name}", interruptible, debug=flags.debug, process_ends=process_ends)


def _measure(name: str, module: Any, flags: argparse.Namespace) -> int:
    from benchmarks.harness.machine import is_busy
    from benchmarks.harness.results import envelope, write_result
    from benchmarks.harness.tables import as_text

    _check(flags)
    settings = {key: value for key, value in vars(flags).items() if key not in ("json", "plot", "debug")}
    result = envelope(name, settings)
    result |= module.run(flags)
    for table in module.tables(result):
        print(as_text(table), end="\n\n")
    if is_busy(result["machine"]):
        print(f"warning: the machine was busy (load {result['machine']['load_average']}): compare ratios, not times")
    if flags.json:
        write_result(Path(flags.json), result)
    if flags.plot:
        module.plot(result, Path(flags.plot))
    return 0


def _check(flags: argparse.Namespace) -> None:
    """Raise ValueError for flags that would otherwise fail only after minutes of measuring."""
    for flag, value in vars(flags).items():
        for number in value if isinstance(value, list) else [value]:
            if type(number) is int:
                check_range(flag, number, 0 if flag in _MAY_BE_ZERO else 1, _MAX_NUMBER.get(flag, _MAX_COUNT))
    for flag in ("json", "plot"):
        path = getattr(flags, flag)
        if path is not None:
            output_file(f"--{flag}", path)
    if flags.plot and Path(flags.plot).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot {flags.plot}: must end in .png, .svg or .pdf")


if __name__ == "__main__":
    sys.exit(main())
