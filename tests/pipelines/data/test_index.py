"""The index: images, label files, skipped and reported files, the cache, unusual names."""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.host.paths import printable
from pipelines.data.dataset import load_dataset
from pipelines.data.index import ImageIndex, index_images, scan_images
from pipelines.data.index_cache import MAX_FILES
from pipelines.data.listing import label_path
from pipelines.data.problems import Problem, write_problems
from tests.pipelines.data_sets import add_image

NAMES = ("a", "b")
BOX = "0 .5 .5 .2 .4\n"
POLYGON = "1 .1 .1 .9 .1 .5 .9\n"


def index(
    *sources: Path, cache: Path, names: tuple[str, ...] = NAMES, single_class: bool = False, strict: bool = False
) -> ImageIndex:
    return index_images(sources, names, cache_dir=cache, single_class=single_class, strict=strict)


def codes(found: ImageIndex) -> list[str]:
    return [problem.code for problem in found.problems]


def test_images_labels_and_polygons_of_folder(tmp_path: Path) -> None:
    second = add_image(tmp_path, "b.png", POLYGON + BOX)
    first = add_image(tmp_path, "a.jpg", BOX)
    background = add_image(tmp_path, "sub/c.bmp")
    (tmp_path / "images" / "notes.md").write_text("passed over")
    found = index(tmp_path / "images", cache=tmp_path / "cache")
    assert found.paths == (first, second, background)
    assert found.sizes.tolist() == [[40, 30]] * 3 and found.sizes.dtype == np.int32
    assert [len(rows) for rows in found.labels] == [1, 2, 0]
    assert all(rows.dtype == np.float32 and rows.shape[1] == 5 for rows in found.labels)
    assert [len(polygons) for polygons in found.segments] == [0, 2, 0]
    assert [form.kind for form in found.formats] == ["jpeg", "png", "bmp"]
    assert found.class_names == NAMES and found.problems == () and len(found) == 3
    assert found.summary() == "3 images (1 of background), 3 boxes"


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/d/images/images/a.b.jpg", "/d/images/labels/a.b.txt"),
        ("/d/images/x/images/y/a.jpg", "/d/images/x/labels/y/a.txt"),
        ("/d/photos/a.jpg", "/d/photos/a.txt"),
        ("/d/myimages/a.jpg", "/d/myimages/a.txt"),
    ],
)
def test_labels_are_in_sibling_folder(image: str, label: str) -> None:
    assert label_path(Path(image)) == Path(label)


def test_list_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png"):
        add_image(tmp_path, name, BOX)
    images = tmp_path / "images"
    list_file = tmp_path / "train.txt"
    list_file.write_text(f"\ufeff./images/b.png\r\n\n{images}/a.png\nimages/c.png\nd.png\n./images/none.png\n")
    monkeypatch.chdir(images)  # d.png counts from here
    found = index(list_file, cache=tmp_path / "cache")
    assert [path.name for path in found.paths] == ["a.png", "b.png", "c.png", "d.png"]
    assert all(len(rows) == 1 for rows in found.labels)
    (problem,) = found.problems
    assert (problem.file, problem.line, problem.code) == (list_file, 6, "image-missing")


def test_root_folder_in_list_is_reported(tmp_path: Path) -> None:
    add_image(tmp_path, "a.jpg", "0 .5 .5 .1 .1")
    list_file = tmp_path / "list.txt"
    list_file.write_text("images/a.jpg\n/\n")
    found = scan_images([list_file], ("a",))
    assert len(found) == 1
    assert [str(problem) for problem in found.problems] == [f"{list_file}:2: error: no such image: /; skipped"]


def test_duplicates_in_list_are_kept(tmp_path: Path) -> None:
    image = add_image(tmp_path, "a.png", BOX)
    (tmp_path / "train.txt").write_text("./images/a.png\n" * 3)
    found = index(tmp_path / "train.txt", cache=tmp_path / "cache")
    assert found.paths == (image,) * 3 and codes(found) == ["image-repeated"]


