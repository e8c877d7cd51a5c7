"""Evolution: known values, the table on disk, and resuming after a kill."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_train.evolution.search import (
    GENES,
    EvolveTable,
    choose_parent,
    constrained,
    evolve,
    gene_names,
    mutation_factors,
)
from graph_train.runs.results_csv import VALIDATION_KEYS
from graph_train.settings.hyperparameters import KNOWN_KEYS, Hyperparameters, load_hyperparameters

_GENES = gene_names(tune_anchors=True)


def _train(hyp: Hyperparameters, generation: int) -> list[float]:
    """Simulate a training whose mAP is best at lr0 = 0.02 and mosaic = 0.5."""
    score = 1 / (1 + abs(np.log(hyp.lr0 / 0.02)) + abs(hyp.mosaic - 0.5))
    return [0.5, 0.5, score, score, 0.1, 0.1, 0.1]


def _rows(*fitnesses: float) -> np.ndarray:
    rows = np.zeros((len(fitnesses), len(VALIDATION_KEYS) + 2))
    rows[:, 2] = rows[:, 3] = fitnesses
    rows[:, -2:] = np.arange(len(fitnesses))[:, None] + [[0, 100]]
    return rows


def test_every_hyperparameter_has_gene() -> None:
    assert set(GENES) == set(KNOWN_KEYS) == set(_GENES)
    assert _GENES[-1] == "anchors"
    assert "anchors" not in gene_names(tune_anchors=False)


def test_constrained_known_values() -> None:
    assert constrained({"lr0": 0.5, "cls_pw": 0.1, "degrees": 12.3456789, "hsv_h": 0.0123456}) == {
        "lr0": 0.1,
        "cls_pw": 0.5,
        "degrees": 12.346,
        "hsv_h": 0.01235,
    }


def test_parent_is_one_of_best_five() -> None:
    rows = _rows(0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.05)
    rng = np.random.default_rng(0)
    drawn = [int(choose_parent(rows, rng)[-2]) for _ in range(2000)]
    assert set(drawn) <= {1, 2, 3, 4, 5}
    # weights are 0.7, 0.3, 0.2, 0.1, 0 (less 1e-6): the best of them in 7 of 13 draws, +- 4 deviations
    assert abs(drawn.count(1) / 2000 - 7 / 13) < 0.045


@given(seed=st.integers(0, 2**32))
def test_mutation_respects_bounds_and_fixed_genes(seed: int) -> None:
    gains = np.array([GENES[name].gain for name in _GENES])
    factors = mutation_factors(gains, np.random.default_rng(seed))
    assert (factors != 1).any()
    assert factors.min() >= 0.3
    assert factors.max() <= 3.0
    assert (factors[gains == 0] == 1).all()


def test_no_mutable_genes_raises() -> None:
    with pytest.raises(ValueError, match="all mutation gains are 0"):
        mutation_factors(np.zeros(3), np.random.default_rng(0))


def test_evolution_improves_and_writes_files(tmp_path: Path) -> None:
    first = _train(Hyperparameters(), 0)[3]
    result = evolve(Hyperparameters(), _train, tmp_path, generations=40, seed=0)
    assert result.fitness > first * 1.2
    assert load_hyperparameters(tmp_path / "hyp_evolve.yaml") == result.hyp
    assert result.hyp.anchors is not None
    lines = (tmp_path / "evolve.csv").read_text().splitlines()
    assert len(lines) == 41
    assert lines[0] == ("%20s," * (7 + 29) % (*VALIDATION_KEYS, *_GENES)).rstrip(",")
    assert f"# Best generation: {result.best_generation}\n" in (tmp_path / "hyp_evolve.yaml").read_text()
    assert (tmp_path / "evolve.png").read_bytes().startswith(b"\x89PNG")


def test_generation_0_uses_initial_hyperparameters(tmp_path: Path) -> None:
    seen: list[Hyperparameters] = []

    def train(hyp: Hyperparameters, generation: int) -> list[float]:
        seen.append(hyp)
        return _train(hyp, generation)

    base = Hyperparameters(lr0=0.0123)
    evolve(base, train, tmp_path, generations=2, seed=0, plot=False, tune_anchors=False)
    assert seen[0] == base
    assert seen[1] != base
    assert seen[1].anchors is None
    assert seen[1].fliplr == base.fliplr  # a gene without gain


@pytest.mark.parametrize("torn", ["", "  0.5,  0.5", "0.5,x", ",".join(["0.5"] * (7 + len(_GENES)))])
def test_resumed_evolution_matches_uninterrupted(tmp_path: Path, torn: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    evolve(Hyperparameters(), _train, whole, generations=12, seed=3, plot=False)

    def interrupted_train(hyp: Hyperparameters, generation: int) -> list[float]:
        if generation == 7:
            raise RuntimeError("killed")
        return _train(hyp, generation)

    with pytest.raises(RuntimeError, match="killed"):
        evolve(Hyperparameters(), interrupted_train, cut, generations=12, seed=3, plot=False)
    with (cut / "evolve.csv").open("a") as file:
        file.write(torn)
    evolve(Hyperparameters(), _train, cut, generations=12, seed=3, plot=False)
    assert (cut / "evolve.csv").read_bytes() == (whole / "evolve.csv").read_bytes()
    assert (cut / "hyp_evolve.yaml").read_bytes() == (whole / "hyp_evolve.yaml").read_bytes()


def test_diverged_generation_has_fitness_0(tmp_path: Path) -> None:
    def diverges_once(hyp: Hyperparameters, generation: int) -> list[float]:
        return [float("nan")] * 7 if generation == 0 else _train(hyp, generation)

    result = evolve(Hyperparameters(), diverges_once, tmp_path, generations=4, seed=0, plot=False)
    assert result.best_generation > 0
    assert np.isnan(EvolveTable(tmp_path, _GENES).rows[0, 0])


def test_table_of_other_evolution_raises(tmp_path: Path) -> None:
    evolve(Hyperparameters(), _train, tmp_path, generations=1, seed=0, plot=False)
    with pytest.raises(ValueError, match="columns of another evolution"):
        evolve(Hyperparameters(), _train, tmp_path, generations=2, seed=0, plot=False, tune_anchors=False)
    with pytest.raises(ValueError, match="evolve=0"):
        evolve(Hyperparameters(), _train, tmp_path, generations=0, seed=0, plot=False)


def test_truncated_first_row_restarts_table(tmp_path: Path) -> None:
    (tmp_path / "evolve.csv").write_text("   metrics/precision,      metr")
    assert len(EvolveTable(tmp_path, _GENES).rows) == 0


@pytest.mark.parametrize("row", [b"0.5,x\n", b"\xff\xfe\n"])
def test_broken_row_is_reported_with_line(tmp_path: Path, row: bytes) -> None:
    evolve(Hyperparameters(), _train, tmp_path, generations=2, seed=0, plot=False)
    with (tmp_path / "evolve.csv").open("ab") as file:
        file.write(row)
    with pytest.raises(ValueError, match=r"evolve\.csv:4: not a row of"):
        EvolveTable(tmp_path, _GENES)
