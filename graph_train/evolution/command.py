"""Entry point of `--evolve`."""

import logging
from dataclasses import replace

from graph_train.evolution.bucket import Bucket
from graph_train.evolution.generation import train_generation
from graph_train.evolution.search import CSV_NAME, YAML_NAME, EvolutionResult, evolve
from graph_train.hooks.callbacks import HOOKS, Callbacks
from graph_train.runs.run_folder import SETTINGS, RunFolder, new_run_folder, save_settings
from graph_train.settings.hyperparameters import Hyperparameters, load_hyperparameters
from graph_train.settings.train_options import AUTO_BATCH, RunOptions, TrainOptions
from graph_train.training.auto_batch import with_batch_size
from kernels.host.paths import shell_word
from kernels.host.safe_yaml import load_yaml

LOG = logging.getLogger("graph_train")
EVOLVE_PROJECT = "runs/evolve"


def run_evolution(options: TrainOptions, callbacks: Callbacks) -> EvolutionResult:
    """Run `--evolve`: many short trainings, each in a separate process, of which only the results are kept.

    Raises:
        ValueError: a callback is registered, which is not supported.
    """
    registered = [hook for hook in HOOKS if callbacks.listens(hook)]
    if registered:
        raise ValueError(
            f"callbacks are not supported with --evolve ({', '.join(registered)}), because each generation trains in a "
            "separate process; remove them, or --evolve"
        )
    bucket = Bucket(options.run.bucket) if options.run.bucket else None
    base = load_hyperparameters(options.optim.hyp)
    project = EVOLVE_PROJECT if options.run.project == RunOptions.project else options.run.project
    folder = new_run_folder(project, options.run.name, exist_ok=options.run.exist_ok)
    folder.open_log()
    # As in YOLOv5, a generation is validated only after its last epoch, and saves no checkpoints and plots.
    quiet = replace(options, run=replace(options.run, nosave=True, noval=True, noplots=True, loggers="csv"))
    table, best = folder.path / CSV_NAME, folder.path / YAML_NAME
    try:
        if bucket:
            bucket.fetch(table)
        quiet = _with_batch_size(quiet, base, folder, continued=table.exists())
        save_settings(folder.path, replace(options, optim=quiet.optim), base)
        result = evolve(
            base,
            lambda hyp, generation: train_generation(quiet.as_flat_dict(), hyp, folder.path),
            folder.path,
            generations=options.optim.evolve,
            seed=options.optim.seed,
            tune_anchors=not options.model.noautoanchor,
            plot=not options.run.noplots,
            on_generation=lambda: bucket.publish((table, best)) if bucket else None,
        )
        LOG.info("Best hyper-parameters: train with --hyp %s", shell_word(result.yaml_file))
        return result
    finally:
        folder.close()


def _with_batch_size(
    options: TrainOptions, hyp: Hyperparameters, folder: RunFolder, *, continued: bool
) -> TrainOptions:
    """Resolve `--batch-size -1`; a continued evolution uses the batch size found at its start."""
    settings = folder.path / SETTINGS
    if options.optim.batch_size == AUTO_BATCH and continued and settings.exists():
        earlier = load_yaml(settings).data.get("batch_size")
        if isinstance(earlier, int) and earlier > 0:
            return replace(options, optim=replace(options.optim, batch_size=earlier))
    return with_batch_size(options, hyp)