def test_bad_images_and_labels_are_skipped_and_reported(tmp_path: Path) -> None:
    good = add_image(tmp_path, "good.png", BOX + "0 2 2 2 2\n" + BOX)
    truncated = add_image(tmp_path, "truncated.jpg", BOX)
    truncated.write_bytes(truncated.read_bytes()[:-60])
    add_image(tmp_path, "binary.png", b"\0\1")
    (tmp_path / "images" / "moving.gif").write_bytes(b"GIF89a")
    (tmp_path / "images" / "folder.jpg").mkdir()
    (tmp_path / "labels" / "orphan.txt").write_text(BOX)
    (tmp_path / "labels" / "classes.txt").write_text("a\nb\n")
    found = index(tmp_path / "images", cache=tmp_path / "cache")
    assert found.paths == (good,) and len(found.labels[0]) == 1
    named = {(problem.file.name, problem.line, problem.severity, problem.code) for problem in found.problems}
    assert named == {
        ("good.txt", 2, "error", "row-dropped"),
        ("good.txt", 3, "warning", "row-repeated"),
        ("truncated.jpg", None, "error", "image-unusable"),
        ("binary.txt", None, "error", "label-unusable"),
        ("moving.gif", None, "error", "image-unusable"),
        ("orphan.txt", None, "warning", "label-orphan"),
    }
    assert "4 errors and 2 warnings" in found.summary() and "2 image-unusable" in found.summary()
    with pytest.raises(ValueError, match="strict: 6 problems in the data set; first: "):
        index(tmp_path / "images", cache=tmp_path / "cache", strict=True)


def test_unnamed_class_raises(tmp_path: Path) -> None:
    add_image(tmp_path, "a.png", BOX + "2 .5 .5 .1 .1\n")
    label = tmp_path / "labels" / "a.txt"
    for _ in range(2):  # scanned, then from the cache
        with pytest.raises(ValueError) as caught:
            index(tmp_path / "images", cache=tmp_path / "cache")
        reason = "class 2, but the data set has 2 (0 to 1)"
        remedy = "correct the label, or `names` and `nc` in the dataset yaml"
        assert str(caught.value) == f"{label}:2: {reason}; {remedy}"
    assert codes(scan_images([tmp_path / "images"], NAMES, cache_dir=tmp_path / "cache")) == ["class-range"]


def test_single_class_maps_every_class(tmp_path: Path) -> None:
    add_image(tmp_path, "a.png", BOX + POLYGON + "7 .5 .5 .1 .1\n")
    found = index(tmp_path / "images", cache=tmp_path / "cache", single_class=True)
    assert found.labels[0][:, 0].tolist() == [0, 0, 0] and found.class_names == ("item",)
    np.testing.assert_allclose(found.labels[0][1, 1:], [0.5, 0.5, 0.8, 0.8], rtol=1e-6)
    named = index(tmp_path / "images", cache=tmp_path / "cache", names=("cell",), single_class=True)
    assert named.class_names == ("cell",)


def test_no_usable_image_raises_with_first_reason(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=f"no usable images in {tmp_path}/images"):
        index(tmp_path / "images", cache=tmp_path / "cache")
    (tmp_path / "images" / "a.jpg").write_text("text")
    with pytest.raises(ValueError, match=r"first problem: .*a\.jpg: error: not an image"):
        index(tmp_path / "images", cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="an empty list of sources"):
        index(cache=tmp_path / "cache")
    (tmp_path / "data.csv").write_text("")
    with pytest.raises(ValueError, match="not a folder, a txt list of images, or a COCO json"):
        index(tmp_path / "data.csv", cache=tmp_path / "cache")


def test_unusual_file_names(tmp_path: Path) -> None:
    names = ["with space.png", "new\nline.png", "ünïcode.png", os.fsdecode(b"latin-\xe9.png"), "a.b.c.png", "UP.PNG"]
    for name in names:
        add_image(tmp_path, name, "0 9 9 9 9\n" + BOX, format="png")
    for _ in range(2):  # scanned, then from the cache
        found = index(tmp_path / "images", cache=tmp_path / "cache")
        assert {path.name for path in found.paths} == set(names)
        assert all(len(rows) == 1 for rows in found.labels)
        assert all("\n" not in str(problem) for problem in found.problems)
    write_problems(tmp_path / "problems.txt", found.problems)
    lines = (tmp_path / "problems.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(names) and any("latin-\\xe9.txt:1: error: " in line for line in lines)


def test_link_loops_are_followed_once(tmp_path: Path) -> None:
    add_image(tmp_path, "train/a.png", BOX)
    (tmp_path / "images" / "train" / "again").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "train" / "self.png").symlink_to("self.png")
    found = index(tmp_path / "images", cache=tmp_path / "cache")
    assert [path.name for path in found.paths] == ["a.png"]
    assert codes(found) == ["image-unusable"]


