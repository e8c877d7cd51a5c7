"""The kit: `python -m tests.gpu [--json FILE] [--emulated] [--torch-python PYTHON]`.

Kernels alone, then DALI's pictures, then OneFlow, then times beside PyTorch's; one table of PASS, FAIL and SKIP with
times. Exit code 0: nothing failed, 1: something failed, or a kernel has no case, 2: there is no GPU here.
"""

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from kernels.host.cuda_devices import compute_capabilities
from tests.gpu.stages import Line, kernels_alone, pictures, speed, training


def main(arguments: list[str]) -> int:
    """Run all stages and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--emulated", action="store_true", help="kernels alone, on the emulated device")
    parser.add_argument("--torch-python", help="interpreter with PyTorch, to be timed beside our ops")
    options = parser.parse_args(arguments)
    if not options.emulated and not compute_capabilities():
        print("no GPU here, or no NVIDIA driver: nothing was run", file=sys.stderr)
        return 2
    lines: list[Line] = []
    timed = partial(speed, torch_python=options.torch_python)
    stages = (kernels_alone,) if options.emulated else (kernels_alone, pictures, training, timed)
    for stage in stages:
        for line in stage(emulated=options.emulated):
            print(f"{line.result:4}  {line.stage:8}  {line.name:28}  {line.seconds:8.3f} s  {line.note}", flush=True)
            lines.append(line)
    failed = sum(line.result == "FAIL" for line in lines)
    print(f"{len(lines)} lines, {failed} failed")
    if options.json:
        gpus = [f"{major}.{minor}" for major, minor in compute_capabilities()]
        options.json.write_text(json.dumps({"gpus": gpus, "lines": [asdict(line) for line in lines]}, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
