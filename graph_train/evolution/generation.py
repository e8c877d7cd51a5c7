"""One training of an evolution, in a process of its own: OneFlow keeps the memory of every graph it once compiled.

    python -m graph_train.evolution.generation REQUEST

REQUEST is a JSON file: `options` (flags), `hyp` (hyper-parameters), `folder` (of this training), `result`, the file
that gets the seven results as a JSON list, and `parent`, the process whose death ends this one.
"""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graph_train.host.failures import INTERRUPTED, USER_ERROR, DivergedError, NotSavedError
from graph_train.host.interrupts import Interruptible, StopRequest, end_with_parent
from graph_train.host.run_command import run_command
from graph_train.runs.results_csv import VALIDATION_KEYS
from graph_train.settings.hyperparameters import Hyperparameters
from kernels.host.files import write_atomically
from kernels.host.process_settings import configure_process

_POLL_SECONDS = 0.5


def train_generation(options: Mapping[str, Any], hyp: Hyperparameters, folder: Path) -> tuple[float, ...]:
    """Trains in a new process and returns P, R, mAP50, mAP50-95 and the three validation losses; NaN if it diverged.

    Args:
        options: flags by name.
        hyp: what to train with.
        folder: of the evolution; the training writes into `generation` below it.
    Raises:
        ValueError: the training was refused; it has said why.
        NotSavedError: the disk refused its files; it has said why.
        KeyboardInterrupt: a signal; the training has ended.
        RuntimeError: it failed otherwise.
    """
    request, result = folder / ".request.json", folder / ".result.json"
    content = {
        "options": options,
        "hyp": hyp.as_dict(),
        "folder": str(folder / "generation"),
        "result": str(result),
        "parent": os.getpid(),
    }
    write_atomically(request, json.dumps(content))
    result.unlink(missing_ok=True)
    try:
        code = _run([sys.executable, "-m", "graph_train.evolution.generation", str(request)])
    finally:
        request.unlink()
    if code == DivergedError.exit_code:
        return (math.nan,) * len(VALIDATION_KEYS)
    if code == USER_ERROR:
        raise ValueError("the training of a generation was refused, see the line above")
    if code == NotSavedError.exit_code:
        raise NotSavedError("a generation could not write its files, see the line above")
    if code:
        raise RuntimeError(f"the training of a generation ended with exit code {code}, see the lines above")
    numbers = tuple(json.loads(result.read_text()))
    result.unlink()
    return numbers


def _run(command: Sequence[str]) -> int:
    """Wait for a command; a signal to this process reaches it too."""
    process = subprocess.Popen(command)
    with StopRequest() as request:
        while True:
            try:
                code = process.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if request.signal_name:
                    process.send_signal(signal.SIGTERM)
                    code = process.wait()
                    break
    if request.signal_name or code == INTERRUPTED:
        raise KeyboardInterrupt
    return code


def _train(request: Mapping[str, Any]) -> None:
    from graph_train.runs.cursor import Cursor
    from graph_train.runs.run_folder import RunFolder
    from graph_train.settings.train_options import options_from_flags
    from graph_train.training.assembly import assemble
    from graph_train.training.early_stopping import EarlyStopping
    from graph_train.training.trainer import Trainer

    options = options_from_flags(**request["options"])
    folder = RunFolder(Path(request["folder"]))
    folder.open_log()
    try:
        run = assemble(options, Hyperparameters(**request["hyp"]))
        try:
            result = Trainer(run, folder, Cursor(), EarlyStopping(options.optim.patience)).train()
        finally:
            run.close()
    finally:
        folder.close()
    write_atomically(Path(request["result"]), json.dumps(list(result.results)))


def main() -> int:
    """Entry point of the process."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    end_with_parent(request["parent"])
    configure_process()
    with Interruptible():
        return run_command("graph-train", lambda: _train(request), debug=bool(request["options"]["debug"]))


if __name__ == "__main__":
    sys.exit(main())
