"""Results of a scan, per image and as a table of a whole split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.data.columns import ImageFormats, Polygons, RowGroups
from pipelines.data.images import ImageFacts, ImageFormat
from pipelines.data.labels import LabelRows
from pipelines.data.problems import Problem


@dataclass(frozen=True)
class ScannedImage:
    """Result for one image.

    Attributes:
        facts: None if the image is unusable.
        labels: its labels; empty for a background image.
        problems: problems with the image and its labels.
    """

    facts: ImageFacts | None
    labels: LabelRows
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class ScanTable:
    """Results for n images.

    Attributes:
        decodable: (n,) bool, whether the image is usable.
        sizes: (n, 2) int32, width and height in px after EXIF rotation; 0 for an unusable image.
        formats: format of each image; undefined for an unusable image.
        labels_usable: (n,) bool, see `LabelRows.usable`.
        labels, segments: rows and polygons, see `LabelRows`.
        problems: problems by image index.
    """

    decodable: npt.NDArray[np.bool_]
    sizes: npt.NDArray[np.int32]
    formats: ImageFormats
    labels_usable: npt.NDArray[np.bool_]
    labels: RowGroups
    segments: Polygons
    problems: Mapping[int, tuple[Problem, ...]]

    @classmethod
    def of(cls, images: Sequence[ScannedImage]) -> "ScanTable":
        """Build a table from single results."""
        facts = [image.facts or _NO_FACTS for image in images]
        return cls(
            decodable=np.array([image.facts is not None for image in images], bool),
            sizes=np.array([(fact.width, fact.height) for fact in facts], np.int32).reshape(-1, 2),
            formats=ImageFormats.of([fact.format for fact in facts]),
            labels_usable=np.array([image.labels.usable for image in images], bool),
            labels=RowGroups.of([image.labels.boxes for image in images], columns=5),
            segments=Polygons.of([image.labels.segments for image in images]),
            problems={number: image.problems for number, image in enumerate(images) if image.problems},
        )

    @classmethod
    def joined(cls, tables: Sequence["ScanTable"]) -> "ScanTable":
        """Concatenate tables; there must be at least one."""
        starts = np.cumsum([0, *(len(table) for table in tables)]).tolist()
        points = RowGroups(
            np.concatenate([table.segments.points.rows for table in tables]),
            np.concatenate([table.segments.points.counts for table in tables]),
        )
        return cls(
            decodable=np.concatenate([table.decodable for table in tables]),
            sizes=np.concatenate([table.sizes for table in tables]),
            formats=ImageFormats.joined([table.formats for table in tables]),
            labels_usable=np.concatenate([table.labels_usable for table in tables]),
            labels=RowGroups(
                np.concatenate([table.labels.rows for table in tables]),
                np.concatenate([table.labels.counts for table in tables]),
            ),
            segments=Polygons(points, np.concatenate([table.segments.counts for table in tables])),
            problems={
                start + number: problems
                for start, table in zip(starts, tables, strict=False)
                for number, problems in table.problems.items()
            },
        )

    def __len__(self) -> int:
        return len(self.decodable)

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """(n,) bool, whether an image can be used for training."""
        return self.decodable & self.labels_usable


_NO_FACTS = ImageFacts(0, 0, ImageFormat("jpeg", "", 0, 1, 0, False))
