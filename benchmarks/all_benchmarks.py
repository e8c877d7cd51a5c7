"""`graph-bench all`: run the benchmarks sequentially and write result, plot and text of each to one folder."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.registry import BENCHMARKS

_FORWARDED_FLAGS = ("device", "threads", "repeats", "torch_python", "data")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the output folder and the flags that are passed on to the benchmarks that have them."""
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, help="new folder for NAME.json, NAME.png and NAME.txt"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run only these benchmarks")
    parser.add_argument("--device", help="cpu or a GPU number")
    parser.add_argument("--threads", type=int, help="CPU threads per side")
    parser.add_argument("--repeats", type=int, help="measurements per side")
    parser.add_argument("--torch-python", metavar="PATH", help="Python interpreter with PyTorch")
    parser.add_argument("--data", help="dataset yaml of the benchmarks that load images")


def run(flags: argparse.Namespace) -> int:
    """Run all benchmarks, also after one has failed; return 1 if any failed."""
    names = flags.only or [name for name, entry in BENCHMARKS.items() if entry.in_all is not None]
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise ValueError(f"--only {unknown[0]}: must be one of {', '.join(BENCHMARKS)}")
    folder = Path(flags.out)
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for place, name in enumerate(names, 1):
        print(f"[{place}/{len(names)}] {name} …", flush=True)
        started = time.monotonic()
        code = _run_one(name, flags, folder)
        print(f"[{place}/{len(names)}] {name}: exit code {code} after {time.monotonic() - started:.0f} s", flush=True)
        if code:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}; see {folder}/NAME.txt", file=sys.stderr)
    return 1 if failed else 0


def _run_one(name: str, flags: argparse.Namespace, folder: Path) -> int:
    command = [sys.executable, "-m", "benchmarks.cli", name, *(BENCHMARKS[name].in_all or ())]
    command += ["--json", str(folder / f"{name}.json"), "--plot", str(folder / f"{name}.png")]
    known = _flags_of(name)
    for flag in _FORWARDED_FLAGS:
        value = getattr(flags, flag)
        if value is not None and flag in known:
            command += [f"--{flag.replace('_', '-')}", str(value)]
    with (folder / f"{name}.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log.write(line)
                print(line, end="", flush=True)
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
        return process.returncode


def _flags_of(name: str) -> frozenset[str]:
    from benchmarks.cli import benchmark_parser

    return frozenset(action.dest for action in benchmark_parser(name)._actions)
