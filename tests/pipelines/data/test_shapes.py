"""The built-in data set: complete, deterministic, safe to create concurrently, correctly labelled."""

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.dataset import load_dataset
from pipelines.data.index import index_images
from pipelines.data.shapes import CLASS_NAMES, COUNTS, render_shapes
from tests.file_limit import file_limit


@pytest.fixture(scope="module")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_shapes(tmp_path_factory.mktemp("cache"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_data_set_has_no_problems(shapes_folder: Path, tmp_path: Path) -> None:
    found = load_dataset(shapes_folder)
    assert found.class_names == CLASS_NAMES
    for split, sources in (("train", found.train), ("val", found.val)):
        index = index_images(sources, found.class_names, cache_dir=tmp_path)
        assert len(index) == COUNTS[split] and index.problems == () and index.num_background == 0
        assert index.sizes.min() >= 200 and index.sizes.max() <= 320
        assert set(np.concatenate(index.labels)[:, 0]) == {0, 1, 2}


def test_data_set_is_deterministic_and_created_once(shapes_folder: Path, tmp_path: Path) -> None:
    again = render_shapes(tmp_path)
    assert files(again.parent) == files(shapes_folder.parent)
    before = again.stat().st_mtime_ns
    assert render_shapes(tmp_path) == again and again.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [again.parent.name]  # no temporary files remain


def test_damaged_copy_is_rebuilt(shapes_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / shapes_folder.parent.name
    shutil.copytree(shapes_folder.parent, copy)
    (copy / "images" / "train" / "000.jpg").unlink()
    render_shapes(tmp_path)
    assert files(copy) == files(shapes_folder.parent)


def test_copy_with_empty_file_is_rebuilt(shapes_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / shapes_folder.parent.name
    shutil.copytree(shapes_folder.parent, copy)
    (copy / "labels" / "val" / "007.txt").write_text("")
    render_shapes(tmp_path)
    assert files(copy) == files(shapes_folder.parent)


def test_failed_write_names_cache_folder_and_leaves_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with file_limit(64), pytest.raises(OSError, match="File too large; the data set shapes") as failure:
        render_shapes(cache)
    assert failure.value.filename == str(cache) and "XDG_CACHE_HOME" in str(failure.value)
    assert list(cache.iterdir()) == []


def test_concurrent_creation(shapes_folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=render_shapes, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert files(tmp_path / shapes_folder.parent.name) == files(shapes_folder.parent)
    assert len(list(tmp_path.iterdir())) == 1


def test_boxes_enclose_saturated_colour(shapes_folder: Path) -> None:
    """Shapes are the only saturated colours: almost none is outside the boxes, and boxes are well filled."""
    for image_file in sorted((shapes_folder.parent / "images" / "val").iterdir())[:8]:
        pixels = np.asarray(Image.open(image_file).convert("HSV"), np.int64)
        strong = (pixels[..., 1] > 150) & (pixels[..., 2] > 140)
        height, width = strong.shape
        outside = strong.copy()
        label_file = shapes_folder.parent / "labels" / "val" / f"{image_file.stem}.txt"
        for row in label_file.read_text().splitlines():
            _, x, y, w, h = map(float, row.split())
            left, right = round((x - w / 2) * width), round((x + w / 2) * width)
            top, bottom = round((y - h / 2) * height), round((y + h / 2) * height)
            assert strong[top:bottom, left:right].mean() > 0.3
            outside[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = False
        assert outside.sum() < 0.02 * strong.sum()
