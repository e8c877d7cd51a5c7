"""The settings and saved state that a run starts from, identical on all ranks."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graph_train.host.devices import cpu_threads
from graph_train.ranks.exchange import Exchange
from graph_train.runs.checkpoint import Checkpoint, load_checkpoint
from graph_train.runs.cursor import Cursor
from graph_train.runs.results_csv import RESULTS, differing_epoch
from graph_train.runs.run_folder import (
    HYPERPARAMETERS,
    LAST,
    LOCATION_FLAGS,
    SETTINGS,
    ResumePoint,
    RunFolder,
    save_settings,
)
from graph_train.runs.saved_header import SavedHeader, read_header
from graph_train.settings.flag_table import dashed
from graph_train.settings.hyperparameters import Hyperparameters, load_hyperparameters
from graph_train.settings.train_options import AUTO_BATCH, WANDB_ONLY, TrainOptions, options_from_flags
from graph_train.training.assembly import SavedNetwork, TrainingRun
from graph_train.training.early_stopping import EarlyStopping
from graph_train.training.setup import Data
from kernels.host.paths import printable, shell_word
from kernels.host.quantity import quantity
from kernels.host.safe_yaml import load_yaml

LOG = logging.getLogger("graph_train")
_CHANGEABLE_ON_RESUME = (
    *"data epochs device workers kernels debug cache noplots loggers allow_download".split(),
    *"save_steps save_minutes keep_saves on_save_error max_nonfinite dist_timeout".split(),
    *WANDB_ONLY,
)


@dataclass(frozen=True)
class RunStart:
    """Settings of a run and, if it is resumed, the state to continue from."""

    options: TrainOptions
    hyp: Hyperparameters
    checkpoint: Checkpoint | None = None
    header: SavedHeader | None = None
    """The parsed header of `checkpoint`; the ranks other than 0 have the header only."""

    @classmethod
    def new(cls, folder: RunFolder, options: TrainOptions) -> "RunStart":
        """Start a new run. Its settings are saved at once, so that the run can be resumed before its first checkpoint.

        Raises:
            ValueError, OSError: the hyper-parameter file cannot be read, the folder cannot be written, or `--weights`
                is a file of the earlier run in it.
        """
        hyp = load_hyperparameters(options.optim.hyp)
        folder.reject_as_weights(options.model.weights)
        folder.set_aside_earlier()
        save_settings(folder.path, options, hyp)
        return cls(options, hyp)

    @classmethod
    def resume(cls, folder: RunFolder, point: ResumePoint, flags: Mapping[str, Any]) -> "RunStart":
        """Continue the run in `folder`. `flags` may change only the settings in `_CHANGEABLE_ON_RESUME`.

        Raises:
            ValueError: a file is damaged, the checkpoint is of another run, or a flag changes a setting that is fixed
                for the run.
        """
        checkpoint = load_checkpoint(point.file) if point.file else folder.newest_intact()
        header = None
        if checkpoint is not None:
            file = point.file or folder.last
            header = _header(checkpoint, file)
            _require_same_run(folder.path / RESULTS, header, file)
            saved, hyp = dict(header.options), header.hyp
            _warn_of_edits(folder.path / SETTINGS, saved, ignored=(*LOCATION_FLAGS, *_CHANGEABLE_ON_RESUME))
            _warn_of_edits(folder.path / HYPERPARAMETERS, hyp.as_dict())
        else:
            saved, hyp = _saved_settings(folder.path)
            LOG.info("%s: stopped before its first checkpoint; starting from the beginning", printable(folder.path))
        for name in ("name", "exist_ok"):
            if name in flags:
                raise ValueError(f"{dashed(name)}: a resumed run stays in its folder {folder.path}; remove the flag")
        # Without a checkpoint there is no fingerprint to compare another data set with.
        changeable = [name for name in _CHANGEABLE_ON_RESUME if checkpoint is not None or name != "data"]
        options = _resumed_options(saved, flags, changeable)
        if options.optim.evolve:
            place = f"--project {shell_word(folder.path.parent)} --name {shell_word(folder.path.name)}"
            raise ValueError(
                f"{printable(folder.path)}: this is an evolution; to continue it, repeat its command with {place} "
                "--exist-ok"
            )
        folder.set_aside_damaged_best()
        return cls(options, hyp, checkpoint, header)

    @classmethod
    def broadcast(cls, start: "RunStart | None", exchange: Exchange) -> "RunStart":
        """Return rank 0's start on every rank. The other ranks pass None; they receive no checkpoint arrays."""
        if start is not None and exchange.single_rank:
            return start
        sent = None
        if start is not None:
            saved = start.checkpoint.header if start.checkpoint else None
            sent = {"options": start.options.as_flat_dict(), "hyp": start.hyp.as_dict(), "header": saved}
        received = exchange.broadcast(sent)
        if start is not None:
            return start
        options = options_from_flags(**{**received["options"], "noplots": True, "loggers": "csv"})
        header = read_header(received["header"]) if received["header"] else None
        return cls(options, Hyperparameters(**received["hyp"]), header=header)

    @property
    def saved_network(self) -> SavedNetwork | None:
        """The network configuration and the anchors in the checkpoint."""
        return None if self.header is None else SavedNetwork(self.header.config, self.header.anchors_px)

    def progress(self) -> tuple[Cursor, EarlyStopping]:
        """Return the run's position and early-stopping state. A finished run continues if it is given more epochs."""
        stopper = EarlyStopping(self.options.optim.patience)
        if self.header is None:
            return Cursor(), stopper
        cursor = self.header.cursor
        cursor.finished = cursor.finished and self.options.optim.epochs <= self.header.options["epochs"]
        stopper.restore(self.header.early_stopping)
        return cursor, stopper

    def check(self, run: TrainingRun, folder: Path) -> None:
        """Check that the data set matches the checkpoint, and warn if the number of CPU threads has changed.

        Raises:
            ValueError: the data set does not match, see `_require_same_data_set` and `require_compatible_data`.
        """
        if self.header is None:
            return
        _require_same_data_set(run, self.header)
        if run.setup.device == "cpu":
            _warn_of_other_threads(self.header.threads)
        require_compatible_data(self.header, run.setup.data, run.train_pipeline.batches_per_epoch, folder)

    def restore(self, run: TrainingRun) -> None:
        """Load the checkpoint's state into `run` on every rank."""
        if self.header is None:
            return
        if self.checkpoint is not None:
            run.state.load_arrays(self.checkpoint.arrays, self.header.counters)
        run.state.broadcast(self.header.counters)
        cursor = self.header.cursor
        if cursor.finished or cursor.epoch >= self.options.optim.epochs:
            LOG.info(
                "All %d epochs are done; repeating the final validation only (use --epochs N to train longer)",
                cursor.epoch,
            )
        else:
            LOG.info("Resuming at epoch %d, batch %d", cursor.epoch, cursor.next_batch)


