"""The schedule against numbers computed by hand and every iteration of the reference's recorded trainings."""

import json
from pathlib import Path

import numpy as np
import pytest

from graph_train.engine.schedule import (
    EMA_DECAY,
    EMA_TAU,
    Schedule,
    check_image_size,
    ema_decay,
    scaled_weight_decay,
    warmup_iterations,
)
from graph_train.settings.hyperparameters import Hyperparameters


def test_warmup_known_values() -> None:
    # 200 warm-up iterations, nominal batch 64 in batches of 16, epoch 0: the factor is 1
    schedule = Schedule(epochs=10, batches_per_epoch=1000, batch_size=16, warmup=200)
    half = schedule.at(100, 0)
    assert half.learning_rates == pytest.approx((0.055, 0.005, 0.005))
    assert half.momentum == pytest.approx((0.8 + 0.937) / 2)
    assert schedule.accumulate(100) == 2  # 2.5 rounds to the even neighbour
    assert schedule.at(200, 0).learning_rates == pytest.approx((0.01, 0.01, 0.01))


def test_huge_warmup_is_clipped_to_run() -> None:
    long, whole = (Schedule(epochs=2, batches_per_epoch=50, batch_size=16, warmup=w) for w in (10**10, 10**9))
    assert [long.at(i, i // 50).update for i in range(100)] == [whole.at(i, i // 50).update for i in range(100)]
    assert long.at(99, 1).update


def test_epoch_after_warmup_uses_previous_factor() -> None:
    schedule = Schedule(epochs=10, batches_per_epoch=80, batch_size=64, warmup=100, lrf=0.0)
    assert schedule.at(100, 1).lr_weight == pytest.approx(0.009)
    assert schedule.at(159, 1).lr_weight == pytest.approx(0.009)  # warm-up ended in this epoch
    assert schedule.at(160, 2).lr_weight == pytest.approx(0.009)
    assert schedule.at(240, 3).lr_weight == pytest.approx(0.008)


def test_accumulation_crosses_epochs() -> None:
    schedule = Schedule(epochs=9, batches_per_epoch=5, batch_size=16, warmup=1)
    pattern = [schedule.at(i, i // 5).update for i in range(12)]
    # accumulate is 1, then 4: updates at 0, 4, 8
    assert [i for i, updated in enumerate(pattern) if updated] == [0, 4, 8]


@pytest.mark.parametrize("batch_size", [1, 5, 24, 40, 64, 100])
def test_update_steps_match_reference_loop(batch_size: int) -> None:
    schedule = Schedule(epochs=3, batches_per_epoch=150, batch_size=batch_size, warmup=100)
    last = -1
    for i in range(450):
        stepped = i - last >= schedule.accumulate(i)
        last = i if stepped else last
        assert schedule.at(i, i // 150).update == stepped, i


def test_long_warmup_is_not_walked_through_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(epochs=3, batches_per_epoch=20_000, batch_size=2, warmup=60_000)
    real, asked = Schedule.accumulate, []

    def accumulate(self: Schedule, iteration: int) -> int:
        asked.append(iteration)
        return real(self, iteration)

    monkeypatch.setattr(Schedule, "accumulate", accumulate)
    assert schedule.at(0, 0).update
    assert len(asked) < 60_000 / 4


@pytest.mark.parametrize(
    ("batch_size", "accumulates"), [(16, True), (42, True), (43, False), (64, False), (100, False)]
)
def test_accumulates_flag(batch_size: int, accumulates: bool) -> None:
    schedule = Schedule(epochs=3, batches_per_epoch=150, batch_size=batch_size, warmup=100)
    assert schedule.accumulates == accumulates
    assert any(not schedule.at(i, i // 150).update for i in range(450)) == accumulates


def test_adam_momentum_is_not_warmed_up() -> None:
    hyp = Hyperparameters(momentum=0.9)
    schedule = Schedule.from_hyperparameters(hyp, epochs=3, batches_per_epoch=10, batch_size=64, optimizer="AdamW")
    assert schedule.at(0, 0).momentum == 0.9
    assert schedule.warmup == 100


def test_small_formulas() -> None:
    assert warmup_iterations(3.0, 10) == 100
    assert warmup_iterations(0.5, 777) == 388  # 388.5 to even
    assert scaled_weight_decay(0.0005, 24) == pytest.approx(0.0005 * 24 * 3 / 64)
    assert check_image_size(641, 32, 64) == 672
    assert check_image_size(20, 32, 64) == 64
    assert ema_decay(2000) == pytest.approx(0.9999 * (1 - np.exp(-1)))
    with pytest.raises(ValueError, match="stride 0"):
        check_image_size(640, 0)


def test_run_without_batches_raises() -> None:
    with pytest.raises(ValueError, match="batches_per_epoch=0"):
        Schedule(epochs=3, batches_per_epoch=0, batch_size=16, warmup=100)


def test_schedule_matches_recorded_trainings(goldens: Path) -> None:
    files = [path for path in sorted(goldens.glob("train_*.npz")) if "step_lr" in np.load(path)]
    assert files
    for path in files:
        z = np.load(path)
        case, hyp = json.loads(str(z["case_json"])), json.loads(str(z["hyp_raw_json"]))
        schedule = Schedule(
            epochs=case["epochs"],
            batches_per_epoch=case["nb"],
            batch_size=case["batch_size"],
            warmup=case["nw"],
            lr0=hyp["lr0"],
            lrf=hyp["lrf"],
            momentum=hyp["momentum"],
            warmup_momentum=hyp["warmup_momentum"],
            warmup_bias_lr=hyp["warmup_bias_lr"],
            weight_decay=hyp["weight_decay"],
            optimizer=case["opt_name"],
            cosine=case["cos_lr"],
            nominal_batch=case["nbs"],
        )
        steps = [schedule.at(int(i), int(e)) for i, e in zip(z["step_ni"], z["step_epoch"], strict=True)]
        stepped = z["step_stepped"].astype(bool)
        assert [s.update for s in steps] == stepped.tolist(), path.name
        assert [schedule.accumulate(int(i)) for i in z["step_ni"]] == z["step_accumulate"].tolist(), path.name
        np.testing.assert_allclose([s.learning_rates for s in steps], z["step_lr"], rtol=1e-9, err_msg=path.name)
        np.testing.assert_allclose([[s.momentum] * 3 for s in steps], z["step_momentum"], rtol=1e-9, err_msg=path.name)
        np.testing.assert_allclose(
            [schedule.weight_decays] * len(steps), z["step_weight_decay"], rtol=1e-9, err_msg=path.name
        )
        assert (case["ema_decay"], case["ema_tau"]) == (EMA_DECAY, EMA_TAU)
        decays = [ema_decay(update + 1) for update in range(stepped.sum())]
        np.testing.assert_allclose(decays, z["step_ema_decay"][stepped], rtol=1e-9, err_msg=path.name)
        assert len(decays) == int(z["ema_updates"]), path.name
