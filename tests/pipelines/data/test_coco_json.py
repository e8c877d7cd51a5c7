"""COCO json: known boxes, equality with YOLO files of real data, reported damage, random content."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data import coco_json
from pipelines.data.coco_json import CocoFile, read_coco
from pipelines.data.dataset import load_dataset
from pipelines.data.index import index_images, scan_images
from tests.pipelines.data_sets import add_image, write_yaml


def document(**changes: Any) -> dict[str, Any]:
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 40]}
    base = {
        "images": [{"id": 7, "file_name": "a.png", "width": 100, "height": 200}],
        "annotations": [annotation],
        "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    return base | changes


def annotated(**changes: Any) -> dict[str, Any]:
    content = document()
    content["annotations"][0].update(changes)
    return content


def read(content: Any, folder: Path, names: tuple[str, ...] = ()) -> CocoFile:
    file = folder / "instances_val.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coco(file, names)


def test_box_known_values_and_classes_in_id_order(tmp_path: Path) -> None:
    found = read(document(), tmp_path)
    assert found.class_names == ("dog", "cat") and found.problems == ()
    (image,) = found.images
    # x 10 ... 40 of 100, y 20 ... 60 of 200
    np.testing.assert_allclose(image.labels.boxes, [[1, 0.25, 0.2, 0.3, 0.2]], rtol=1e-6)
    assert image.labels.segments == () and (image.width, image.height) == (100, 200)
    assert read(document(), tmp_path, ("cat", "dog")).images[0].labels.boxes[0, 0] == 0


def test_repeated_annotations_are_used_once(tmp_path: Path) -> None:
    content = document()
    (first,) = content["annotations"]
    content["annotations"] = [first, {**first, "category_id": 1}, {**first, "id": 2}]
    (image,) = read(content, tmp_path).images
    assert image.labels.boxes[:, 0].tolist() == [1, 0]
    (problem,) = image.labels.problems
    assert (
        problem.severity == "warning"
        and "a.png: 1 annotation with the same class and box as another one; skipped" in problem.text
    )


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x1b[31m", "\0"])
def test_categories_have_printable_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="category 1 must have a printable name"):
        read(document(categories=[{"id": 3, "name": "cat"}, {"id": 1, "name": name}]), tmp_path)


def test_booleans_are_not_numbers(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.png", "width": True, "height": 200}]
    found = read(document(images=images), tmp_path)
    assert "width True and height 200 must be positive integers" in found.problems[0].text
    found = read(annotated(category_id=True), tmp_path)
    assert "there is no category True" in found.problems[0].text


def test_file_name_that_is_too_long(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "x" * 5000, "width": 100, "height": 200}]
    assert len(read(document(images=images), tmp_path).images) == 1  # reported as unreadable by the scan


def test_number_of_categories_is_limited(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="10001 categories; at most 10000 are supported"):
        read(document(categories=[{"id": number, "name": f"c{number}"} for number in range(10_001)]), tmp_path)


def test_boxes_are_clipped_to_image(tmp_path: Path) -> None:
    (image,) = read(annotated(bbox=[-20, 150, 60, 100]), tmp_path).images
    np.testing.assert_allclose(image.labels.boxes, [[1, 0.2, 0.875, 0.4, 0.25]], rtol=1e-6)


def test_multi_part_polygons(tmp_path: Path) -> None:
    square, far = [10, 20, 40, 20, 40, 60, 10, 60], [50, 60, 60, 60, 60, 80]
    (image,) = read(annotated(segmentation=[square]), tmp_path).images
    np.testing.assert_allclose(image.labels.segments[0], [[0.1, 0.1], [0.4, 0.1], [0.4, 0.3], [0.1, 0.3]], rtol=1e-6)
    (image,) = read(annotated(segmentation=[square, far]), tmp_path).images
    # from the nearest corner of the square to the other part, around it, and back
    expected = [[10, 20], [40, 20], [40, 60], [50, 60], [60, 60], [60, 80], [50, 60], [40, 60], [10, 60]]
    np.testing.assert_allclose(image.labels.segments[0] * [100, 200], expected, rtol=1e-5)
    (image,) = read(annotated(segmentation={"counts": "x", "size": [1, 1]}), tmp_path).images
    assert image.labels.segments == ()


def test_polygon_parts_are_joined_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    parts = [random.uniform(0, 100, 2 * count).tolist() for count in (40, 3, 30)]
    (whole,) = read(annotated(segmentation=parts), tmp_path).images
    monkeypatch.setattr(coco_json, "_DISTANCES_AT_ONCE", 64)
    (blocks,) = read(annotated(segmentation=parts), tmp_path).images
    np.testing.assert_array_equal(whole.labels.segments[0], blocks.labels.segments[0])
    assert len(whole.labels.segments[0]) == 40 + 3 + 30 + 2 * 2


def test_joining_largest_polygons_needs_little_memory(tmp_path: Path) -> None:
    part = np.random.default_rng(0).uniform(0, 100, 10_000).tolist()
    tracemalloc.start()
    try:
        (image,) = read(annotated(segmentation=[part, part]), tmp_path).images
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(image.labels.segments[0]) == 10_002
    assert most < 100e6  # all distances at once: 5000 x 5000 x 2 numbers of 8 bytes, twice


def write_boxes_json(tmp_path: Path, count: int, **size: int) -> Path:
    """Write a json with `count` boxes next to its image (40 x 30 px)."""
    add_image(tmp_path, "val/a.png")
    (tmp_path / "annotations").mkdir()
    image = {"id": 7, "file_name": "a.png", "width": 40, "height": 30, **size}
    boxes = [{"id": n, "image_id": 7, "category_id": 3, "bbox": [n % 30, n % 20, 2, 3]} for n in range(count)]
    read(document(images=[image], annotations=boxes), tmp_path / "annotations")
    return tmp_path / "annotations" / "instances_val.json"


@pytest.mark.parametrize("size", [{}, {"width": 80, "height": 60}])
def test_image_with_too_many_boxes_is_skipped(size: dict[str, int], tmp_path: Path) -> None:
    file = write_boxes_json(tmp_path, 7, **size)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(coco_json, "MAX_ROWS", 6)
        index = scan_images([file], (), cache_dir=tmp_path / "cache")
    assert len(index) == 0
    (problem,) = index.problems
    assert str(problem) == f"{file}: error: a.png: 7 boxes, at most 6 are supported; image skipped"
    assert problem.code == "label-unusable"
    assert len(scan_images([file], (), cache_dir=tmp_path / "other").labels[0]) == 7


def test_crowds_are_skipped_and_counted(tmp_path: Path) -> None:
    found = read(annotated(iscrowd=1), tmp_path)
    assert len(found.images[0].labels.boxes) == 0
    assert [problem.text for problem in found.problems] == ["1 crowd region skipped"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_id": 8}, "no image 8"),
        ({"image_id": [7]}, "no image"),
        ({"category_id": 2}, "no category 2"),
        ({"bbox": [1, 2, 3]}, "3 numbers"),
        ({"bbox": None}, "not a list of numbers"),
        ({"bbox": [1, 2, "3", 4]}, "'3' is not a valid coordinate"),
        ({"bbox": [1, 2, float("nan"), 4]}, "nan is not a valid coordinate"),
        ({"bbox": [1, 2, 10**400, 4]}, "is not a valid coordinate"),
        ({"bbox": [1, 2, 0, 4]}, "no area"),
        ({"bbox": [500, 2, 3, 4]}, "no area"),
        ({"segmentation": [[1, 2, 3, 4]]}, "a polygon of 4 numbers"),
        ({"segmentation": [[1, 2] * 12_000]}, "more than 10000 points"),
        ({"segmentation": ["x"]}, "not a list of numbers"),
    ],
)
def test_bad_annotation_is_reported_and_skipped(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    found = read(annotated(**changes), tmp_path)
    (problem,) = found.problems
    assert problem.severity == "error" and problem.text.startswith("annotation id 1: ") and reason in problem.text
    assert len(found.images[0].labels.boxes) == 0


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"id": 7, "file_name": "../a.png", "width": 1, "height": 1}, "is outside the image folder"),
        ({"id": 7, "file_name": "/etc/passwd", "width": 1, "height": 1}, "is outside the image folder"),
        ({"id": 7, "file_name": "a\0b", "width": 1, "height": 1}, "not a file name"),
        ({"id": 7, "file_name": "\ud800", "width": 1, "height": 1}, "not a file name"),
        ({"id": 7, "file_name": "a.png", "width": 0, "height": 1}, "positive integers"),
        ({"id": 7, "file_name": "a.png"}, "positive integers"),
        ({"id": 7, "file_name": "a.png", "width": 10**400, "height": 1}, "must be at most 1000000"),
        ({"file_name": "a.png"}, "no `id`"),
        ("a.png", "no `id`"),
    ],
)
def test_bad_image_entry_is_reported_and_skipped(image: Any, reason: str, tmp_path: Path) -> None:
    found = read(document(images=[image]), tmp_path)
    assert found.images == () and reason in found.problems[0].text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "invalid json"),
        ("[" * 100_000, "invalid json"),
        ("[]", "not a COCO json"),
        ("{}", "`categories` must be a list"),
        (document(annotations=3), "`annotations` must be a list"),
        (document(categories=[]), "no categories"),
        (document(categories=[{"id": 1}]), "a `name`"),
        (document(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "unique integer `id`"),
    ],
)
def test_invalid_coco_json_raises(content: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        read(content, tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_unnamed_category_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="category 'dog' is not among the data set's names"):
        read(document(), tmp_path, ("cat",))


def test_json_source_without_names_in_yaml(tmp_path: Path) -> None:
    add_image(tmp_path, "val/a.png")
    (tmp_path / "annotations").mkdir()
    read(document(images=[{"id": 7, "file_name": "a.png", "width": 80, "height": 60}]), tmp_path / "annotations")
    file = write_yaml(tmp_path, "train: annotations/instances_val.json\nval: annotations/instances_val.json\n")
    found = load_dataset(file)
    index = index_images(found.train, found.class_names, cache_dir=tmp_path / "cache")
    assert index.class_names == ("dog", "cat") and len(index.labels[0]) == 1
    # the image has 40 x 30 px, half the size in the json
    assert [problem.text for problem in index.problems] == ["40 x 30 px, the annotations say 80 x 60; boxes scaled"]


def test_image_with_wrong_aspect_ratio_is_skipped(tmp_path: Path) -> None:
    add_image(tmp_path, "val/a.png")
    (tmp_path / "annotations").mkdir()
    read(document(), tmp_path / "annotations")
    with pytest.raises(ValueError, match="40 x 30 px, the annotations say 100 x 200; image skipped"):
        index_images([tmp_path / "annotations" / "instances_val.json"], (), cache_dir=tmp_path / "cache")


def test_coco_json_matches_yolo_files_on_real_data(bccd: Path, tmp_path: Path) -> None:
    found = load_dataset(bccd)
    from_files = index_images(found.val, found.class_names, cache_dir=tmp_path)
    json_file = bccd.parent / "annotations" / "instances_val.json"
    from_json = index_images([json_file], found.class_names, cache_dir=tmp_path)
    assert from_json.paths == from_files.paths and from_json.problems == ()
    for ours, theirs in zip(from_json.labels, from_files.labels, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)  # the txt files have six decimals


keys = st.sampled_from(["id", "bbox", "image_id", "category_id", "segmentation", "name", "file_name"])
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([7, 3, "a.png"])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=15
)


@given(st.dictionaries(st.sampled_from(["images", "annotations", "categories"]), st.lists(values, max_size=4)), values)
def test_random_json_is_labels_or_value_error(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], box: Any
) -> None:
    content = document(**changes)
    content["annotations"] = [*content["annotations"], {"image_id": 7, "category_id": 3, "bbox": box}]
    try:
        found = read(content, tmp_path_factory.getbasetemp())
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        for image in found.images:
            assert np.isfinite(image.labels.boxes).all()
            assert (image.labels.boxes[:, 1:] >= 0).all() and (image.labels.boxes[:, 1:] <= 1).all()
