"""Starts an evolution: many short trainings, each in a process of its own, of which only the results are kept."""

import logging
from dataclasses import replace

from graph_train.hooks.callbacks import HOOKS, Callbacks
from graph_train.launch.auto_batch import with_batch_size
from graph_train.launch.bucket import Bucket
from graph_train.launch.evolution import CSV_NAME, YAML_NAME, EvolutionResult, evolve
from graph_train.launch.generation import train_generation
from graph_train.launch.new_or_resumed import save_settings
from graph_train.runs.run_folder import SETTINGS, RunFolder, new_run_folder
from graph_train.settings.hyperparameters import Hyperparameters, load_hyperparameters
from graph_train.settings.train_options import AUTO_BATCH, RunOptions, TrainOptions
from pipelines.data.safe_yaml import load_yaml

LOG = logging.getLogger("graph_train")
EVOLVE_PROJECT = "runs/evolve"


def evolve_from(options: TrainOptions, callbacks: Callbacks) -> EvolutionResult:
    """Many short trainings, each in a process of its own; nothing but their results is kept.

    Raises:
        ValueError: somebody listens, who could not hear anything.
    """
    heard = [hook for hook in HOOKS if callbacks.listens(hook)]
    if heard:
        raise ValueError(
            f"callbacks ({', '.join(heard)}) cannot follow an evolution: each generation trains in a process of "
            "its own; leave callbacks or --evolve out"
        )
    bucket = Bucket(options.run.bucket) if options.run.bucket else None
    base = load_hyperparameters(options.optim.hyp)
    project = EVOLVE_PROJECT if options.run.project == RunOptions.project else options.run.project
    folder = new_run_folder(project, options.run.name, exist_ok=options.run.exist_ok)
    folder.open_log()
    # As YOLOv5: each generation is validated after its last epoch only, and saves and draws nothing.
    quiet = replace(options, run=replace(options.run, nosave=True, noval=True, noplots=True, loggers="csv"))
    table, best = folder.path / CSV_NAME, folder.path / YAML_NAME
    try:
        if bucket:
            bucket.fetch(table)
        quiet = _batch_size(quiet, base, folder, goes_on=table.exists())
        save_settings(replace(options, optim=quiet.optim), base, folder)
        result = evolve(
            base,
            lambda hyp, generation: train_generation(quiet.as_flat_dict(), hyp, folder.path),
            folder.path,
            generations=options.optim.evolve,
            seed=options.optim.seed,
            tune_anchors=not options.model.noautoanchor,
            plot=not options.run.noplots,
            written=lambda: bucket.publish((table, best)) if bucket else None,
        )
        LOG.info("Best hyper-parameters: train with --hyp %s", result.yaml_file)
        return result
    finally:
        folder.close()


def _batch_size(options: TrainOptions, hyp: Hyperparameters, folder: RunFolder, *, goes_on: bool) -> TrainOptions:
    """Finds the batch size if it was left to us: an evolution that goes on keeps the one that it has found."""
    settings = folder.path / SETTINGS
    if options.optim.batch_size == AUTO_BATCH and goes_on and settings.exists():
        earlier = load_yaml(settings).data.get("batch_size")
        if isinstance(earlier, int) and earlier > 0:
            return replace(options, optim=replace(options.optim, batch_size=earlier))
    return with_batch_size(options, hyp)
