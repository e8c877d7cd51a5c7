"""Columnar storage of an index, against a list of objects."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.data.columns import ImageFormats, ImagePaths, ImageSizes, Polygons, RowGroups
from pipelines.data.images import ImageFormat

GROUPS = [np.arange(10, dtype=np.float32).reshape(2, 5), np.zeros((0, 5), np.float32), np.ones((1, 5), np.float32)]
JPEG = ImageFormat("jpeg", "RGB", 8, 1, 100, True)
PNG = ImageFormat("png", "P", 4, 1, 70, True)


def test_paths_round_trip() -> None:
    given = (Path("/a/images/b.jpg"), Path("c.d.png"))
    paths = ImagePaths.of(given)
    assert paths == given and paths[-1] == given[1] and paths[:1] == given[:1] and paths.names == ["b.jpg", "c.d.png"]
    assert paths != given[:1] and paths != (given[0], given[0])
    with pytest.raises(IndexError):
        paths[2]


def test_rows_per_image() -> None:
    groups = RowGroups.of(GROUPS, columns=5)
    assert len(groups) == 3 and groups.counts.tolist() == [2, 0, 1]
    for ours, given in zip(groups, GROUPS, strict=True):
        assert ours.dtype == np.float32 and np.array_equal(ours, given)
    assert np.array_equal(groups[-1], GROUPS[2])
    kept = groups.selected(np.array([True, False, True]))
    assert len(kept) == 2 and np.array_equal(kept[1], GROUPS[2])
    assert RowGroups.of([], columns=5).rows.shape == (0, 5)
    with pytest.raises(ValueError, match="3 entries, but counts add up to 2"):
        RowGroups(groups.rows, [1, 1])


def test_polygons_per_image() -> None:
    square, triangle = np.ones((4, 2), np.float32), np.zeros((3, 2), np.float32)
    polygons = Polygons.of([(square, triangle), (), (triangle,)])
    assert [[len(polygon) for polygon in image] for image in polygons] == [[4, 3], [], [3]]
    kept = polygons.selected(np.array([False, True, True]))
    assert [[len(polygon) for polygon in image] for image in kept] == [[], [3]]
    assert len(Polygons.of([(), ()]).points) == 0


def test_formats_are_deduplicated() -> None:
    given = (JPEG, PNG, ImageFormat("jpeg", "RGB", 8, 1, 200, True))
    formats = ImageFormats.of(given)
    assert formats == given and len(formats.distinct) == 2 and formats.counts_by_format.tolist() == [2, 1]
    assert formats.where(lambda form: form.kind == "jpeg").tolist() == [True, False, True]
    assert ImageFormats.joined([ImageFormats.of([PNG]), formats]) == (PNG, *given)
    assert formats.selected(np.array([False, True, True])) == given[1:]


def test_sizes_are_python_ints() -> None:
    sizes = ImageSizes(np.array([(3, 4), (5, 6)], np.int32))
    assert sizes == [(3, 4), (5, 6)] and type(sizes[0][0]) is int
