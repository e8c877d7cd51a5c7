"""`--batch-size -1`: known values, and measurements of real runs in graph and eager mode."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from graph_train.settings.hyperparameters import load_hyperparameters
from graph_train.settings.train_options import options_from_flags
from graph_train.training.auto_batch import DEFAULT_BATCH, MAX_AUTO_BATCH, MemoryModel, _choose, fit, with_batch_size
from graph_train.training.batch_memory import PhaseMemory, RunFacts
from tests.graph_train.training_runner import TrainingRunner

SEPARATE = RunFacts(train_images=100, val_images=1000, val_shapes=2, graphs_have_own_memory=True, sizes=1.0)
SHARED = replace(SEPARATE, graphs_have_own_memory=False)
STEPS = [PhaseMemory("step", 2, 700), PhaseMemory("step", 4, 900), PhaseMemory("step", 8, 1300)]
MEASURED = [PhaseMemory("start", 0, 5000), PhaseMemory("data", 8, 80), *STEPS, PhaseMemory("validation", 8, 240)]


def test_memory_line_fit() -> None:
    model = fit(SHARED, MEASURED)
    assert (model.start, model.per_image_data, model.per_image_validated) == (5000, 10, 30)
    assert model.per_image_trained == pytest.approx(100)
    assert model.step == pytest.approx(500)


def test_memory_need_known_values() -> None:
    # 30 images: start, made, one step, 60 validated
    assert fit(SHARED, MEASURED).required_bytes(30) == pytest.approx(5000 + 300 + 3500 + 60 * 30)
    # two graphs of 30, one of the last 10, validation graphs of 60 for two shapes and a rest
    assert fit(SEPARATE, MEASURED).required_bytes(30) == pytest.approx(5000 + 300 + 2 * 3500 + 1500 + 180 * 30)
    # never more validation images than there are
    few = replace(SEPARATE, val_images=7)
    assert fit(few, MEASURED).required_bytes(30) == pytest.approx(5000 + 300 + 2 * 3500 + 1500 + 7 * 30)
    # one graph for each size of --multi-scale
    scaled = fit(replace(SEPARATE, sizes=2.5), MEASURED)
    assert scaled.required_bytes(30) == pytest.approx(5000 + 300 + 3.5 * 3500 + 1500 + 180 * 30)


def test_largest_batch() -> None:
    model = fit(SHARED, MEASURED)
    assert model.largest_batch(model.required_bytes(17), multiple=1) == 17
    assert model.largest_batch(model.required_bytes(17) - 1, multiple=1) == 16
    assert model.largest_batch(model.required_bytes(17), multiple=4) == 16
    assert model.largest_batch(1e12, multiple=1) == 100  # all training images
    assert (
        MemoryModel(replace(SHARED, train_images=9999), 0, 0, 1, 0, 0).largest_batch(1e12, multiple=1) == MAX_AUTO_BATCH
    )
    assert model.largest_batch(5000, multiple=1) == 0


def test_uses_80_percent_of_free_memory(caplog: pytest.LogCaptureFixture) -> None:
    model = fit(SHARED, MEASURED)
    logging.getLogger("graph_train").propagate = True
    with caplog.at_level(logging.INFO, "graph_train"):
        assert _choose(model, int(model.required_bytes(20) / 0.8) + 1, multiple=1) == 20
    assert "of which 80% may be used" in caplog.text
    assert "using --batch-size 20, " in caplog.text


def test_impossible_measurements() -> None:
    with pytest.raises(ValueError, match=r"a batch of 4 needs .* use a smaller --imgsz"):
        _choose(fit(SHARED, MEASURED), 5000, multiple=4)
    with pytest.raises(ValueError, match="only 1 of the measured batches"):
        fit(SHARED, [*MEASURED[:3], MEASURED[-1]])
    flat = [item if item.phase != "step" else replace(item, used=700) for item in MEASURED]
    assert _choose(replace(fit(SHARED, flat), per_image_trained=0.0), 10**9, multiple=1) == DEFAULT_BATCH


@pytest.mark.parametrize("graph", [True, False])
def test_measures_real_run(graph: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = TrainingRunner(tmp_path)
    hyp = runner.hyp(anchors=4)  # the run itself determines these sizes
    options = options_from_flags(**runner.flags(batch_size=-1, imgsz=320, graph=graph, hyp=hyp))
    logging.getLogger("graph_train").propagate = True
    with caplog.at_level(logging.INFO, "graph_train"):
        found = with_batch_size(options, load_hyperparameters(options.optim.hyp))
    assert found.optim.batch_size == 8  # the whole data set
    assert replace(found, optim=options.optim) == options
    # The first layer's output alone is 8 x 160 x 160 floats, 0.8 MB, of which several copies are kept.
    per_image = float(caplog.text.split(" MB per image")[0].rsplit(" ", 1)[1])
    assert 1 < per_image < 200
    assert with_batch_size(found, load_hyperparameters(options.optim.hyp)) is found


def test_failed_measurement_ends_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runner = TrainingRunner(tmp_path)
    options = options_from_flags(**runner.flags(batch_size=-1, freeze=[99]))
    with pytest.raises(ValueError, match="failed, see the message above"):
        with_batch_size(options, load_hyperparameters(options.optim.hyp))
    assert "--freeze 99" in capfd.readouterr().err
