"""A check for every flag of `graph-train`; the table must match the parser."""

import importlib.util
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from graph_train.cli.train import main
from graph_train.engine.precision import MIXED_PRECISION_NOTE
from graph_train.engine.step import EagerStep, GraphStep
from graph_train.hooks.callbacks import Callbacks
from graph_train.launch.train import train
from graph_train.runs.checkpoint import load_checkpoint, save_checkpoint
from graph_train.settings.train_options import flag_fields
from kernels.ops.bbox_iou.function import bbox_iou, bbox_iou_reference
from kernels.plugin import is_loaded
from kernels.runtime import flow
from models.weights import load_weights
from tests.graph_train.tiny import TINY, random_batch, tiny_schedule, tiny_step
from tests.graph_train.training_runner import TRAIN_IMAGES, FinishedRun, TrainingRunner, write_data_set

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def baseline(runner: TrainingRunner) -> FinishedRun:
    """Return a run of two epochs with no special flags."""
    return runner.train(epochs=2, save_period=1, seed=3)


def arrays(path: Path) -> Mapping[str, np.ndarray]:
    return load_checkpoint(path).arrays


def parameters(run: object) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in run.state.network.named_parameters()}  # type: ignore[attr-defined]


# --- network and optimizer -------------------------------------------------------------------------------------------


def weights(runner: TrainingRunner, baseline: FinishedRun) -> None:
    best = baseline.folder / "weights" / "best.safetensors"
    run = runner.assemble(weights=best)
    for name, value in parameters(run).items():
        np.testing.assert_array_equal(value, load_weights(best).arrays[name])
    run.close()


def cfg(runner: TrainingRunner, baseline: FinishedRun) -> None:
    wide = runner.root / "wide.yaml"
    wide.write_text(yaml.safe_dump({**TINY, "width_multiple": 2.0}))
    run = runner.assemble(cfg=wide)
    assert parameters(run)["model.0.conv.weight"].shape == (16, 3, 3, 3)
    run.close()


def freeze(runner: TrainingRunner, baseline: FinishedRun) -> None:
    start = parameters(runner.assemble())
    for value, frozen in ((3, (0, 1, 2)), ([1, 4], (1, 4))):
        trained = arrays(runner.train(freeze=value).folder / "weights" / "last.safetensors")
        for name, before in start.items():
            kept = np.array_equal(trained[f"model/{name}"], before)
            assert kept == (int(name.split(".")[1]) in frozen), name
    with pytest.raises(ValueError, match="--freeze 3 10: the network has only layers 0 to 9"):
        runner.assemble(freeze=[3, 10])


def noautoanchor(runner: TrainingRunner, baseline: FinishedRun) -> None:
    far = runner.root / "far.yaml"
    far.write_text(
        yaml.safe_dump({**TINY, "anchors": [[300, 300, 310, 320, 330, 340], [400, 400, 410, 420, 430, 440]]})
    )
    kept, fitted = runner.assemble(cfg=far, noautoanchor=True), runner.assemble(cfg=far)
    assert kept.state.network.anchors_cells[0, 0, 0] == 300 / 8
    assert fitted.state.network.anchors_cells.max() < 64 / 8
    with pytest.raises(ValueError, match="anchors: 4 per level are configured, but --noautoanchor disables"):
        runner.assemble(hyp=runner.hyp(anchors=4), noautoanchor=True)


# --- data ----------------------------------------------------------------------------------------------------------


def data(runner: TrainingRunner, baseline: FinishedRun) -> None:
    other = write_data_set(runner.root / "other")
    run = runner.assemble(data=other)
    assert {path.parents[2].name for path in run.setup.data.train.paths} == {"other"}
    run.close()


def imgsz(runner: TrainingRunner, baseline: FinishedRun) -> None:
    # the network's stride is 16, but sides are multiples of 32 at least, as in YOLOv5
    assert runner.train(imgsz=80).recorded.shapes == [(4, 3, 96, 96)] * 2
    assert runner.assemble(imgsz=97).setup.image_px == 128


def rect(runner: TrainingRunner, baseline: FinishedRun) -> None:
    # 96x64 px files: the long side becomes 128, the short one 86 and then a multiple of 32
    assert runner.train(rect=True, imgsz=128).recorded.shapes == [(4, 3, 96, 128)] * 2