def test_thread_count_does_not_change_index(tmp_path: Path) -> None:
    for number in range(40):
        add_image(tmp_path, f"{number:02d}.png", f"{number % 2} .5 .5 .{number + 10} .1\nbad\n")
    one, four = (
        index_images([tmp_path / "images"], NAMES, cache_dir=tmp_path / f"cache{threads}", workers=threads)
        for threads in (1, 4)
    )
    assert_same(one, four)


def assert_same(one: ImageIndex, two: ImageIndex) -> None:
    assert (one.paths, one.formats, one.problems, one.class_names) == (
        two.paths,
        two.formats,
        two.problems,
        two.class_names,
    )
    np.testing.assert_array_equal(one.sizes, two.sizes)
    for ours, theirs in zip(one.labels, two.labels, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for polygons, others in zip(one.segments, two.segments, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(polygons, others, strict=True))


def test_cached_index_is_valid_until_a_file_changes(tmp_path: Path) -> None:
    image = add_image(tmp_path, "a.png", POLYGON + BOX + "junk\n")
    add_image(tmp_path, "b.jpg", "")
    (tmp_path / "images" / "c.jpg").write_text("text")
    fresh = index(tmp_path / "images", cache=tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "cache" not in path.parts}

    (kept,) = (tmp_path / "cache").iterdir()
    written = kept.stat().st_mtime_ns
    assert_same(index(tmp_path / "images", cache=tmp_path / "cache"), fresh)
    assert kept.stat().st_mtime_ns == written  # a scan would have rewritten it
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "cache" not in path.parts}

    label = label_path(image)
    old = label.stat()
    label.write_text(POLYGON + "1 .5 .5 .2 .4\n" + "junk\n")  # with the same size and modification time
    os.utime(label, ns=(old.st_atime_ns, old.st_mtime_ns))
    changed = index(tmp_path / "images", cache=tmp_path / "cache")
    assert changed.labels[0][:, 0].tolist() == [1, 1]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    label.unlink()
    assert len(index(tmp_path / "images", cache=tmp_path / "cache").labels[0]) == 0
    add_image(tmp_path, "d.png", BOX)
    assert len(index(tmp_path / "images", cache=tmp_path / "cache")) == 3


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_damaged_cache_is_rebuilt(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_image(tmp_path, "a.png", POLYGON + "x\n")
    fresh = index(tmp_path / "images", cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "cut": whole[:middle],
            "flip": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :],
            "empty": b"",
            "text": b"x" * 500,
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        assert_same(index(tmp_path / "images", cache=tmp_path / "cache"), fresh)
    assert "damaged cache" in caplog.text
    assert file.read_bytes() == whole


def resealed(content: bytes) -> bytes:
    """Append the checksum that a cache file ends with."""
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"described": np.frombuffer(b"[" * 100_000, np.uint8)},
        {"described": np.frombuffer(b"[1]", np.uint8)},
        {"problems": [1]},
        {"problems": {"99": [["a", 1, "error", "text", "code"]]}},
        {"formats": [1]},
        {"key": "other"},
        {"sizes": None},
        {"sizes": np.zeros((1, 2), np.int32)},
        {"sizes": np.array([["a", "b"], ["c", "d"]])},
        {"decodable": np.array(True)},
        {"decodable": np.zeros(2)},
        {"labels_usable": np.ones(1, bool)},
        {"formats_": np.full(2, 7, np.int32)},
        {"formats_": np.full(2, -9, np.int32)},
        {"row_counts": np.array([4, -3])},
        {"row_counts": np.array([1, 1])},
        {"rows": np.zeros((1, 4), np.float32)},
        {"point_counts": np.zeros(7, np.int64)},
    ],
)
def test_inconsistent_cache_with_right_checksum_is_rebuilt(
    changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_image(tmp_path, "a.png", POLYGON + "x\n")
    add_image(tmp_path, "b.jpg", "")
    fresh = index(tmp_path / "images", cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    arrays = dict(np.load(io.BytesIO(whole)))
    described = json.loads(arrays["described"].tobytes())
    in_json = {
        name: value for name, value in changes.items() if name in described and not isinstance(value, np.ndarray)
    }
    arrays["described"] = np.frombuffer(json.dumps({**described, **in_json}).encode(), np.uint8)
    arrays.update({name.rstrip("_"): value for name, value in changes.items() if name not in in_json})
    stream = io.BytesIO()
    np.savez(stream, **{name: value for name, value in arrays.items() if value is not None})
    file.write_bytes(resealed(stream.getvalue()))
    with caplog.at_level(logging.WARNING):
        assert_same(index(tmp_path / "images", cache=tmp_path / "cache"), fresh)
    assert "damaged cache (" in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.parametrize(("offset", "value"), [(10, 99), (8, 1), (8, 0x60)])
def test_cache_in_unusual_archive_is_rebuilt(
    offset: int, value: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Test a cache with an unknown compression, and an encrypted one."""
    add_image(tmp_path, "a.png", POLYGON)
    fresh = index(tmp_path / "images", cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes()[:-32])
    content[content.index(b"PK\x01\x02") + offset] = value
    file.write_bytes(resealed(bytes(content)))
    with caplog.at_level(logging.WARNING):
        assert_same(index(tmp_path / "images", cache=tmp_path / "cache"), fresh)
    assert "damaged cache (" in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_special_file_in_cache_folder_only_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
) -> None:
    add_image(tmp_path, "a.png", BOX)
    fresh = index(tmp_path / "images", cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("*.npz")
    file.unlink()
    make(file)
    with caplog.at_level(logging.WARNING):
        assert_same(index(tmp_path / "images", cache=tmp_path / "cache"), fresh)
    assert "damaged cache" in caplog.text and "the index of the data set is not cached" in caplog.text


def test_uncreatable_cache_folder_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_image(tmp_path, "a.png", BOX)
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert len(index(tmp_path / "images", cache=tmp_path / "file" / "cache")) == 1
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        f"{tmp_path / 'file' / 'cache'}: the index of the data set is not cached: Not a directory; "
    )


def test_cache_is_in_user_folder_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    add_image(tmp_path, "a.png", BOX)
    folder = tmp_path / "home" / "graph-train" / "index"
    for number in range(MAX_FILES + 3):
        index_images([tmp_path / "images"], NAMES, single_class=False)
        label = tmp_path / "labels" / "a.txt"
        label.write_text(f"0 .5 .5 .2 .{number + 10}\n")
    assert len(list(folder.iterdir())) == MAX_FILES
    assert (folder.parent.stat().st_mode & 0o777) == 0o700  # compiled kernels live there too


def test_problem_is_one_printable_line() -> None:
    problem = Problem(Path(os.fsdecode(b"a\n\xff\x1b[1m.txt")), 3, "error", "text", "row-dropped")
    assert str(problem) == "a\\n\\xff\\x1b[1m.txt:3: error: text"
    assert printable("ü ok") == "ü ok"


def test_real_data(bccd: Path, tmp_path: Path) -> None:
    found = load_dataset(bccd)
    train = index(*found.train, names=found.class_names, cache=tmp_path)
    assert len(train) == 205 and train.num_boxes == 2804 and train.problems == ()
    assert (train.sizes == [640, 480]).all()
    np.testing.assert_array_equal(train.labels[0][0], np.array([1, 0.276562, 0.828125, 0.340625, 0.34375], np.float32))


@pytest.mark.parametrize("which", ["file", "folder"])
def test_dangling_link_is_unreadable_label(tmp_path: Path, which: str) -> None:
    add_image(tmp_path, "a.jpg", BOX)
    kept = add_image(tmp_path, "sub/b.jpg", BOX)
    gone = tmp_path / "labels" / "sub" / "b.txt" if which == "file" else tmp_path / "labels" / "sub"
    moved = gone.rename(tmp_path / "moved")
    found = index(tmp_path / "images", cache=tmp_path / "cache")
    assert kept in found.paths  # without a label it is background
    gone.symlink_to(tmp_path / "nowhere")
    found = index(tmp_path / "images", cache=tmp_path / "cache")
    assert kept not in found.paths and codes(found) == ["label-unusable"]
    assert f"{gone} is a broken link" in found.problems[0].text
    gone.unlink()
    gone.symlink_to(moved)
    assert kept in index(tmp_path / "images", cache=tmp_path / "cache").paths


def test_missing_labels_warning_names_searched_folder(tmp_path: Path) -> None:
    image = add_image(tmp_path, "a.jpg")
    found = index(tmp_path / "images", cache=tmp_path / "cache")
    assert str(label_path(image)) in found.missing_labels([tmp_path / "images"])
    label_path(image).parent.mkdir()
    label_path(image).write_text("")
    assert f"the label files are empty, such as {label_path(image)}" in found.missing_labels([tmp_path / "images"])
    json_file = tmp_path / "instances.json"
    assert str(json_file) in found.missing_labels([json_file])
    add_image(tmp_path, "b.jpg", BOX)
    found = index(tmp_path / "images", cache=tmp_path / "cache")
    assert found.missing_labels([tmp_path / "images"]) == ""
