"""Columns of an index: sequences with an entry per image, stored in a few flat arrays to save memory."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt

from pipelines.data.images import ImageFormat

Entry = TypeVar("Entry")


class Column(Sequence[Entry]):
    """A sequence with an entry per image, created on access."""

    @abstractmethod
    def entry(self, number: int) -> Entry:
        """Return the entry of an image; `number` is at least 0 and less than the length."""

    @overload
    def __getitem__(self, number: int) -> Entry: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, number: int | slice) -> Entry | tuple[Entry, ...]:
        if isinstance(number, slice):
            return tuple(self.entry(n) for n in range(*number.indices(len(self))))
        return self.entry(range(len(self))[number])

    def __iter__(self) -> Iterator[Entry]:
        return map(self.entry, range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)!r})"


class ValueColumn(Column[Entry]):
    """A column that compares equal to any sequence with equal entries."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class ImagePaths(ValueColumn[Path]):
    """Paths, stored as strings.

    Attributes:
        texts: one per image.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(texts)

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "ImagePaths":
        """Build the column from one path per image."""
        return paths if isinstance(paths, cls) else cls(map(str, paths))

    def __len__(self) -> int:
        return len(self.texts)

    def entry(self, number: int) -> Path:
        """Return the path of an image."""
        return Path(self.texts[number])

    @property
    def names(self) -> list[str]:
        """The name of each file."""
        return [text.rpartition("/")[2] for text in self.texts]


class ImageFormats(ValueColumn[ImageFormat]):
    """Image formats, stored as codes; few differ in more than the file size.

    Attributes:
        distinct: the distinct formats, with `file_bytes` 0.
        codes: (n,) int32, index into `distinct` of each image.
        file_bytes: (n,) int64, size of each file.
    """

    def __init__(self, distinct: Iterable[ImageFormat], codes: npt.ArrayLike, file_bytes: npt.ArrayLike) -> None:
        self.distinct = tuple(distinct)
        self.codes, self.file_bytes = np.asarray(codes, np.int32), np.asarray(file_bytes, np.int64)

    @classmethod
    def of(cls, formats: Sequence[ImageFormat]) -> "ImageFormats":
        """Build the column from one format per image."""
        if isinstance(formats, cls):
            return formats
        known: dict[tuple[object, ...], int] = {}
        distinct: list[ImageFormat] = []
        codes = []
        for found in formats:
            code = known.setdefault((found.kind, found.mode, found.bits, found.orientation, found.intact), len(known))
            if code == len(distinct):
                distinct.append(replace(found, file_bytes=0))
            codes.append(code)
        return cls(distinct, codes, [found.file_bytes for found in formats])

    @classmethod
    def joined(cls, parts: Sequence["ImageFormats"]) -> "ImageFormats":
        """Concatenate all parts, in their order; there must be at least one part."""
        known: dict[ImageFormat, int] = {}
        codes = [
            np.array([known.setdefault(form, len(known)) for form in part.distinct], np.int32)[part.codes]
            for part in parts
        ]
        return cls(known, np.concatenate(codes), np.concatenate([part.file_bytes for part in parts]))

    def selected(self, keep: npt.NDArray[np.bool_]) -> "ImageFormats":
        """Return the column of the images where `keep` (n,) is true."""
        return ImageFormats(self.distinct, self.codes[keep], self.file_bytes[keep])

    def __len__(self) -> int:
        return len(self.codes)

    def entry(self, number: int) -> ImageFormat:
        """Return the format of an image."""
        return replace(self.distinct[self.codes[number]], file_bytes=int(self.file_bytes[number]))

    @property
    def counts_by_format(self) -> npt.NDArray[np.int64]:
        """Number of images with each of `distinct`; some may have none."""
        return np.bincount(self.codes, minlength=len(self.distinct))

    def where(self, predicate: Callable[[ImageFormat], bool]) -> npt.NDArray[np.bool_]:
        """Return whether a predicate, which must not depend on `file_bytes`, holds for each format, (n,) bool."""
        return np.array([predicate(form) for form in self.distinct], bool)[self.codes]


class _Groups(Column[Entry]):
    """A group of parts per image, with all parts in one sequence.

    Attributes:
        ends: (n + 1,) int64; image i has the parts from `ends[i]` to `ends[i + 1]`.
    """

    def __init__(self, counts: npt.ArrayLike, total: int) -> None:
        """Split the parts by image.

        Args:
            counts: (n,) parts of each image.
            total: parts of all images.
        Raises:
            ValueError: the counts add up to another total.
        """
        self.ends = np.concatenate(([0], np.cumsum(np.asarray(counts, np.int64))))
        if self.ends[-1] != total:
            raise ValueError(f"inconsistent parts: {total} entries, but counts add up to {self.ends[-1]}")

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(n,) parts of each image."""
        return np.diff(self.ends)


