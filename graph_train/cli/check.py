"""`graph-check`: reports on a data set, or on this machine, without changing either."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from graph_train.check_options import CheckOptions
from graph_train.cli.errors import run_command
from graph_train.cli.parser import CommandParser

ERRORS_FOUND = 1


def build_parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = CommandParser(
        prog="graph-check",
        description="Reports on a data set (counts, sizes, labels, every problem with file and line), or with `env` on "
        "this machine. Reads only.",
        epilog="Exit codes: 0 no errors, 1 errors found, 2 user error.",
    )
    parser.add_argument("subject", nargs="?", choices=("data", "env"), default="data", help="what to check")
    parser.add_argument("--data", help="dataset yaml, or `shapes` for the built-in set")
    parser.add_argument(
        "--imgsz", "--img", "--img-size", type=int, default=CheckOptions.imgsz, help="training size in px"
    )
    parser.add_argument("--cfg", default=CheckOptions.cfg, help="model yaml whose anchors are compared with the boxes")
    parser.add_argument("--anchor-t", type=float, default=CheckOptions.anchor_t, help="hyper-parameter anchor_t")
    parser.add_argument("--single-cls", action="store_true", help="count all classes as one")
    parser.add_argument("--allow-download", action="store_true",
                        help="fetch missing data from the yaml's `download`, if it gives a SHA-256")  # fmt: skip
    parser.add_argument(
        "--workers",
        type=int,
        default=CheckOptions.workers,
        help="threads that decode images, 0 for one per core, at most 8",
    )
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--plots", metavar="DIR", help="write plots of the labels of each split")
    parser.add_argument("--problems", metavar="FILE", help="write the problems, one in a line")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; argument errors and `--help` answer before anything heavy is imported."""
    parser = build_parser()
    flags = parser.parse_args(arguments)
    if flags.subject == "data" and not flags.data:
        parser.error("give the data set with --data, or ask about this machine with `graph-check env`")

    if flags.subject == "env":
        for name in (item.name for item in fields(CheckOptions) if item.name != "json"):
            if getattr(flags, name) != parser.get_default(name):
                parser.error(f"--{name.replace('_', '-')} belongs to a data set; leave it out with `env`")

    def command() -> int:
        return _check_environment(flags.json) if flags.subject == "env" else _check_data(flags)

    return run_command("graph-check", command, debug=flags.debug)


def _check_data(flags: argparse.Namespace) -> int:
    from graph_train.data_check import check_data

    unused = ("subject", "debug")
    options = CheckOptions(**{name: value for name, value in vars(flags).items() if name not in unused})
    return ERRORS_FOUND if check_data(options) else 0


def _check_environment(json_file: str | None) -> int:
    """Prints what is here and what is missing; 1 if training is impossible."""
    import json
    from dataclasses import asdict
    from pathlib import Path

    from graph_train.environment import environment_facts
    from graph_train.files import write_atomically

    facts = environment_facts()
    for fact in facts:
        print(f"{fact.name:<20} {fact.value}")
        if fact.remedy:
            print(f"{'':<20} -> {fact.remedy}")
    if json_file:
        write_atomically(Path(json_file), json.dumps([asdict(fact) for fact in facts], indent=2))
    return ERRORS_FOUND if any(fact.fatal for fact in facts) else 0


if __name__ == "__main__":
    sys.exit(main())
