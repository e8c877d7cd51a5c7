"""Hyper-parameter evolution: each generation trains once with a mutation of the best hyper-parameters so far.

Genes, selection and mutation are those of YOLOv5. Unlike in YOLOv5, which seeds by the clock, random numbers depend on
(seed, generation), so that an interrupted evolution continues exactly.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from graph_train.metrics.average_precision import fitness
from graph_train.runs.results_csv import VALIDATION_KEYS
from graph_train.settings.hyperparameters import Hyperparameters
from kernels.host.files import write_atomically

_LOG = logging.getLogger(__name__)
_Array = npt.NDArray[np.float64]
CSV_NAME, YAML_NAME = "evolve.csv", "hyp_evolve.yaml"
_PARENTS = 5
_MUTATION_CHANCE, _MUTATION_SIGMA = 0.8, 0.2
_DEFAULT_ANCHORS = 3.0


class Gene(NamedTuple):
    """Strength of the mutation of a value (0 disables it), and its range."""

    gain: float
    low: float
    high: float


GENES: Mapping[str, Gene] = {
    "lr0": Gene(1, 1e-5, 1e-1),
    "lrf": Gene(1, 0.01, 1.0),
    "momentum": Gene(0.3, 0.6, 0.98),
    "weight_decay": Gene(1, 0.0, 0.001),
    "warmup_epochs": Gene(1, 0.0, 5.0),
    "warmup_momentum": Gene(1, 0.0, 0.95),
    "warmup_bias_lr": Gene(1, 0.0, 0.2),
    "box": Gene(1, 0.02, 0.2),
    "cls": Gene(1, 0.2, 4.0),
    "cls_pw": Gene(1, 0.5, 2.0),
    "obj": Gene(1, 0.2, 4.0),
    "obj_pw": Gene(1, 0.5, 2.0),
    "iou_t": Gene(0, 0.1, 0.7),
    "anchor_t": Gene(1, 2.0, 8.0),
    "anchors": Gene(2, 2.0, 10.0),
    "fl_gamma": Gene(0, 0.0, 2.0),
    "hsv_h": Gene(1, 0.0, 0.1),
    "hsv_s": Gene(1, 0.0, 0.9),
    "hsv_v": Gene(1, 0.0, 0.9),
    "degrees": Gene(1, 0.0, 45.0),
    "translate": Gene(1, 0.0, 0.9),
    "scale": Gene(1, 0.0, 0.9),
    "shear": Gene(1, 0.0, 10.0),
    "perspective": Gene(0, 0.0, 0.001),
    "flipud": Gene(1, 0.0, 1.0),
    "fliplr": Gene(0, 0.0, 1.0),
    "mosaic": Gene(1, 0.0, 1.0),
    "mixup": Gene(1, 0.0, 1.0),
    "copy_paste": Gene(1, 0.0, 1.0),
}
"""Genes of YOLOv5's evolution by hyper-parameter."""


def gene_names(*, tune_anchors: bool) -> tuple[str, ...]:
    """Return the columns of `evolve.csv` after the results; `anchors` is last, and absent with --noautoanchor."""
    names = tuple(part.name for part in fields(Hyperparameters) if part.name != "anchors")
    return (*names, "anchors") if tune_anchors else names


def constrained(values: Mapping[str, float]) -> dict[str, float]:
    """Clip values to the ranges of their genes, and round them to 5 decimals and to the table's 5 digits."""
    limited = {name: min(max(value, GENES[name].low), GENES[name].high) for name, value in values.items()}
    return {name: float(f"{round(value, 5):.5g}") for name, value in limited.items()}


def choose_parent(table: _Array, rng: np.random.Generator) -> _Array:
    """Draw the row to mutate from the five best rows of `table` (generations, columns), weighted by fitness."""
    order = np.argsort(-fitness(table), kind="stable")[:_PARENTS]
    best = table[order]
    weights = fitness(best) - fitness(best).min() + 1e-6  # so that their sum is above 0
    weights /= weights.sum()
    return best[rng.choice(len(best), p=weights)]


def mutation_factors(gains: _Array, rng: np.random.Generator) -> _Array:
    """Draw factors in [0.3, 3] for the genes, of which at least one is not 1.

    Raises:
        ValueError: all gains are 0.
    """
    if not gains.any():
        raise ValueError("all mutation gains are 0")
    factors = np.ones_like(gains)
    while (factors == 1).all():
        chosen = rng.random(len(gains)) < _MUTATION_CHANCE
        noise = rng.standard_normal(len(gains)) * rng.random()
        factors = (gains * chosen * noise * _MUTATION_SIGMA + 1).clip(0.3, 3.0)
    return factors


