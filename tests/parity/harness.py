"""Common parts of all parity checks: comparison of arrays within tolerances, and graph or eager mode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

Mode = Literal["eager", "graph"]
MODES: tuple[Mode, ...] = ("eager", "graph")


@dataclass(frozen=True)
class Comparison:
    """A compared array: largest errors, and whether all elements are within atol + rtol * |expected|."""

    name: str
    worst_abs: float
    worst_rel: float
    tolerance: str
    ok: bool


@dataclass
class Report:
    """The comparisons of one vector file."""

    comparisons: list[Comparison] = field(default_factory=list)
    forgiven: list[str] = field(default_factory=list)
    """Why a run that disagreed was repeated with its input changed; only `train` does that."""

    def close(
        self, name: str, actual: npt.ArrayLike, expected: npt.ArrayLike, *, rtol: float = 0.0, atol: float = 0.0
    ) -> None:
        """Compare elementwise; NaN equals NaN, infinities must be equal, shapes must agree."""
        got, want = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        tolerance = f"atol {atol:g} rtol {rtol:g}"
        if got.shape != want.shape:
            self.comparisons.append(
                Comparison(f"{name}: shape {got.shape} != {want.shape}", np.inf, np.inf, tolerance, False)
            )
            return
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, np.abs(got - want))
            relative = np.where(error == 0.0, 0.0, error / np.abs(want))
            ok = bool(np.all((error == 0.0) | (np.isfinite(error) & (error <= atol + rtol * np.abs(want)))))
        self.comparisons.append(
            Comparison(name, float(error.max(initial=0.0)), float(relative.max(initial=0.0)), tolerance, ok)
        )

    def exact(self, name: str, actual: npt.ArrayLike, expected: npt.ArrayLike) -> None:
        """Compare numbers, booleans or strings that must be identical."""
        got, want = np.asarray(actual), np.asarray(expected)
        if got.dtype.kind in "fiub" and want.dtype.kind in "fiub":
            self.close(name, got, want)
            return
        ok = got.shape == want.shape and bool(np.all(got == want))
        self.comparisons.append(Comparison(name, 0.0 if ok else np.inf, 0.0 if ok else np.inf, "equal", ok))

    def relative_l2(self, name: str, actual: npt.ArrayLike, expected: npt.ArrayLike, *, limit: float) -> None:
        """Compare whole tensors by the L2 norm of the difference over that of the expected values."""
        got, want = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        difference = float(np.linalg.norm((got - want).ravel())) if got.shape == want.shape else np.inf
        norm = float(np.linalg.norm(want.ravel()))
        relative = difference / norm if norm else (0.0 if difference == 0.0 else np.inf)
        self.comparisons.append(
            Comparison(name, difference, relative, f"relative L2 {limit:g}", bool(relative <= limit))
        )

    @property
    def ok(self) -> bool:
        """Whether anything was compared and everything agreed."""
        return bool(self.comparisons) and all(row.ok for row in self.comparisons)

    def failures(self) -> list[Comparison]:
        """Return the comparisons out of tolerance."""
        return [row for row in self.comparisons if not row.ok]


Check = Callable[[Path, Report, Mode], None]
"""check(path of one .npz, report to fill, how to execute ours)."""


@dataclass(frozen=True)
class Subject:
    """A kind of vector file: its files, its check, and the modes to check."""

    patterns: tuple[str, ...]
    check: Check
    modes: Sequence[Mode] = MODES

    def files(self, folder: Path) -> list[Path]:
        """Return the files of this kind in a folder, by name."""
        return sorted({path for pattern in self.patterns for path in folder.glob(pattern)})