def cache(runner: TrainingRunner, baseline: FinishedRun) -> None:
    for kind in ("", "ram"):
        path = write_data_set(runner.root / f"cached{kind}")
        run = runner.assemble(data=path, cache=kind)
        shutil.rmtree(path.parent / "images")
        if kind:
            assert sum(len(batch.paths) for batch in run.train_pipeline.epoch(0)) == TRAIN_IMAGES
        else:
            with pytest.raises(OSError):
                next(iter(run.train_pipeline.epoch(0)))
        run.close()


def image_weights(runner: TrainingRunner, baseline: FinishedRun) -> None:
    # The image without labels has no weight: it is never drawn, while a plain epoch shows every image.
    assert f"{TRAIN_IMAGES - 1}.jpg" in baseline.recorded.files
    assert f"{TRAIN_IMAGES - 1}.jpg" not in runner.train(image_weights=True, epochs=3).recorded.files


def multi_scale(runner: TrainingRunner, baseline: FinishedRun) -> None:
    sides = {shape[2] for shape in runner.train(multi_scale=True, epochs=3).recorded.shapes}
    assert len(sides) > 1
    assert sides <= {32, 48, 64, 80, 96}
    assert {shape[2] for shape in baseline.recorded.shapes} == {64}


def single_cls(runner: TrainingRunner, baseline: FinishedRun) -> None:
    run = runner.assemble(single_cls=True)
    assert run.state.network.num_classes == 1
    assert {float(row[0]) for rows in run.setup.data.train.labels for row in rows} == {0.0}
    run.close()


def quad(runner: TrainingRunner, baseline: FinishedRun) -> None:
    assert runner.train(quad=True).recorded.shapes == [(1, 3, 128, 128)] * 2
    assert runner.assemble(quad=True).step._config.loss_factor == 4


def test_loss_factor_multiplies_gradient() -> None:
    images, labels = random_batch(0, side=64, labels=5)
    norms = []
    for factor in (1.0, 4.0):
        step = tiny_step(EagerStep)
        step._config = replace(step._config, loss_factor=factor)
        result = step(flow.tensor(images), flow.tensor(labels), replace(tiny_schedule().at(0, 0), update=True))
        norms.append(result.gradient_norm)
    assert norms[1] == 4 * norms[0]  # a power of two changes no digit


def workers(runner: TrainingRunner, baseline: FinishedRun) -> None:
    assert runner.assemble(workers=1).setup.threads == 1
    assert runner.assemble(workers=0).setup.threads == 1
    assert runner.train(workers=1, seed=3, stop_after=2).recorded.losses == baseline.recorded.losses[:2]


def strict(runner: TrainingRunner, baseline: FinishedRun) -> None:
    path = write_data_set(runner.root / "flawed")
    with (path.parent / "labels/train/0.txt").open("a") as file:
        file.write("0 0.5 0.5 three\n")
    finished = runner.train(data=path)
    assert "0.txt:2: error" in (finished.folder / "problems.txt").read_text()
    assert "problems.txt" not in baseline.names
    with pytest.raises(ValueError, match=r"0\.txt"):
        runner.assemble(data=path, strict=True)


# --- schedule --------------------------------------------------------------------------------------------------------


def hyp(runner: TrainingRunner, baseline: FinishedRun) -> None:
    finished = runner.train(hyp=runner.hyp(warmup_bias_lr=0.25, fliplr=0.0))
    assert yaml.safe_load((finished.folder / "hyp.yaml").read_text())["fliplr"] == 0.0
    # iteration 1 of 100 of the warm-up, from 0.25 down to lr0 = 0.01
    assert finished.rows[0]["x/lr0"] == pytest.approx(0.25 - 0.24 / 100, rel=1e-4)


def epochs(runner: TrainingRunner, baseline: FinishedRun) -> None:
    assert [row["epoch"] for row in baseline.rows] == [0, 1]


def batch_size(runner: TrainingRunner, baseline: FinishedRun) -> None:
    finished = runner.train(batch_size=3)
    assert [shape[0] for shape in finished.recorded.shapes] == [3, 3, 2]
    found = runner.train(batch_size=-1, imgsz=128)
    chosen = yaml.safe_load((found.folder / "opt.yaml").read_text())["batch_size"]
    assert f"--batch-size {chosen}" in found.log
    assert found.recorded.shapes[0][0] == min(chosen, TRAIN_IMAGES)


def optimizer(runner: TrainingRunner, baseline: FinishedRun) -> None:
    moments = {}
    for name in ("SGD", "Adam", "AdamW"):
        run = runner.assemble(optimizer=name)
        moments[name] = sum(key.startswith("second_moment/") for key in run.state.arrays())
        assert run.state.rule == name.lower()
        run.close()
    assert moments["SGD"] == 0
    assert moments["Adam"] == moments["AdamW"] == len(run.state.trained)


