"""Plotting of labels in a separate process, so that training does not wait a second for matplotlib.

    python -m graph_train.plots.labels_process PARENT PATH < LABELS

PARENT is a process id (this process ends with it), PATH the plot to write, LABELS an `.npz` with `labels` and
`class_names`. A thread would not do: matplotlib's objects were corrupted while OneFlow compiled.
"""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.host.interrupts import end_with_parent
from graph_train.host.own_modules import module_command
from graph_train.host.run_command import one_line
from graph_train.plots.labels import plot_labels
from kernels.host.paths import printable

LOG = logging.getLogger("graph_train")


@contextmanager
def labels_plotted(labels: npt.NDArray[Any], class_names: Sequence[str], path: Path) -> Iterator[None]:
    """Run `plot_labels` in a process while the body runs, and wait for it at the end; a failure is only logged."""
    failure, plotting = "", None
    try:
        plotting = _PlotProcess(labels, class_names, path)
    except OSError as error:
        failure = str(error)
    try:
        yield
    finally:
        failure = plotting.failure() if plotting else failure
        if failure:
            LOG.warning("%s: plotting failed: %s", printable(path), failure)


class _PlotProcess:
    """The plotting process; arguments as for `plot_labels`.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, labels: npt.NDArray[Any], class_names: Sequence[str], path: Path) -> None:
        command = module_command("graph_train.plots.labels_process", [str(os.getpid()), str(path.resolve())])
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by `failure`
        with tempfile.TemporaryFile() as data:
            np.savez(data, labels=labels, class_names=np.array(class_names, dtype=str))
            data.seek(0)
            # Not in the terminal's process group, where Ctrl-C would interrupt it.
            self._process = subprocess.Popen(
                command,
                stdin=data,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,
            )

    def failure(self) -> str:
        """Wait for the process; return why it failed, or ""."""
        with self._errors:
            if self._process.wait() == 0:
                return ""
            self._errors.seek(0)
            return (self._errors.read().splitlines() or [f"exit code {self._process.returncode}"])[-1]


def main() -> int:
    """Plot the labels; the reason for a failure is the last line on stderr."""
    end_with_parent(int(sys.argv[1]))
    path = Path(sys.argv[2])
    with np.load(sys.stdin.buffer, allow_pickle=False) as data:
        labels, class_names = data["labels"], data["class_names"].tolist()
    try:
        plot_labels(labels, class_names, path)
    except Exception as error:
        # The warning of the parent begins with the path.
        print(one_line(error).removeprefix(f"{path}: "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
