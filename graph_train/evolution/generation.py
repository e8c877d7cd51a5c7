"""A training of an evolution, in a separate process because OneFlow does not free compiled graphs.

    python -m graph_train.evolution.generation REQUEST

REQUEST is a JSON file with `options` (flags), `hyp` (hyper-parameters), `folder` (of this training), `result` (the file
to write the seven results to, as a JSON list) and `parent` (a process id; this process ends with it).
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

from graph_train.host.failures import DONE, INTERRUPTED, USER_ERROR, DivergedError, NotSavedError
from graph_train.host.interrupts import Interruptible, StopRequest, end_with_parent
from graph_train.host.own_modules import module_command
from graph_train.host.run_command import run_command
from graph_train.runs.results_csv import VALIDATION_KEYS
from graph_train.settings.hyperparameters import Hyperparameters
from kernels.host.files import write_atomically
from kernels.host.process_settings import configure_process

_POLL_SECONDS = 0.5


def train_generation(options: Mapping[str, Any], hyp: Hyperparameters, folder: Path) -> tuple[float, ...]:
    """Train in a new process; return P, R, mAP50, mAP50-95 and three validation losses, or NaN if it diverged.

    Args:
        options: flags by name.
        hyp: the hyper-parameters.
        folder: the folder of the evolution; the training writes into its subfolder `generation`.
    Raises:
        ValueError: a user error, which the training has printed.
        NotSavedError: a file could not be saved; the training has printed which.
        KeyboardInterrupt: stopped by a signal; the training has ended.
        RuntimeError: the training failed otherwise.
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
        code = _run(module_command("graph_train.evolution.generation", [str(request)]))
    finally:
        request.unlink()
    if code == DivergedError.exit_code:
        return (math.nan,) * len(VALIDATION_KEYS)
    if code == USER_ERROR:
        raise ValueError("the training of a generation failed, see the message above")
    if code == NotSavedError.exit_code:
        raise NotSavedError("a generation could not save its files, see the message above")
    if code:
        raise RuntimeError(f"the training of a generation ended with exit code {code}, see the messages above")
    numbers = tuple(json.loads(result.read_text()))
    result.unlink()
    return numbers


def _run(command: Sequence[str]) -> int:
    """Run a command and forward stop signals to it; return its exit code."""
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


def _train_without_interrupt_message(request: Mapping[str, Any]) -> int:
    """Train; leave it to the parent to report an interruption. Return the exit code."""
    try:
        _train(request)
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


def main() -> int:
    """Run the process."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    end_with_parent(request["parent"])
    configure_process()

    def command() -> int:
        with Interruptible():
            return _train_without_interrupt_message(request)

    return run_command("graph-train", command, debug=bool(request["options"]["debug"]), process_ends=True)


if __name__ == "__main__":
    sys.exit(main())
