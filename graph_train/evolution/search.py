"""Hyper-parameter evolution: each generation trains once with a mutation of the best results so far.

Table of genes, choice of parents and mutation are YOLOv5's. Every draw comes from (seed, generation), so an evolution
that was killed continues exactly as it would have gone on; the reference seeds by the clock.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from graph_train.metrics.average_precision import fitness
from graph_train.runs.results_csv import VALIDATION_KEYS
from graph_train.settings.hyperparameters import Hyperparameters
from kernels.host.files import write_atomically

_LOG = logging.getLogger(__name__)
_Array = npt.NDArray[np.float64]
ParentRule = Literal["single", "weighted"]
CSV_NAME, YAML_NAME = "evolve.csv", "hyp_evolve.yaml"
_PARENTS = 5
_MUTATION_CHANCE, _MUTATION_SIGMA = 0.8, 0.2
_DEFAULT_ANCHORS = 3.0


class Gene(NamedTuple):
    """How strongly a value mutates (0: not at all), and the range it is kept in."""

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
"""The reference's table."""


def gene_names(*, tune_anchors: bool) -> tuple[str, ...]:
    """Columns of `evolve.csv` after the results; the anchor count comes last, and not at all with --noautoanchor."""
    names = tuple(part.name for part in fields(Hyperparameters) if part.name != "anchors")
    return (*names, "anchors") if tune_anchors else names


def constrained(values: Mapping[str, float]) -> dict[str, float]:
    """Values inside the range of their gene, rounded to 5 decimals and to the 5 digits that the table can hold."""
    limited = {name: min(max(value, GENES[name].low), GENES[name].high) for name, value in values.items()}
    return {name: float(f"{round(value, 5):.5g}") for name, value in limited.items()}


def choose_parent(table: _Array, rule: ParentRule, rng: np.random.Generator) -> _Array:
    """Return a row to mutate, from the up to five best of `table` (generations, columns).

    `single` draws one of them, the fitter the likelier; `weighted` averages them with the same weights.
    """
    order = np.argsort(-fitness(table), kind="stable")[:_PARENTS]
    best = table[order]
    weights = fitness(best) - fitness(best).min() + 1e-6  # so that their sum is above 0
    weights /= weights.sum()
    if rule == "weighted":
        return (best * weights[:, None]).sum(axis=0)
    return best[rng.choice(len(best), p=weights)]


def mutation_factors(gains: _Array, rng: np.random.Generator) -> _Array:
    """Factors on the genes, 0.3 … 3 and most of them near 1, at least one of them not 1.

    Raises:
        ValueError: no gene may mutate.
    """
    if not gains.any():
        raise ValueError("every mutation gain is 0: nothing would ever change")
    factors = np.ones_like(gains)
    while (factors == 1).all():
        chosen = rng.random(len(gains)) < _MUTATION_CHANCE
        noise = rng.standard_normal(len(gains)) * rng.random()
        factors = (gains * chosen * noise * _MUTATION_SIGMA + 1).clip(0.3, 3.0)
    return factors