class EvolveTable:
    """`evolve.csv`: results and genes of each generation, in YOLOv5's format."""

    def __init__(self, folder: Path, genes: Sequence[str]) -> None:
        """Read the table in a folder, if there is one; drop an incomplete last row.

        Raises:
            ValueError: the file has other columns, for instance because --noautoanchor differs.
        """
        self._path, self._yaml = folder / CSV_NAME, folder / YAML_NAME
        self.genes = tuple(genes)
        self._header = ",".join(f"{name:>20s}" for name in (*VALIDATION_KEYS, *self.genes))
        self.rows: _Array = np.empty((0, len(VALIDATION_KEYS) + len(self.genes)))
        if self._path.exists():
            self._read()

    def _read(self) -> None:
        # Anything after the last line break is incomplete.
        lines = self._path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0].splitlines()
        if lines and [cell.strip() for cell in lines[0].split(",")] != [*VALIDATION_KEYS, *self.genes]:
            raise ValueError(
                f"{self._path}:1: has the columns of another evolution; use another --name, or --noautoanchor as before"
            )
        width, rows = self.rows.shape[1], []
        for number, line in enumerate(lines[1:], start=2):
            try:
                rows.append([float(cell) for cell in line.split(",")])
            except ValueError:
                rows.append([])
            if len(rows[-1]) != width:
                raise ValueError(f"{self._path}:{number}: not a row of {width} numbers; fix or remove the file")
        self.rows = np.array(rows).reshape(-1, width)
        write_atomically(self._path, "\n".join([self._header, *map(_csv_line, self.rows.tolist()), ""]))

    def append(self, results: Sequence[float], values: Mapping[str, float]) -> None:
        """Append a generation to `evolve.csv`, synced to the disk, and rewrite `hyp_evolve.yaml`."""
        row = [*results, *(values[name] for name in self.genes)]
        line = _csv_line(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{self._header}\n{line}\n" if file.tell() == 0 else f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        # Parsed from the written line, so that a resumed evolution has the same digits.
        self.rows = np.vstack([self.rows, [float(cell) for cell in line.split(",")]])
        self._write_best()

    def scored(self) -> _Array:
        """Return the rows with non-finite results, of trainings that diverged, replaced by 0."""
        rows = self.rows.copy()
        results = rows[:, : len(VALIDATION_KEYS)]
        results[~np.isfinite(results)] = 0.0
        return rows

    @property
    def best(self) -> int:
        """The first generation with the highest fitness."""
        return int(np.argmax(fitness(self.scored())))

    def best_values(self) -> dict[str, float]:
        """Return the hyper-parameters of the best generation."""
        return dict(zip(self.genes, self.rows[self.best, len(VALIDATION_KEYS) :].tolist(), strict=True))

    def _write_best(self) -> None:
        results = self.rows[self.best, : len(VALIDATION_KEYS)]
        comment = [
            "# Hyper-parameter evolution: the best generation",
            f"# Best generation: {self.best}",
            f"# Last generation: {len(self.rows) - 1}",
            "# " + ", ".join(f"{name:>20s}" for name in VALIDATION_KEYS),
            "# " + ", ".join(f"{value:>20.5g}" for value in results),
            "",
        ]
        body = yaml.safe_dump(self.best_values(), sort_keys=False)
        write_atomically(self._yaml, "\n".join([*comment, body]))


def _csv_line(row: Sequence[float]) -> str:
    return ",".join(f"{value:20.5g}" for value in row)


def next_generation(table: EvolveTable, base: Hyperparameters, *, seed: int) -> dict[str, float]:
    """Return the next values to train: those of `base` first, then mutations, determined by (table, seed)."""
    generation = len(table.rows)
    if not generation:
        start = base.as_dict() | {"anchors": _DEFAULT_ANCHORS if base.anchors is None else base.anchors}
        return constrained({name: start[name] for name in table.genes})
    # The constant separates this random stream from others with the same seed.
    rng = np.random.default_rng((seed, generation, 0xE501))
    parent = choose_parent(table.scored(), rng)[len(VALIDATION_KEYS) :]
    factors = mutation_factors(np.array([GENES[name].gain for name in table.genes]), rng)
    return constrained(dict(zip(table.genes, (parent * factors).tolist(), strict=True)))


@dataclass(frozen=True)
class EvolutionResult:
    """The result of an evolution."""

    hyp: Hyperparameters
    best_generation: int
    fitness: float
    yaml_file: Path


def evolve(
    base: Hyperparameters,
    train: Callable[[Hyperparameters, int], Sequence[float]],
    folder: Path,
    *,
    generations: int,
    seed: int,
    tune_anchors: bool = True,
    plot: bool = True,
    on_generation: Callable[[], object] = lambda: None,
) -> EvolutionResult:
    """Evolve hyper-parameters until `folder` has the results of `generations` trainings, including earlier ones.

    Args:
        base: hyper-parameters of generation 0.
        train: trains a generation with the given hyper-parameters; returns `VALIDATION_KEYS` of its last epoch.
        folder: folder for `evolve.csv`, `hyp_evolve.yaml` and `evolve.png`.
        generations: number of trainings, including earlier ones.
        seed: together with the number of a generation, the seed of its random numbers.
        tune_anchors: whether to evolve the number of anchors; False with --noautoanchor.
        plot: whether to draw `evolve.png` at the end.
        on_generation: called after each generation is saved.

    Raises:
        ValueError: `generations` is below 1, or the folder contains a different evolution.
    """
    if generations < 1:
        raise ValueError(f"evolve={generations}: must be at least 1 generation")
    table = EvolveTable(folder, gene_names(tune_anchors=tune_anchors))
    if len(table.rows):
        _LOG.info("Continuing the evolution after %d generations", len(table.rows))
    while len(table.rows) < generations:
        values = next_generation(table, base, seed=seed)
        table.append(train(_hyperparameters(values), len(table.rows)), values)
        on_generation()
        best = fitness(table.scored()[table.best])
        text = "Generation %d of %d: fitness %.5g (best %.5g in generation %d)"
        _LOG.info(text, len(table.rows), generations, fitness(table.rows[-1]), best, table.best + 1)
    if plot:
        _plot(table, folder / "evolve.png")
    return EvolutionResult(
        hyp=_hyperparameters(table.best_values()),
        best_generation=table.best,
        fitness=float(fitness(table.scored()[table.best])),
        yaml_file=folder / YAML_NAME,
    )


def _plot(table: EvolveTable, file: Path) -> None:
    from graph_train.plots.results import plot_evolution

    rows = table.scored()
    plot_evolution(table.genes, rows[:, len(VALIDATION_KEYS) :], fitness(rows), file)


def _hyperparameters(values: Mapping[str, float]) -> Hyperparameters:
    return replace(Hyperparameters(), **values)