def cos_lr(runner: TrainingRunner, baseline: FinishedRun) -> None:
    # three quarters through: a line has fallen to 0.2575, a cosine to 0.01 + 0.99 * (1 + cos(3 pi / 4)) / 2
    assert runner.assemble(epochs=8).schedule.epoch_factor(6) == pytest.approx(0.2575)
    assert runner.assemble(epochs=8, cos_lr=True).schedule.epoch_factor(6) == pytest.approx(0.154982, abs=1e-6)


def label_smoothing(runner: TrainingRunner, baseline: FinishedRun) -> None:
    smooth = runner.train(label_smoothing=0.2, seed=3, stop_after=1).recorded.losses[0]
    sharp = baseline.recorded.losses[0]
    assert smooth[:2] == sharp[:2]
    assert smooth[2] != sharp[2]


def patience(runner: TrainingRunner, baseline: FinishedRun) -> None:
    """Check a run whose first epoch has the best fitness."""
    interrupted = runner.train(patience=2, epochs=9, stop_after=3)
    last = interrupted.folder / "weights" / "last.safetensors"
    checkpoint = load_checkpoint(last)
    assert checkpoint.header["cursor"]["next_batch"] == 1
    header = {**checkpoint.header, "early_stopping": {"best_fitness": 0.99, "best_epoch": 0}}
    save_checkpoint(last, replace(checkpoint, header=header))
    ended = runner.train_as_given(resume=interrupted.folder)
    assert [row["epoch"] for row in ended.rows] == [0, 1, 2]
    assert "Stopping early: no improvement since epoch 0 (--patience 2)" in ended.log


def sync_bn(runner: TrainingRunner, baseline: FinishedRun) -> None:
    assert "--sync-bn: has no effect with a single process" in runner.train(sync_bn=True, stop_after=1).log
    assert "--sync-bn" not in baseline.log


def seed(runner: TrainingRunner, baseline: FinishedRun) -> None:
    same, other = runner.train(epochs=2, seed=3), runner.train(epochs=1, seed=4)
    assert same.rows == baseline.rows
    assert other.recorded.losses[0] != baseline.recorded.losses[0]


def evolve(runner: TrainingRunner, baseline: FinishedRun) -> None:
    finished = runner.train(evolve=2, exist_ok=True, name="evolved")
    assert len((finished.folder / "evolve.csv").read_text().splitlines()) == 1 + 2
    assert {"evolve.csv", "hyp_evolve.yaml", "opt.yaml"} <= finished.names
    assert not any(name.endswith((".safetensors", ".png")) for name in finished.names)
    table = (finished.folder / "evolve.csv").read_bytes()
    # The same command continues; nothing is left to do.
    assert runner.train(evolve=2, exist_ok=True, name="evolved").result == finished.result
    assert (finished.folder / "evolve.csv").read_bytes() == table
    callbacks = Callbacks()
    callbacks.register_action("on_train_start", callback=print)
    with pytest.raises(ValueError, match=r"callbacks are not supported with --evolve \(on_train_start\)"):
        train(callbacks=callbacks, **runner.flags(evolve=2))


# --- engine --------------------------------------------------------------------------------------------------------


def graph(runner: TrainingRunner, baseline: FinishedRun) -> None:
    assert isinstance(runner.assemble(graph=True).step, GraphStep)
    assert isinstance(runner.assemble(graph=False).step, EagerStep)


def amp(runner: TrainingRunner, baseline: FinishedRun) -> None:
    if not is_loaded():
        with pytest.raises(ValueError, match="--amp: mixed precision needs the kernel plugin"):
            runner.assemble(amp=True)
        return
    plain_loss, fast = baseline.recorded.losses[0], runner.train(amp=True, seed=3, stop_after=1)
    assert runner.train(amp=False, seed=3, stop_after=1).recorded.losses[0] == plain_loss
    assert MIXED_PRECISION_NOTE not in baseline.log
    # Processors without fast bfloat16 use float32, and the log says so.
    assert (MIXED_PRECISION_NOTE in fast.log) == (fast.recorded.losses[0] != plain_loss)
    assert (MIXED_PRECISION_NOTE in fast.log) != ("--amp: bfloat16 is no faster" in fast.log)
    np.testing.assert_allclose(fast.recorded.losses[0], plain_loss, rtol=0.05)  # bfloat16 keeps 8 bits


