"""`graph-check`: check a data set or this machine, or convert annotations to YOLO format."""

import sys
from collections.abc import Sequence
from typing import Any

from graph_train.host.run_command import run_command
from graph_train.settings.check_options import CheckOptions, build_parser
from graph_train.settings.convert_options import ConvertOptions, build_convert_parser
from graph_train.settings.flag_table import dashed, options_of
from kernels.host.process_settings import configure_process

ERRORS_FOUND = 1
_COMMON_FLAGS = ("json", "debug")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code. Argument errors and `--help` are handled before any heavy import."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["convert"]:
        return _convert(given[1:], process_ends=arguments is None)
    flags = vars(build_parser().parse_args(arguments))
    subject = flags.pop("subject")

    def command() -> int:
        configure_process()
        return _check_environment(flags) if subject == "env" else _check_data(flags)

    return run_command("graph-check", command, debug=bool(flags.get("debug")), process_ends=arguments is None)


def _convert(arguments: Sequence[str], *, process_ends: bool) -> int:
    flags = vars(build_convert_parser().parse_args(arguments))

    def command() -> int:
        options = options_of(ConvertOptions, flags)
        from graph_train.checks.convert import convert

        return ERRORS_FOUND if convert(options) else 0

    return run_command("graph-check", command, debug=bool(flags.get("debug")), process_ends=process_ends)


def _check_data(flags: dict[str, Any]) -> int:
    options = options_of(CheckOptions, flags)
    from graph_train.checks.check_data import check_data

    return ERRORS_FOUND if check_data(options) else 0


def _check_environment(flags: dict[str, Any]) -> int:
    """Print which components are installed and which are missing; return 1 if training is impossible."""
    for name in flags:
        if name not in _COMMON_FLAGS:
            raise ValueError(f"{dashed(name)}: applies to data sets only; remove it with `env`")

    import json
    from dataclasses import asdict

    from graph_train.checks.environment import environment_facts
    from kernels.host.files import write_atomically
    from kernels.host.paths import output_file

    target = output_file("--json", flags["json"]) if flags.get("json") else None
    facts = environment_facts()
    for fact in facts:
        print(f"{fact.name:<20} {fact.value}")
        if fact.remedy:
            print(f"{'':<20} -> {fact.remedy}")
    if target:
        write_atomically(target, json.dumps([asdict(fact) for fact in facts], indent=2))
    return ERRORS_FOUND if any(fact.fatal for fact in facts) else 0


if __name__ == "__main__":
    sys.exit(main())
