"""A new run or one that is resumed (`--resume`): its settings, its state, and that all ranks begin with the same."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from graph_train.ranks import team
from graph_train.ranks.exchange import Exchange
from graph_train.runs.checkpoint import Checkpoint, load_checkpoint
from graph_train.runs.run_folder import HYPERPARAMETERS, LAST, PLACE, SETTINGS, ResumePoint, RunFolder
from graph_train.runs.saved_header import SavedHeader, read_header
from graph_train.settings.flag_table import dashed
from graph_train.settings.hyperparameters import Hyperparameters, load_hyperparameters
from graph_train.settings.train_options import AUTO_BATCH, WANDB_ONLY, TrainOptions, options_from_flags
from graph_train.training.setup import Data
from kernels.host.files import write_atomically
from pipelines.data.problems import printable
from pipelines.data.safe_yaml import load_yaml

LOG = logging.getLogger("graph_train")
_CHANGEABLE_ON_RESUME = (
    *"data epochs device workers kernels debug cache noplots loggers allow_download save_steps save_minutes".split(),
    *"keep_saves on_save_error max_nonfinite dist_timeout".split(),
    *WANDB_ONLY,
)


@dataclass(frozen=True)
class Start:
    """How a run begins: with which settings, and from which state if it is resumed."""

    options: TrainOptions
    hyp: Hyperparameters
    checkpoint: Checkpoint | None = None


def begun(folder: RunFolder, options: TrainOptions, hyp: Hyperparameters) -> Start:
    """A new run: its settings are written first, so that it can be resumed from its very beginning."""
    folder.set_aside_earlier()
    save_settings(options, hyp, folder)
    return Start(options, hyp)


def resumed(folder: RunFolder, point: ResumePoint, flags: Mapping[str, Any]) -> Start:
    """Settings and state of the run in a folder; a few flags may differ from the saved ones.

    Raises:
        ValueError: a damaged file, or a flag that would make it another run.
    """
    checkpoint = load_checkpoint(point.file) if point.file else folder.newest_good()
    if checkpoint is not None:
        header = _header(checkpoint, point.file or folder.last)
        saved, hyp = dict(header.options), header.hyp
    else:
        saved = dict(load_yaml(folder.path / SETTINGS).data)
        hyp = load_hyperparameters(str(folder.path / HYPERPARAMETERS))
        LOG.info("%s: stopped before its first checkpoint; it starts from the beginning", folder.path)
    saved = {name: value for name, value in saved.items() if name not in PLACE}
    given = options_from_flags(**flags).as_flat_dict()
    for name in ("name", "exist_ok"):
        if name in flags:
            raise ValueError(f"{dashed(name)}: a resumed run stays in its folder {folder.path}; leave it out")
    asked = set(flags) - {"project", "resume"}
    if given["batch_size"] == AUTO_BATCH:
        asked.discard("batch_size")  # what was found then is what is saved
    # Without a checkpoint there is nothing that another place of the data could be compared with.
    changeable = [name for name in _CHANGEABLE_ON_RESUME if checkpoint is not None or name != "data"]
    for name in asked:
        if name not in changeable and saved.get(name) != given[name]:
            raise ValueError(
                f"{dashed(name)} {given[name]!r} differs from the saved run ({saved.get(name)!r}); a "
                f"resumed run may change only {', '.join(dashed(name) for name in changeable)}"
            )
    saved.update({name: given[name] for name in changeable if name in flags})
    if "wandb" not in str(saved.get("loggers", "")).split(","):
        saved.update({name: unused for name, unused in WANDB_ONLY.items() if name not in flags})
    options = options_from_flags(**saved)
    if options.optim.evolve:
        raise ValueError(f"{folder.path}: an evolution; it goes on with its own command and --exist-ok")
    return Start(options, hyp, checkpoint)


def _header(checkpoint: Checkpoint, path: Path) -> SavedHeader:
    try:
        return read_header(checkpoint.header)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; use an older checkpoint") from None


def require_fitting(header: SavedHeader, data: Data, batches: int, folder: Path) -> None:
    """Compares the data set with the one that a run was trained on; moves its place into an epoch that has shrunk.

    Args:
        header: of the checkpoint that the run goes on from; its cursor is moved.
        data: what is there now.
        batches: of an epoch.
        folder: of the run.
    Raises:
        ValueError: another number of classes, or a place behind the end of the epoch.
    """
    before, now = len(header.class_names), len(data.class_names)
    if before != now:
        raise ValueError(
            f"{printable(data.dataset.file)}: names {now} classes, the run was started with {before}: resume with the "
            f"data set as it was, or start a new run: --weights {printable(folder / 'weights' / LAST)}"
        )
    changed = header.data != data.fingerprint()
    if changed:
        LOG.warning("The data set differs from the checkpoint's: results will differ from an uninterrupted run")
    if header.cursor.next_batch > batches:
        if not changed:
            raise ValueError(
                f"{printable(folder)}: its checkpoint has batch {header.cursor.next_batch} of an epoch of "
                f"{batches}; use an older checkpoint"
            )
        header.cursor.next_batch = batches
        header.cursor.losses = min(header.cursor.losses, batches)


def shared(start: Start | None) -> Start:
    """How the main rank begins is how all begin; the others get everything but the arrays of a checkpoint."""
    info = team.current().info
    exchange = Exchange(info.rank, info.world)
    if exchange.alone and start is not None:
        return start
    sent = None
    if start is not None:
        header = start.checkpoint.header if start.checkpoint else None
        sent = {"options": start.options.as_flat_dict(), "hyp": start.hyp.as_dict(), "header": header}
    got = exchange.broadcast(sent)
    if start is not None:
        return start
    options = options_from_flags(**{**got["options"], "noplots": True, "loggers": "csv"})
    checkpoint = Checkpoint({}, got["header"]) if got["header"] else None
    return Start(options, Hyperparameters(**got["hyp"]), checkpoint)


def save_settings(options: TrainOptions, hyp: Hyperparameters, folder: RunFolder) -> None:
    """Writes the settings of a run into its folder.

    Raises:
        OSError: it cannot be written.
    """
    hyp.save(folder.path / HYPERPARAMETERS)
    # The last one: what has it can be resumed.
    write_atomically(folder.path / SETTINGS, yaml.safe_dump(options.as_flat_dict(), sort_keys=False))