def kernels(runner: TrainingRunner, baseline: FinishedRun) -> None:
    assert f"Kernels: {'plugin' if is_loaded() else 'OneFlow'}" in baseline.log
    if is_loaded():
        with pytest.raises(ValueError, match="'off': the plugin is loaded already"):
            runner.assemble(kernels="off")


def bbox_iou_optim(runner: TrainingRunner, baseline: FinishedRun) -> None:
    for fused, function in ((True, bbox_iou), (False, bbox_iou_reference)):
        run = runner.assemble(bbox_iou_optim=fused)
        assert run.step._module.criterion._bbox_iou is function
        run.close()
    composed = runner.train(bbox_iou_optim=False, seed=3, stop_after=1).recorded.losses[0]
    np.testing.assert_allclose(composed, baseline.recorded.losses[0], rtol=1e-5)  # the order of float32 sums


def device(runner: TrainingRunner, baseline: FinishedRun) -> None:
    assert runner.assemble(device="cpu").setup.device == "cpu"
    for wrong, message in (("99", "--device 99"), ("0,1", "several GPUs"), ("tpu", "--device 'tpu'")):
        with pytest.raises(ValueError, match=message):
            runner.assemble(device=wrong)


def local_rank(runner: TrainingRunner, baseline: FinishedRun) -> None:
    with pytest.raises(ValueError, match="--local_rank 1: reserved for launchers"):
        runner.train(local_rank=1)


# --- run folder ----------------------------------------------------------------------------------------------------


def project(runner: TrainingRunner, baseline: FinishedRun) -> None:
    assert runner.train(project=runner.root / "elsewhere", stop_after=1).folder.parent == runner.root / "elsewhere"


def name(runner: TrainingRunner, baseline: FinishedRun) -> None:
    assert runner.train(name="mine", stop_after=1).folder == runner.root / "runs" / "mine"


def exist_ok(runner: TrainingRunner, baseline: FinishedRun) -> None:
    folders = [runner.train(name="twice", stop_after=1, exist_ok=again).folder.name for again in (False, False, True)]
    assert folders == ["twice", "twice2", "twice"]


def resume(runner: TrainingRunner, baseline: FinishedRun) -> None:
    """Check that a run stopped by a callback within an epoch resumes exactly."""
    stopped = runner.train(epochs=2, save_period=1, seed=3, stop_after=3)
    assert stopped.result.validation is None
    ended = runner.train_as_given(resume=stopped.folder)
    assert "Resuming at epoch 1, batch 1" in ended.log
    assert ended.rows == baseline.rows
    one, two = (arrays(finished.folder / "weights" / "last.safetensors") for finished in (ended, baseline))
    assert [key for key in one if not np.array_equal(one[key], two[key])] == []
    with pytest.raises(ValueError, match=r"--imgsz 96 differs from the saved run \(64\)"):
        runner.train_as_given(resume=stopped.folder, imgsz=96)


def nosave(runner: TrainingRunner, baseline: FinishedRun) -> None:
    finished = runner.train(nosave=True, epochs=2)
    assert finished.recorded.saved == [1]
    assert "last.safetensors" in finished.names
    assert baseline.recorded.saved == [0, 1]


def noval(runner: TrainingRunner, baseline: FinishedRun) -> None:
    first, last = runner.train(noval=True, epochs=2).rows
    assert first["val/obj_loss"] == 0
    assert last["val/obj_loss"] > 0
    # With a patience of 1 any epoch may be the last one, so that it is validated from the second on.
    assert [row["val/obj_loss"] > 0 for row in runner.train(noval=True, epochs=3, patience=1).rows] == [
        False,
        True,
        True,
    ]


def noplots(runner: TrainingRunner, baseline: FinishedRun) -> None:
    pictures = {"labels.jpg", "results.png", "train_batch0.jpg", "val_batch0_pred.jpg", "confusion_matrix.png"}
    assert pictures <= runner.train(noplots=False).names
    assert not any(name.endswith((".png", ".jpg")) for name in baseline.names)


def save_period(runner: TrainingRunner, baseline: FinishedRun) -> None:
    assert {"epoch0.safetensors", "epoch1.safetensors"} <= baseline.names
    odd = runner.train(save_period=2, epochs=3).names
    assert {name for name in odd if name.startswith("epoch")} == {"epoch0.safetensors", "epoch2.safetensors"}


