"""The entry point of `graph-train` and `graph_train.train`: from flags to the training loop, on every rank."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from graph_train.engine.state import frozen_layers
from graph_train.evolution.command import run_evolution
from graph_train.evolution.search import EvolutionResult
from graph_train.hooks.callbacks import Callbacks
from graph_train.hooks.loggers import RunDescription, add_loggers
from graph_train.host.failures import GracefulStop
from graph_train.host.interrupts import Interruptible
from graph_train.host.run_command import one_line
from graph_train.host.terminal import robust_output
from graph_train.launch.run_start import RunStart
from graph_train.plots.labels_process import labels_plotted
from graph_train.ranks import team
from graph_train.ranks.exchange import Exchange
from graph_train.ranks.launcher import RankInfo
from graph_train.report import ReportHooks
from graph_train.runs.run_folder import ResumePoint, RunFolder, new_run_folder, point_to_resume, save_settings
from graph_train.settings.hyperparameters import load_hyperparameters
from graph_train.settings.train_options import AUTO_BATCH, TrainOptions, options_from_flags, require_network
from graph_train.training.assembly import TrainingRun, assemble
from graph_train.training.auto_batch import with_batch_size
from graph_train.training.setup import run_device
from graph_train.training.trainer import Trainer, TrainResult
from kernels.host.paths import printable, shell_word
from models.complexity import measure
from models.spec import load_model_spec
from pipelines.data.dataset import Dataset, load_dataset
from pipelines.data.problems import write_problems

LOG = logging.getLogger("graph_train")


def train(*, callbacks: Callbacks | None = None, **flags: Any) -> TrainResult | EvolutionResult:
    """Train on this rank; see `graph_train.api.train` for arguments, result and errors."""
    rank = team.join(flags.get("dist_timeout", team.DEFAULT_TIMEOUT), devices=flags.get("device", "")).info
    callbacks = callbacks if callbacks is not None else Callbacks()
    if not isinstance(callbacks, Callbacks):
        raise ValueError(f"callbacks={callbacks!r:.60}: must be a graph_train.hooks.callbacks.Callbacks")
    with team.reporting(quiet=flags.get("debug") is not True), robust_output(), Interruptible():
        exchange = Exchange(rank.rank, rank.world)
        try:
            options = _checked_options(flags, rank)
            if options.optim.evolve:
                _check_inputs(options, rank)
                return run_evolution(options, callbacks)
            resumes = rank.is_main and options.run.resume
            point = point_to_resume(options.run.resume, options.run.project) if resumes else None
            with callbacks.run_scope(), _run_folder(options, point, rank) as folder, _routine_events(callbacks):
                start = None
                if rank.is_main:
                    start = RunStart.resume(folder, point, flags) if point else RunStart.new(folder, options)
                return _run(RunStart.broadcast(start, exchange), folder, callbacks, rank)
        except GracefulStop:
            # OneFlow aborts all ranks once one is gone, even while rank 0 is still saving, so wait for all of them.
            exchange.all_reduce_max(0)
            raise


def _run(start: RunStart, folder: RunFolder, callbacks: Callbacks, rank: RankInfo) -> TrainResult:
    """Assemble the run, restore its state if it is resumed, and train."""
    if start.header is None:
        start = _with_batch_size(start, folder, callbacks)
    cursor, stopper = start.progress()
    run = assemble(start.options, start.hyp, start.saved_network, rank=rank)
    try:
        _require_same_data(run)
        start.check(run, folder.path)
        _describe(run, folder, callbacks, first_epoch=None if start.header is None else cursor.epoch)
        start.restore(run)
        results = start.header.results if start.header else ()
        trainer = Trainer(run, folder, cursor, stopper, callbacks, results=results)
        if rank.is_main:
            callbacks.add(ReportHooks(trainer, resumed=start.header is not None), "report")
        try:
            with _labels_plotted(run, folder):
                return trainer.train()
        except OSError as error:
            # For instance an image that was readable at the start.
            remedy = f"fix this and continue with: graph-train --resume {shell_word(folder.path)}"
            raise OSError(f"{one_line(error)}; {remedy}") from error
    finally:
        run.close()


def _labels_plotted(run: TrainingRun, folder: RunFolder) -> contextlib.AbstractContextManager[None]:
    """Plot `labels.jpg` during the training, on rank 0 only, unless --noplots is given."""
    if run.setup.options.run.noplots or not run.setup.rank.is_main:
        return contextlib.nullcontext()
    data = run.setup.data
    return labels_plotted(data.train.labels.rows, data.class_names, folder.path / "labels.jpg")


def _checked_options(flags: Mapping[str, Any], rank: RankInfo) -> TrainOptions:
    """Return the settings given by the flags.

    Raises:
        ValueError: a flag is invalid, or not supported with this number of processes.
    """
    if isinstance(flags.get("resume"), str) and not flags["resume"]:
        raise ValueError("--resume '': empty; give a run folder or a checkpoint, or use --resume without a value")
    options = options_from_flags(**flags)
    require_network(options)
    given, local_rank = options.engine.local_rank, rank.local_rank
    if given >= 0 and (rank.single_rank or given != local_rank):
        reason = "no launcher is in use" if rank.single_rank else f"the launcher set {local_rank}"
        raise ValueError(f"--local_rank {given}: reserved for launchers ({reason}); remove the flag")
    if rank.single_rank:
        return options
    if options.optim.evolve:
        raise ValueError("--evolve: each generation trains in its own process; start it without a launcher")
    if options.optim.batch_size == AUTO_BATCH:
        raise ValueError("--batch-size -1: not supported with several ranks; give a number")
    if options.optim.batch_size < rank.world:
        raise ValueError(f"--batch-size {options.optim.batch_size}: must be at least {rank.world}, the number of ranks")
    return options


def _check_inputs(options: TrainOptions, rank: RankInfo) -> None:
    """Check input files and the device before the run folder is created.

    Raises:
        ValueError, OSError: a file is broken, or the device is missing.
    """
    load_hyperparameters(options.optim.hyp)
    # With --allow-download, a missing data set is downloaded later, by all ranks together.
    dataset = load_dataset(options.data.data, require=() if options.data.allow_download else ("train", "val"))
    _require_outside(dataset, Path(options.run.project) / options.run.name)
    if options.model.cfg:
        spec = load_model_spec(options.model.cfg)
        spec.require_rgb()
        frozen_layers(options.model.freeze, len(spec.layers))
    run_device(options, rank)


def _require_outside(dataset: Dataset, folder: Path) -> None:
    """Reject a run folder inside a folder of images, because its plots would become part of the data set.

    Raises:
        ValueError: the folder is inside an image folder of the data set.
    """
    place = Path(os.path.realpath(folder))
    for source in (*dataset.train, *dataset.val):
        if source.is_dir() and place.is_relative_to(os.path.realpath(source)):
            raise ValueError(
                f"{printable(folder)}: the run folder would be inside {printable(source)}, the images of "
                f"{printable(dataset.file)}, so its plots would become part of the data set; choose another --project"
            )


@contextlib.contextmanager
def _run_folder(options: TrainOptions, point: ResumePoint | None, rank: RankInfo) -> Iterator[RunFolder]:
    """Open the run folder and its log. Ranks other than 0 log nothing and write into a temporary folder."""
    with contextlib.ExitStack() as stack:
        if not rank.is_main:
            folder = RunFolder(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graph-train-rank-"))))
            stack.enter_context(folder.quiet())
        elif point:
            folder = RunFolder(point.folder, resumed=True)
        else:
            _check_inputs(options, rank)
            folder = new_run_folder(options.run.project, options.run.name, exist_ok=options.run.exist_ok)
        stack.callback(folder.close)
        if rank.is_main:
            folder.open_log()
        yield folder


@contextlib.contextmanager
def _routine_events(callbacks: Callbacks) -> Iterator[None]:
    callbacks.run("on_pretrain_routine_start")
    try:
        yield
    finally:
        callbacks.run("teardown")


def _require_same_data(run: TrainingRun) -> None:
    """Require the same data set on all ranks, because each takes its shard of one common plan.

    Raises:
        ValueError: this rank's data set differs from rank 0's.
    """
    own, exchange = run.setup.data.fingerprint, run.setup.exchange
    if exchange.broadcast(own) != own:
        raise ValueError("the data set differs from rank 0's; copy the same files to every host")


def _with_batch_size(start: RunStart, folder: RunFolder, callbacks: Callbacks) -> RunStart:
    """Resolve `--batch-size -1` and save the result, so that a run that starts over uses the same batch size."""
    options = with_batch_size(start.options, start.hyp)
    if options is start.options:
        return start
    save_settings(folder.path, options, start.hyp)
    callbacks.run("on_params_update", {"batch_size": options.optim.batch_size})
    return replace(start, options=options)


def _key_values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={printable(str(value))}" for name, value in values.items())


def _describe(run: TrainingRun, folder: RunFolder, callbacks: Callbacks, *, first_epoch: int | None) -> None:
    """Describe the run in the log, in the run folder and to the experiment loggers."""
    options, data = run.setup.options, run.setup.data
    LOG.info("Settings: %s", _key_values(options.as_flat_dict()))
    LOG.info("Hyper-parameters: %s", _key_values(run.setup.hyp.as_dict()))
    LOG.info("%s", measure(run.state.network, run.setup.image_px))
    problems = (*data.train.problems, *data.val.problems)
    if problems:
        write_problems(folder.path / "problems.txt", problems)
    labels = data.train.labels.rows.view()
    labels.flags.writeable = False  # a callback that writes into it would change the training
    uploads = {"": (), "val": (data.val,), "all": (data.train, data.val)}[options.run.upload_dataset]
    names = [name for name in options.run.logger_names if name != "csv"]
    description = RunDescription(
        folder=folder.path,
        settings={**options.as_flat_dict(), **run.setup.hyp.as_dict()},
        first_epoch=first_epoch,
        entity=options.run.entity,
        bbox_interval=options.run.bbox_interval,
        dataset_files=[path for index in uploads for path in index.paths],
    )
    add_loggers(callbacks, names, description)
    callbacks.run("on_pretrain_routine_end", labels, data.class_names)