def _saved_settings(folder: Path) -> tuple[dict[str, Any], Hyperparameters]:
    """Return the settings of a run without a checkpoint.

    Raises:
        ValueError, OSError: the files are damaged or missing.
    """
    file, remedy = folder / SETTINGS, "start a new run"
    saved = dict(load_yaml(file).data)
    try:
        options = options_from_flags(**saved)
    except ValueError as error:
        raise ValueError(f"{printable(file)}: {error}; {remedy}") from None
    if not (options.model.cfg or options.model.weights):
        raise ValueError(f"{printable(file)}: has neither cfg nor weights; {remedy}")
    if not os.path.lexists(folder / HYPERPARAMETERS):
        raise FileNotFoundError(f"{printable(folder / HYPERPARAMETERS)}: no such file; {remedy}")
    return saved, load_hyperparameters(str(folder / HYPERPARAMETERS))


def _warn_of_edits(file: Path, saved: Mapping[str, Any], ignored: Sequence[str] = ()) -> None:
    """Warn if a settings file of the run differs from the checkpoint, whose settings are used."""
    try:
        edited = load_yaml(file).data
    except (ValueError, OSError):
        return  # a resumed run does not need the file
    names = [name for name in saved if name not in ignored and name in edited and edited[name] != saved[name]]
    if names:
        LOG.warning(
            "%s: a resumed run uses the checkpoint's settings; edits of these are ignored: %s",
            printable(file),
            ", ".join(printable(f"{name}={edited[name]} (checkpoint: {saved[name]})") for name in names),
        )


