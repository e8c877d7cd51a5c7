"""Parity of schedules, loss gains, class and image weights and early stopping with `schedules.npz`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.engine import schedule as ours
from graph_train.training.early_stopping import EarlyStopping
from graph_train.training.image_weights import class_weights, epoch_class_weights, image_weights
from models.loss_config import LossConfig
from tests.parity.harness import Mode, Report, Subject

_Vectors = Mapping[str, npt.NDArray[Any]]
_RTOL, _FLOAT32_RTOL = 1e-9, 1e-6


def _check_curves(z: _Vectors, report: Report) -> None:
    for i, (epochs, last) in enumerate(zip(z["lf_epochs"].tolist(), z["lf_lrf"].tolist(), strict=True)):
        for name, curve in (("linear", ours.linear(epochs, last)), ("cosine", ours.one_cycle(1, last, epochs))):
            expected = z[f"lf_{name}_{i}"]
            report.close(f"lf_{name}_{i}", [curve(x) for x in range(len(expected))], expected, rtol=_RTOL)
    wave = ours.one_cycle(*z["one_cycle_args"].tolist())
    report.close("one_cycle", [wave(x) for x in z["one_cycle_x"].tolist()], z["one_cycle_y"], rtol=_RTOL)


def _check_epoch_rates(z: _Vectors, report: Report) -> None:
    for key in (name for name in z if name.startswith("epoch_lr_")):
        found = re.fullmatch(r"epoch_lr_(linear|cosine)_lr(.+)_lrf(.+)_epochs(\d+)", key)
        assert found is not None, key
        shape, lr0, lrf, epochs = found[1], float(found[2]), float(found[3]), int(found[4])
        # One warm-up iteration, so that from epoch 1 the schedule equals the reference's scheduler.
        plan = ours.Schedule(
            epochs, batches_per_epoch=2, batch_size=64, warmup=1, lr0=lr0, lrf=lrf, cosine=shape == "cosine"
        )
        rates = [plan.at(2 * epoch + 1, epoch).lr_weight for epoch in range(len(z[key]))]
        report.close(key, rates, z[key], rtol=_RTOL)


def _check_warmups(z: _Vectors, report: Report) -> None:
    suffix = "_args_nw_nbs_bs_lr0_lrf_epochs_nb"
    for name in (key.removesuffix(suffix) for key in z if key.endswith(suffix)):
        nw, nbs, batch, lr0, lrf, epochs, nb = z[name + suffix].tolist()
        plan = ours.Schedule(int(epochs), int(nb), int(batch), warmup=int(nw), lr0=lr0, lrf=lrf, nominal_batch=int(nbs))
        steps = [plan.at(i, i // int(nb)) for i in range(int(nw) + 1)]
        report.exact(f"{name} accumulate", [plan.accumulate(i) for i in range(int(nw) + 1)], z[f"{name}_accumulate"])
        report.close(f"{name} lr of biases", [s.lr_bias for s in steps], z[f"{name}_lr_bias"], rtol=_RTOL)
        report.close(f"{name} lr of weights", [s.lr_weight for s in steps], z[f"{name}_lr_other"], rtol=_RTOL)
        report.close(f"{name} lr of norms", [s.lr_norm for s in steps], z[f"{name}_lr_other"], rtol=_RTOL)
        report.close(f"{name} momentum", [s.momentum for s in steps], z[f"{name}_momentum"], rtol=_RTOL)
    pairs = z["nw_warmup_epochs_nb"].tolist()
    report.exact("nw", [ours.warmup_iterations(epochs, int(nb)) for epochs, nb in pairs], z["nw"])


def _check_ema(z: _Vectors, report: Report) -> None:
    updates = z["ema_updates"].tolist()
    report.close("ema_decay", [ours.ema_decay(n) for n in updates], z["ema_decay"], rtol=_RTOL)
    decay, tau = z["ema2_decay_tau"].tolist()
    report.close("ema2_decay", [ours.ema_decay(n, decay, tau) for n in updates], z["ema2_decay"], rtol=_RTOL)
    # The averages follow from the recorded ones: each row from the row before it, so the first row cannot be checked.
    model, average = z["ema_run_model"].astype(np.float32), z["ema_run_ema"].astype(np.float32)
    first = int(z["ema_run_start_updates"]) + 2
    rows = []
    for step, (before, now) in enumerate(zip(average[:-1], model[1:], strict=True)):
        keep = ours.ema_decay(first + step)
        rows.append(before * np.float32(keep) + now * np.float32(1 - keep))
    report.close("ema run", rows, average[1:], rtol=_FLOAT32_RTOL, atol=1e-7)


def _check_scalings(z: _Vectors, report: Report) -> None:
    box, cls, obj = z["gain_base_box_cls_obj"].tolist()
    base = LossConfig(box=box, classes=cls, objectness=obj)
    gains = [base.scaled(heads=nl, classes=nc, image_px=px) for nc, px, nl in z["gain_nc_imgsz_nl"].tolist()]
    report.close("loss gains", [(g.box, g.classes, g.objectness) for g in gains], z["gain_box_cls_obj"], rtol=_RTOL)
    batches = z["wd_batch_size"].tolist()
    report.exact("accumulate", [ours.full_accumulate(batch) for batch in batches], z["wd_accumulate"])
    decay = 0.0005  # every shipped set's value; the vectors do not state it
    report.close(
        "weight decay", [ours.scaled_weight_decay(decay, batch) for batch in batches], z["wd_scaled"], rtol=_RTOL
    )
    sizes = [ours.check_image_size(*row) for row in z["check_img_size_in_s_floor"].tolist()]
    report.exact("image sizes", sizes, z["check_img_size_out"])


def _check_weights(z: _Vectors, report: Report) -> None:
    num_classes = int(z["weights_nc"])
    ends = np.cumsum(z["weights_labels_per_image"].astype(int))
    labels = np.split(z["weights_labels"].astype(np.float32), ends[:-1])
    weights = class_weights(labels, num_classes)
    report.close("class weights", weights, z["class_weights"], rtol=_FLOAT32_RTOL)
    report.close("class weights x nc", weights * num_classes, z["class_weights_attached"], rtol=_FLOAT32_RTOL)
    # The reference continues from its float32 weights.
    start = z["class_weights_attached"].astype(np.float64) / num_classes
    with_maps = epoch_class_weights(start, z["weights_maps"].astype(np.float64))
    report.close("class weights with maps", with_maps, z["class_weights_with_maps"], rtol=_FLOAT32_RTOL)
    uniform = image_weights(labels, num_classes, np.ones(num_classes))
    report.close("image weights, uniform", uniform, z["image_weights_uniform"], rtol=_RTOL)
    drawn = image_weights(labels, num_classes, z["class_weights_with_maps"].astype(np.float64))
    report.close("image weights", drawn, z["image_weights"], rtol=_RTOL)


def _check_early_stopping(z: _Vectors, report: Report) -> None:
    stopper = EarlyStopping(int(z["early_patience"]))
    rows = []
    for epoch, fitness in enumerate(z["early_fitness"].tolist()):
        decision = stopper.update(epoch, fitness)
        rows.append((decision.stop, decision.possible_stop, stopper.best_epoch))
    report.exact("early stopping", np.array(rows, np.int64), z["early_stop_possible_best"])


def check(path: Path, report: Report, mode: Mode) -> None:
    """Compare everything in one file; NumPy code, so there is only one mode."""
    z = report.open(path)
    for part in (
        _check_curves,
        _check_epoch_rates,
        _check_warmups,
        _check_ema,
        _check_scalings,
        _check_weights,
        _check_early_stopping,
    ):
        with report.part(part.__name__.removeprefix("_check_")):
            part(z, report)


SUBJECT = Subject(("schedules*.npz",), check, modes=("eager",), information=("ema_run_*_batches",))