class RowGroups(_Groups[np.ndarray]):
    """An array of rows per image, stored in one array; entries are views.

    Attributes:
        rows: (total, columns), rows of all images.
    """

    def __init__(self, rows: np.ndarray, counts: npt.ArrayLike) -> None:
        """Split the rows by image.

        Args:
            rows: see above.
            counts: (n,) rows of each image.
        Raises:
            ValueError: there are more or fewer rows.
        """
        super().__init__(counts, len(rows))
        self.rows = rows

    @classmethod
    def of(cls, groups: Sequence[np.ndarray], *, columns: int) -> "RowGroups":
        """Build the groups from an array (k, columns) per image."""
        if isinstance(groups, cls):
            return groups
        rows = np.concatenate(groups) if len(groups) else np.zeros((0, columns), np.float32)
        return cls(rows, [len(group) for group in groups])

    def entry(self, number: int) -> np.ndarray:
        """Return the rows of an image."""
        return self.rows[self.ends[number] : self.ends[number + 1]]

    def selected(self, keep: npt.NDArray[np.bool_]) -> "RowGroups":
        """Return the column of the images where `keep` (n,) is true."""
        counts = self.counts
        return self if keep.all() else RowGroups(self.rows[np.repeat(keep, counts)], counts[keep])


class Polygons(_Groups[tuple[np.ndarray, ...]]):
    """Polygons per image, with all points in one array; polygons are views.

    Attributes:
        points: the points (m, 2) of each polygon, for all images together.
    """

    def __init__(self, points: RowGroups, counts: npt.ArrayLike) -> None:
        """Split the polygons by image.

        Args:
            points: see above.
            counts: (n,) polygons of each image.
        Raises:
            ValueError: there are more or fewer polygons.
        """
        super().__init__(counts, len(points))
        self.points = points

    @classmethod
    def of(cls, groups: Sequence[Sequence[np.ndarray]]) -> "Polygons":
        """Build the groups from some polygons (m, 2) per image."""
        if isinstance(groups, cls):
            return groups
        polygons = [polygon for group in groups for polygon in group]
        return cls(RowGroups.of(polygons, columns=2), [len(group) for group in groups])

    def entry(self, number: int) -> tuple[np.ndarray, ...]:
        """Return the polygons of an image."""
        return tuple(self.points[n] for n in range(self.ends[number], self.ends[number + 1]))

    def selected(self, keep: npt.NDArray[np.bool_]) -> "Polygons":
        """Return the column of the images where `keep` (n,) is true."""
        counts = self.counts
        return self if keep.all() else Polygons(self.points.selected(np.repeat(keep, counts)), counts[keep])


class ImageSizes(ValueColumn[tuple[int, int]]):
    """Width and height of each image in px, as Python integers."""

    def __init__(self, sizes: np.ndarray) -> None:
        """Keep a reference to the sizes, (n, 2) integers."""
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def entry(self, number: int) -> tuple[int, int]:
        """Return the width and height of an image."""
        width, height = self._sizes[number].tolist()
        return width, height
