"""Worker of `graph-bench accuracy`, which prepares trainings for PyTorch and validates their weights.

Both use the trainer's own `assemble`: network, anchors, initial weights, schedule and data are those of `graph-train`
with the same flags, and the EMA weights are evaluated by the validation that it runs after each epoch.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness.channel import serve
from benchmarks.harness.points import Point, update_settings, write_data, write_network
from graph_train.hooks.callbacks import Callbacks
from graph_train.settings.hyperparameters import load_hyperparameters
from graph_train.settings.train_options import TrainOptions, given_flags, options_from_flags
from graph_train.training.assembly import TrainingRun, assemble, loss_config
from graph_train.training.epoch_validation import EpochValidation, result_values
from kernels.runtime import flow
from pipelines.augmentation.augment_config import AugmentConfig

_SWITCHES = ("multi_scale", "image_weights", "single_cls", "freeze")


class _Session:
    """The objects built by `describe`."""

    run: TrainingRun
    validation: EpochValidation


def describe(folder: str, arguments: Sequence[str]) -> None:
    """Build the run of a command line and write its network, weights, data and schedule for PyTorch.

    Args:
        folder: output folder for the files of `benchmarks.harness.points`.
        arguments: flags of `graph-train`.
    Raises:
        ValueError: a setting that the PyTorch peer does not support.
    """
    options = options_from_flags(**given_flags(arguments))
    run = assemble(options, load_hyperparameters(options.optim.hyp))
    _check(run)
    setup, network, place = run.setup, run.state.network, Path(folder)
    batch = options.optim.batch_size
    update = {**update_settings(batch), "weight_decays": run.schedule.weight_decays}
    config = loss_config(setup, levels=len(network.stride))
    write_network(place, Point(options.model.cfg, batch, setup.image_px), network, config, update)
    write_data(place, setup.data.train, run.schedule)
    _Session.run = run
    _Session.validation = EpochValidation(run, place, Callbacks(), lambda: None)


def _check(run: TrainingRun) -> None:
    """Reject settings that the PyTorch peer would ignore; its network and loss check theirs."""
    setup = run.setup
    flags, defaults = setup.options.as_flat_dict(), TrainOptions().as_flat_dict()
    changed = [name for name in _SWITCHES if flags[name] != defaults[name]]
    if setup.augment != AugmentConfig():
        changed.append("augmentation")
    if run.schedule.optimizer != "SGD":
        changed.append("optimizer")
    if changed:
        name = changed[0].replace("_", "-")
        raise ValueError(f"the PyTorch peer supports the default {name} only: omit the flag or use --sides float32 amp")


def validate(weights: str) -> dict[str, float]:
    """Evaluate EMA weights (.npz, name -> values) on the val split.

    Raises:
        ValueError: the weights do not fit the network.
    """
    average = _Session.run.state.average
    with np.load(weights, allow_pickle=False) as arrays:
        values = {name: flow.tensor(arrays[name]) for name in arrays.files}
    try:
        average.load_state_dict(values, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{weights}: does not fit the network: {error}") from None
    _, _, map50, map50_95, *losses = result_values(_Session.validation.measure())
    return {"map50": map50, "map": map50_95, "val_loss": sum(losses)}


if __name__ == "__main__":
    serve({"describe": describe, "validate": validate})