def _resumed_options(saved: Mapping[str, Any], flags: Mapping[str, Any], changeable: list[str]) -> TrainOptions:
    """Return the saved settings, updated with the flags that a resumed run may change.

    Raises:
        ValueError: a flag that must not change differs from the saved settings.
    """
    merged = {name: value for name, value in saved.items() if name not in LOCATION_FLAGS}
    given = options_from_flags(**flags).as_flat_dict()
    to_check = set(flags) - {"project", "resume"}
    if given["batch_size"] == AUTO_BATCH:
        to_check.discard("batch_size")  # the saved batch size is the one that AutoBatch found
    for name in to_check:
        if name not in changeable and merged.get(name) != given[name]:
            raise ValueError(
                f"{dashed(name)} {given[name]!r} differs from the saved run ({merged.get(name)!r}); a "
                f"resumed run may change only {', '.join(dashed(name) for name in changeable)}"
            )
    merged.update({name: given[name] for name in changeable if name in flags})
    if "wandb" not in str(merged.get("loggers", "")).split(","):
        merged.update({name: unused for name, unused in WANDB_ONLY.items() if name not in flags})
    return options_from_flags(**merged)


def _header(checkpoint: Checkpoint, path: Path) -> SavedHeader:
    try:
        return read_header(checkpoint.header)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; use an older checkpoint") from None


def _require_same_run(csv: Path, header: SavedHeader, checkpoint: Path) -> None:
    """Require that the folder's results are those of the checkpoint's run, because resuming replaces them.

    Raises:
        ValueError: the results of an epoch differ.
    """
    epoch = differing_epoch(csv, header.results)
    if epoch is not None:
        raise ValueError(
            f"{printable(csv)}: the results of epoch {epoch} are not those in {printable(checkpoint)}, which is of "
            f"another run (or the table was edited); restore the run's own checkpoint, or move {csv.name} away to "
            "continue from this one"
        )


def _require_same_data_set(run: TrainingRun, header: SavedHeader) -> None:
    """Allow `--data` to name another location only if the data set there is identical.

    Raises:
        ValueError: `--data` names a data set other than the checkpoint's.
    """
    given = run.setup.options.data.data
    if given != header.options["data"] and header.data != run.setup.data.fingerprint:
        raise ValueError(
            f"--data {given}: not the data set of the checkpoint (image names, sizes or labels differ); "
            "a resumed run may move its data set but not replace it"
        )


def require_compatible_data(header: SavedHeader, data: Data, batches: int, folder: Path) -> None:
    """Compare the data set with the checkpoint's; if an epoch has become shorter, move the cursor to its end.

    Args:
        header: the checkpoint's header; its cursor may be moved.
        data: the data set now.
        batches: batches per epoch.
        folder: the run folder.
    Raises:
        ValueError: the number of classes has changed, or the cursor is beyond an epoch of unchanged length.
    """
    before, now = len(header.class_names), len(data.class_names)
    if before != now:
        raise ValueError(
            f"{printable(data.dataset.file)}: {quantity(now, 'class')}, but the run was started with {before}; "
            f"restore the data set, or start a new run with --weights {shell_word(folder / 'weights' / LAST)}"
        )
    changed = header.data != data.fingerprint
    if changed:
        LOG.warning("The data set differs from the checkpoint's: results will differ from an uninterrupted run")
    if header.cursor.next_batch > batches:
        if not changed:
            raise ValueError(
                f"{printable(folder)}: the checkpoint is at batch {header.cursor.next_batch}, but an epoch has "
                f"{quantity(batches, 'batch')}; use an older checkpoint"
            )
        header.cursor.next_batch = batches
        header.cursor.losses = min(header.cursor.losses, batches)


def _warn_of_other_threads(before: int) -> None:
    now = cpu_threads()
    if before not in (0, now):
        LOG.warning(
            "This run used %d CPU thread%s before, now %d; results will differ from an uninterrupted run in the last "
            "digits (set OMP_NUM_THREADS=%d to continue exactly)",
            before,
            "s" * (before != 1),
            now,
            before,
        )