def save_steps(runner: TrainingRunner, baseline: FinishedRun) -> None:
    """Check that a run saved after the first of two batches continues there instead of restarting."""
    finished = runner.train(save_steps=1, keep_saves=9, epochs=2)
    states = {path: load_checkpoint(path).header["cursor"] for path in (finished.folder / "weights").glob("last*")}
    assert max((cursor["epoch"], cursor["next_batch"]) for cursor in states.values()) == (2, 0)
    inside = [path for path, cursor in states.items() if (cursor["epoch"], cursor["next_batch"]) == (0, 1)]
    assert len(inside) == 1  # no other save is in progress when the first one is due
    newest = arrays(finished.folder / "weights" / "last.safetensors")
    resumed = runner.train_as_given(resume=inside[0])
    assert "Resuming at epoch 0, batch 1" in resumed.log
    assert resumed.rows == finished.rows
    again = arrays(resumed.folder / "weights" / "last.safetensors")
    assert all(np.array_equal(value, again[name]) for name, value in newest.items())


def save_minutes(runner: TrainingRunner, baseline: FinishedRun) -> None:
    assert len(list((runner.train(save_minutes=1e-9).folder / "weights").glob("last*"))) == 2
    assert len(list((runner.train(save_minutes=60.0).folder / "weights").glob("last*"))) == 1


def keep_saves(runner: TrainingRunner, baseline: FinishedRun) -> None:
    for kept in (1, 3):
        finished = runner.train(epochs=4, keep_saves=kept)
        found = sorted(path.name for path in (finished.folder / "weights").glob("last*"))
        assert found == ["last.1.safetensors", "last.2.safetensors", "last.safetensors"][-kept:]


def loggers(runner: TrainingRunner, baseline: FinishedRun) -> None:
    def events(finished: FinishedRun) -> list[str]:
        return [name for name in finished.names if name.startswith("events.out.tfevents")]

    assert events(baseline) == []
    assert len(events(runner.train(loggers="csv,tensorboard"))) == 1


# --- table ---------------------------------------------------------------------------------------------------------

_THIS_FILE = "graph_train/settings/test_flags.py"
TESTED_ELSEWHERE = {
    "dist_timeout": "distributed/test_losses.py::test_missing_rank_is_reported_before_slow_setup",
    "debug": f"{_THIS_FILE}::test_debug_shows_traceback",
    "allow_download": "pipelines/data/test_download.py::test_nothing_is_downloaded_without_flag",
    "on_save_error": "graph_train/runs/test_saving.py::test_failing_disk",
    "max_nonfinite": "graph_train/training/test_nonfinite.py::test_diverging_run_ends",
    "bucket": "graph_train/evolution/test_bucket.py::test_evolution_resumes_on_another_machine",
    "entity": f"{_THIS_FILE}::test_wandb_flags",
    "upload_dataset": f"{_THIS_FILE}::test_wandb_flags",
    "bbox_interval": f"{_THIS_FILE}::test_wandb_flags",
    "artifact_alias": "graph_train/settings/test_train_options.py::REJECTED",
}
"""Flags covered by other tests: file below `tests/`, and test name."""
Check = Callable[[TrainingRunner, FinishedRun], None]
CHECKS: dict[str, Check] = {name: globals()[name] for name in flag_fields() if name not in TESTED_ELSEWHERE}
"""For every other flag, the function above with its name; importing this module fails if it is missing."""


def test_every_flag_has_check() -> None:
    assert {*CHECKS, *TESTED_ELSEWHERE} == set(flag_fields())
    for place in TESTED_ELSEWHERE.values():
        file, name = place.split("::")
        assert re.search(rf"^(def )?{name}\b", (TESTS / file).read_text(), re.MULTILINE), place


@pytest.mark.parametrize("flag", CHECKS)
def test_flag(flag: str, runner: TrainingRunner, baseline: FinishedRun) -> None:
    CHECKS[flag](runner, baseline)


def test_debug_shows_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, shown in (([], False), (["--debug"], True)):
        assert main(["--hyp", "nowhere.yaml", *arguments]) == 2
        assert ("Traceback" in capsys.readouterr().err) == shown


def test_ranks_connect_before_oneflow_is_imported(runner: TrainingRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="WORLD_SIZE=2: OneFlow was imported before the ranks have joined"):
        runner.train()


def test_wandb_flags(runner: TrainingRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    finished = runner.train(loggers="wandb", entity="someone", upload_dataset="val", bbox_interval=1)
    (log,) = finished.folder.glob("wandb/offline-run-*/run-*.wandb")
    expected, end = [b"someone", b"_dataset", b"Bounding Box Debugger/Images"], time.monotonic() + 60
    while missing := [text for text in expected if text not in log.read_bytes()]:
        assert time.monotonic() < end, missing  # a process of W&B's writes the file, possibly later
        time.sleep(0.2)
