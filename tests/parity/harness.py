"""Common parts of all parity checks: comparison of arrays within tolerances, and graph or eager mode."""

import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Mode = Literal["eager", "graph"]
MODES: tuple[Mode, ...] = ("eager", "graph")


INFORMATION = ("meta_json", "*_float64")
"""Arrays that are not compared: provenance of a file, and values in double precision, to judge rounding errors."""


_UNREADABLE = (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""Exceptions of NumPy for damaged archives."""


class VectorError(ValueError):
    """A vector file that cannot be read or lacks an array."""


class VectorFile(Mapping[str, npt.NDArray[Any]]):
    """The arrays of an .npz file, each read when it is first asked for.

    Raises:
        VectorError: the file or one of its arrays cannot be read, or the array asked for is not there.
    """

    def __init__(self, path: Path) -> None:
        self._read: dict[str, npt.NDArray[Any]] = {}
        try:
            self._archive = np.load(path, allow_pickle=False)
        except _UNREADABLE as error:
            raise VectorError(f"not a readable .npz file: {error}") from error
        if not isinstance(self._archive, np.lib.npyio.NpzFile):
            raise VectorError("not an .npz archive")

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return an array."""
        if name not in self._read:
            if name not in self._archive.files:
                raise VectorError(f"array {name} is missing")
            try:
                self._read[name] = self._archive[name]
            except _UNREADABLE as error:
                raise VectorError(f"array {name} cannot be read: {error}") from error
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._archive.files)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._archive.files)

    def __contains__(self, name: object) -> bool:
        """Return whether there is an array of this name, without reading it."""
        return name in self._archive.files

    def unread(self) -> list[str]:
        """Return the arrays that were not read."""
        return [name for name in self if name not in self._read]


def recorded(vectors: Mapping[str, Any], name: str) -> npt.NDArray[np.float32]:
    """Return the recorded values, in double precision where only float32 is not finite.

    `NAME_float64`, if a file has it, tells rounding errors from others. The reference's CIoU divides by
    v - IoU + (1 + eps): 0 / 0 for equal boxes whose IoU rounds to 1 + 1.2e-7. Its gradient of width / height is 0 times
    infinity for boxes that are 1e19 times wider than high. Ours are what the reference computes in double precision.
    """
    single = vectors[name]
    if np.isfinite(single).all() or f"{name}_float64" not in vectors:
        return np.asarray(single)
    double = vectors[f"{name}_float64"]
    return np.where(~np.isfinite(single) & np.isfinite(double), double, single).astype(np.float32)


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
    """Reasons for repeating a disagreeing run with changed input; used by `train` only."""
    opened: list[VectorFile] = field(default_factory=list)

    def open(self, path: Path) -> VectorFile:
        """Open a vector file, whose unread arrays are reported later."""
        self.opened.append(VectorFile(path))
        return self.opened[-1]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Fail if nothing is compared inside."""
        before = len(self.comparisons)
        yield
        if len(self.comparisons) == before:
            self.comparisons.append(Comparison(f"{name}: nothing to compare in the file", np.inf, np.inf, "", False))

    def not_compared(self, information: tuple[str, ...]) -> list[str]:
        """Return the arrays of the opened files that no check asked for, except those that match a pattern."""
        names = [name for vectors in self.opened for name in vectors.unread()]
        return [name for name in names if not any(fnmatch(name, pattern) for pattern in information)]

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
"""Function of (path of an .npz, report to fill, mode of execution)."""


@dataclass(frozen=True)
class Subject:
    """A kind of vector file: its files, its check, and the modes to check."""

    patterns: tuple[str, ...]
    check: Check
    modes: Sequence[Mode] = MODES
    companions: tuple[str, ...] = ()
    """Patterns of files that are read together with another file and are not separate cases."""
    information: tuple[str, ...] = ()
    """Patterns of arrays that need no comparison, in addition to `INFORMATION`."""

    def files(self, folder: Path) -> list[Path]:
        """Return the files of this kind in a folder, by name."""
        found = {path for pattern in self.patterns for path in folder.glob(pattern)}
        return sorted(path for path in found if not any(fnmatch(path.name, other) for other in self.companions))

    def assert_agreement(self, folder: Path, mode: Mode) -> None:
        """Check every file of this kind in a folder, which must have one."""
        files = self.files(folder)
        assert files
        for path in files:
            report = Report()
            self.check(path, report, mode)
            assert report.ok, (path.name, report.failures())