class EvolveTable:
    """`evolve.csv`: results and genes of every generation, one row each, padded like the reference's."""

    def __init__(self, folder: Path, genes: Sequence[str]) -> None:
        """Open the table of a folder; the row that a kill cut off is dropped.

        Raises:
            ValueError: the file has other columns, such as those of a run with another --noautoanchor.
        """
        self._path, self._yaml = folder / CSV_NAME, folder / YAML_NAME
        self.genes = tuple(genes)
        self._header = ",".join(f"{name:>20s}" for name in (*VALIDATION_KEYS, *self.genes))
        self.rows: _Array = np.empty((0, len(VALIDATION_KEYS) + len(self.genes)))
        if self._path.exists():
            self._read()

    def _read(self) -> None:
        # What follows the last end of a line was cut off, wherever it was cut.
        lines = self._path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        if lines and [cell.strip() for cell in lines[0].split(",")] != [*VALIDATION_KEYS, *self.genes]:
            raise ValueError(
                f"{self._path}:1: columns of another evolution; use another --name, or --noautoanchor as before"
            )
        width, rows = self.rows.shape[1], []
        for number, line in enumerate(lines[1:], start=2):
            try:
                rows.append([float(cell) for cell in line.split(",")])
            except ValueError:
                rows.append([])
            if len(rows[-1]) != width:
                raise ValueError(f"{self._path}:{number}: not a row of {width} numbers; repair or remove the file")
        self.rows = np.array(rows).reshape(-1, width)
        write_atomically(self._path, "\n".join([self._header, *map(_csv_line, self.rows.tolist()), ""]))

    def append(self, results: Sequence[float], values: Mapping[str, float]) -> None:
        """Add a generation to `evolve.csv` (on the disk when this returns) and rewrite `hyp_evolve.yaml`."""
        row = [*results, *(values[name] for name in self.genes)]
        line = _csv_line(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{self._header}\n{line}\n" if file.tell() == 0 else f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        # What is read back from the file, so that a resumed evolution sees the same digits.
        self.rows = np.vstack([self.rows, [float(cell) for cell in line.split(",")]])
        self._write_best()

    def scored(self) -> _Array:
        """Return the rows; results that are not finite, from a training that diverged, count as 0."""
        rows = self.rows.copy()
        results = rows[:, : len(VALIDATION_KEYS)]
        results[~np.isfinite(results)] = 0.0
        return rows

    @property
    def best(self) -> int:
        """Generation with the highest fitness; the earliest of equals."""
        return int(np.argmax(fitness(self.scored())))

    def best_values(self) -> dict[str, float]:
        """Hyper-parameters of the best generation."""
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


def next_generation(
    table: EvolveTable, base: Hyperparameters, *, seed: int, rule: ParentRule = "single"
) -> dict[str, float]:
    """Values to train next: those of `base` first, then mutations; the same for the same (table, seed)."""
    generation = len(table.rows)
    if not generation:
        start = base.as_dict() | {"anchors": _DEFAULT_ANCHORS if base.anchors is None else base.anchors}
        return constrained({name: start[name] for name in table.genes})
    # The constant separates this stream from others that are keyed by the same seed.
    rng = np.random.default_rng((seed, generation, 0xE501))
    parent = choose_parent(table.scored(), rule, rng)[len(VALIDATION_KEYS) :]
    factors = mutation_factors(np.array([GENES[name].gain for name in table.genes]), rng)
    return constrained(dict(zip(table.genes, (parent * factors).tolist(), strict=True)))


@dataclass(frozen=True)
class EvolutionResult:
    """What an evolution came to."""

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
    rule: ParentRule = "single",
    plot: bool = True,
    written: Callable[[], object] = lambda: None,
) -> EvolutionResult:
    """Evolves hyper-parameters until `folder` holds the results of `generations` trainings, earlier ones included.

    Args:
        base: where generation 0 starts.
        train: one training with these hyper-parameters, for the given generation; returns `VALIDATION_KEYS`
            of its last epoch. An exception ends the evolution; the generations before it are kept.
        folder: gets `evolve.csv`, `hyp_evolve.yaml`, `evolve.png`.
        tune_anchors: also evolve the number of anchors; False with --noautoanchor.
        plot: draw `evolve.png` at the end.
        written: called when the files hold another generation.

    Raises:
        ValueError: no generations, or a folder that holds another evolution.
    """
    if generations < 1:
        raise ValueError(f"evolve={generations}: must be at least 1 generation")
    table = EvolveTable(folder, gene_names(tune_anchors=tune_anchors))
    if len(table.rows):
        _LOG.info("Evolution continues after %d generations", len(table.rows))
    while len(table.rows) < generations:
        generation = len(table.rows)
        values = next_generation(table, base, seed=seed, rule=rule)
        results = train(_hyperparameters(values), generation)
        table.append(results, values)
        written()
        _LOG.info(
            "Generation %d of %d: fitness %.5g (best %.5g in generation %d)",
            generation + 1,
            generations,
            fitness(table.rows[-1]),
            fitness(table.scored()[table.best]),
            table.best + 1,
        )
    if plot:
        from graph_train.plots.results import plot_evolution

        rows = table.scored()
        plot_evolution(table.genes, rows[:, len(VALIDATION_KEYS) :], fitness(rows), folder / "evolve.png")
    return EvolutionResult(
        hyp=_hyperparameters(table.best_values()),
        best_generation=table.best,
        fitness=float(fitness(table.scored()[table.best])),
        yaml_file=folder / YAML_NAME,
    )


def _hyperparameters(values: Mapping[str, float]) -> Hyperparameters:
    return replace(Hyperparameters(), **values)
