"""Worker of `graph-bench accuracy`: tells PyTorch what `graph-train` would train, and validates what PyTorch trained.

Both come from the trainer's own `assemble`: network, anchors, initial weights, schedule and data are those of the
command with the same flags, and averaged weights are measured by the validation that runs after each of its epochs.
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
    """What `describe` made."""

    run: TrainingRun
    validation: EpochValidation


def describe(folder: str, arguments: Sequence[str]) -> None:
    """Put the run of a command line together and write it for PyTorch: network, weights, data, schedule.

    Args:
        folder: gets the files of `benchmarks.harness.points`.
        arguments: of `graph-train`.
    Raises:
        ValueError: a setting that the PyTorch peer does not have.
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
    """Refuses what PyTorch would train otherwise; its network and loss check themselves."""
    setup = run.setup
    flags, defaults = setup.options.as_flat_dict(), TrainOptions().as_flat_dict()
    changed = [name for name in _SWITCHES if flags[name] != defaults[name]]
    if setup.augment != AugmentConfig():
        changed.append("augmentation")
    if run.schedule.optimizer != "SGD":
        changed.append("optimizer")
    if changed:
        name = changed[0].replace("_", "-")
        raise ValueError(
            f"the PyTorch peer trains with the default {name} only: leave it out, or choose --sides float32 amp"
        )


def validate(weights: str) -> dict[str, float]:
    """Measures averaged weights (.npz, name -> values) on the val split.

    Raises:
        ValueError: they are of another network.
    """
    average = _Session.run.state.average
    with np.load(weights, allow_pickle=False) as arrays:
        values = {name: flow.tensor(arrays[name]) for name in arrays.files}
    try:
        average.load_state_dict(values, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{weights}: not of this network: {error}") from None
    _, _, map50, map50_95, *losses = result_values(_Session.validation.measure())
    return {"map50": map50, "map": map50_95, "val_loss": sum(losses)}


if __name__ == "__main__":
    serve({"describe": describe, "validate": validate})
