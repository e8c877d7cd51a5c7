"""Checks that a killed run's files are intact and its state equals that of an uninterrupted run."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from graph_train.runs.checkpoint import Checkpoint, load_checkpoint
from graph_train.runs.results_csv import HEADER
from graph_train.runs.run_folder import LAST
from kernels.host.safe_yaml import load_yaml
from models.safetensors_file import checksum
from models.weights import load_weights

State = tuple[int, int]
"""Epoch and number of its batches done."""


def identity(checkpoint: Checkpoint) -> str:
    """Return a checksum of all arrays and the header, without the flags, as they include how often to save."""
    header = {key: value for key, value in checkpoint.header.items() if key not in ("options", "checksum")}
    return checksum(checkpoint.arrays, header)


def state_of(checkpoint: Checkpoint) -> State:
    """Return the epoch and batch at which a checkpoint continues."""
    cursor = checkpoint.header["cursor"]
    return cursor["epoch"], cursor["next_batch"]


def known_states(folder: Path) -> dict[State, str]:
    """Return the identity of every state kept by a run."""
    found = (load_checkpoint(path) for path in (folder / "weights").glob("last*.safetensors"))
    return {state_of(checkpoint): identity(checkpoint) for checkpoint in found}


def damaged_files(folder: Path, reference: Path) -> list[str]:
    """Return files that are unreadable or whose rows differ from the uninterrupted run's.

    Temporary files are ignored.
    """
    bad = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            problem = _problem(path, reference)
        except Exception as error:  # a file that any reader rejects is damaged
            problem = f"{type(error).__name__}: {error}"
        if problem:
            bad.append(f"{path.relative_to(folder)}: {problem}")
    return bad


def _problem(path: Path, reference: Path) -> str:
    if path.suffix == ".safetensors":
        if path.name.startswith(("last", "epoch")):
            load_checkpoint(path)
        else:
            load_weights(path)
    elif path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".yaml":
        load_yaml(path)
    elif path.suffix == ".html":
        return "" if path.read_text(encoding="utf-8").rstrip().endswith("</html>") else "cut off"
    elif path.name == "results.csv":
        whole = (reference / path.name).read_text(encoding="utf-8")
        ours = path.read_text(encoding="utf-8")
        return "" if whole.startswith(ours) and ours.startswith(HEADER) else "rows differ from the uninterrupted run's"
    return ""


def differences(folder: Path, reference: Path) -> list[str]:
    """Return the results of a finished run that differ from those of the uninterrupted one.

    The list is empty if all are identical.
    """
    return list(_differences(folder, reference))


def _differences(folder: Path, reference: Path) -> Iterator[str]:
    for name in ("results.csv", "weights/best.safetensors"):
        if (folder / name).read_bytes() != (reference / name).read_bytes():
            yield name
    ours, theirs = (load_checkpoint(path / "weights" / LAST) for path in (folder, reference))
    if identity(ours) != identity(theirs):
        yield f"weights/{LAST}"


def newest_state(folder: Path, known: Mapping[State, str]) -> dict[str, Any]:
    """Return epoch and batch of the newest checkpoint, and whether its state equals the known one (None: not known)."""
    path = folder / "weights" / LAST
    if not path.exists():
        return {"epoch": None, "batch": None, "equal": None}
    checkpoint = load_checkpoint(path)
    state = state_of(checkpoint)
    equal = known[state] == identity(checkpoint) if state in known else None
    return {"epoch": state[0], "batch": state[1], "equal": equal}
