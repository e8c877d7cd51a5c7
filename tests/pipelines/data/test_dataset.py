"""Dataset yaml files: lookup of sources, class names, and one-line error messages."""

from pathlib import Path

import pytest

from pipelines.data import dataset
from pipelines.data.dataset import load_dataset, shipped_names
from tests.pipelines.data_sets import add_image, write_yaml

NAMES = "names: [cat, dog]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add_image(tmp_path / "set", "train/a.png")
    add_image(tmp_path / "set", "val/b.png")
    return tmp_path / "set"


def test_sources_next_to_yaml(folder: Path) -> None:
    file = write_yaml(folder, f"path: .\ntrain: images/train\nval: [images/val, images/train]\n{NAMES}nc: 2\n")
    found = load_dataset(file)
    assert found.train == (folder / "images" / "train",)
    assert found.val == (folder / "images" / "val", folder / "images" / "train")
    assert found.class_names == ("cat", "dog")
    assert (found.name, found.root, found.file) == ("data", folder, file)


def test_sources_in_cwd_and_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    text = f"path: set\ntrain: images/train\nval: {folder}/images/val\n{NAMES}"
    found = load_dataset(write_yaml(folder.parent / "elsewhere", text))
    assert found.train == (folder / "images" / "train",) and found.val == (folder / "images" / "val",)


def test_roboflow_dot_dot_sources(folder: Path) -> None:
    file = write_yaml(folder, f"train: ../images/train\nval: ../images/val\n{NAMES}")
    assert load_dataset(file).train == (folder / "images" / "train",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: {0: a, 1: b}", ("a", "b")),
        ("names: {1: b, 0: a}", ("a", "b")),
        ("names: [no, 007, 1e3, yes]", ("no", "007", "1e3", "yes")),
        ("nc: 2", ("class0", "class1")),
    ],
)
def test_class_names(folder: Path, names: str, expected: tuple[str, ...]) -> None:
    file = write_yaml(folder, f"train: images/train\nval: images/val\n{names}\n")
    assert load_dataset(file).class_names == expected


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("val: images/val\nnames: [a]", "", "no `train`"),
        ("train: images/train\nnames: [a]", "", "no `val`"),
        ("train: images/trian\nval: images/val\nnames: [a]", ":1:8", "not found at"),
        ("train: images\\train\nval: images/val\nnames: [a]", ":1:8", "images\\train; write / instead of \\"),
        ("train: [images/train, 3]\nval: images/val\nnames: [a]", ":1:23", "must be a path, found 3"),
        ("train: {a: b}\nval: images/val\nnames: [a]", ":1:8", "must be a path"),
        ("path: [1]\ntrain: images/train\nval: images/val\nnames: [a]", ":1:7", "path must be a path"),
        ("path: ~nobody-here/x\ntrain: images/train\nval: images/val\nnames: [a]", ":1:7", "unknown home folder"),
        (
            "train: ~nobody-here/x\nval: images/val\nnames: [a]",
            ":1:8",
            "train: ~nobody-here/x: unknown home folder",
        ),
        ('train: "a\\0b"\nval: images/val\nnames: [a]', ":1:8", "must be a path"),
        ("train: images/train\nval: images/val", "", "neither `names` nor `nc`"),
        ("train: images/train\nval: images/val\nnc: 3\nnames: [a, b]", ":3:5", "nc is 3, but names has 2"),
        ("train: images/train\nval: images/val\nnc: 0", ":3:5", "nc must be an integer from 1"),
        ("train: images/train\nval: images/val\nnc: 1000000000", ":3:5", "nc must be"),
        ("train: images/train\nval: images/val\nnc: two", ":3:5", "nc must be"),
        ("train: images/train\nval: images/val\nnames: {0: a, 2: b}", ":3:8", "names has no class 1"),
        ("train: images/train\nval: images/val\nnames: {1: a, 2: b}", ":3:8", "names has no class 0"),
        ("train: images/train\nval: images/val\nnames: {-1: a, 0: b, 1: c}", ":3:13", "class -1 is negative"),
        ("train: images/train\nval: images/val\nnames: {a: 0}", ":3:12", "'a' is not a class index"),
        ("train: images/train\nval: images/val\nnames: []", ":3:8", "0 class names"),
        ("train: images/train\nval: images/val\nnames: [a, [b]]", ":3:12", "class 1 must have a printable name"),
        ("train: images/train\nval: images/val\nnames: cat", ":3:8", "names must be a list"),
    ],
)
def test_errors_have_file_line_and_column(folder: Path, text: str, place: str, reason: str) -> None:
    file = write_yaml(folder, text)
    with pytest.raises(ValueError) as caught:
        load_dataset(file)
    message = str(caught.value)
    assert message.startswith(f"{file}{place}: ") and reason in message and "\n" not in message


def test_download_script_is_shown_and_never_run(folder: Path) -> None:
    trap = folder / "trap"
    file = write_yaml(folder, f"train: x\nval: x\n{NAMES}download: touch {trap}\n")
    with pytest.raises(ValueError, match="get the data from touch"):
        load_dataset(file)
    file = write_yaml(folder, f"train: images/train\nval: images/val\n{NAMES}download: |\n  open('{trap}', 'w')\n")
    load_dataset(file)
    assert not trap.exists()


def test_inaccessible_source_is_not_called_missing(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    file = write_yaml(folder, f"train: loop/images\nval: images/val\n{NAMES}")
    with pytest.raises(
        ValueError, match=r":1:8: train: .*/loop/images: Too many levels of symbolic links; check the path"
    ):
        load_dataset(file)


def test_missing_split_raises_on_access(folder: Path) -> None:
    found = load_dataset(write_yaml(folder, f"train: images/train\nval: images/val\ntest: gone\n{NAMES}"))
    assert found.test == ()
    with pytest.raises(ValueError, match=r"test: not found at .*gone"):
        found.split("test")
    only_val = load_dataset(write_yaml(folder, f"val: images/val\n{NAMES}"), require=("val",))
    assert only_val.split("val") == (folder / "images" / "val",)


@pytest.mark.parametrize(("name", "classes"), [("coco.yaml", 80), ("coco128", 80), ("data/VOC.yaml", 20)])
def test_shipped_data_sets_load(name: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = load_dataset(name, require=())
    assert len(found.class_names) == len(set(found.class_names)) == classes
    sizes = {"coco.yaml": "20,201.1", "coco128": "7.0", "data/VOC.yaml": "2,910.7"}
    with pytest.raises(
        ValueError, match=rf"use --allow-download to download http.* \({sizes[name]} MB; .*Flickr"
    ) as reported:
        load_dataset(name)
    assert "\n" not in str(reported.value)


def test_shipped_data_is_found_in_usual_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = add_image(tmp_path / "datasets" / "coco128", "train2017/a.png", "0 .5 .5 .2 .2\n")
    (tmp_path / "work").mkdir()
    for place in (tmp_path / "work", tmp_path):  # next to the folder `datasets`, as in YOLOv5, and above it
        monkeypatch.chdir(place)
        assert load_dataset("coco128.yaml").train == (image.parent,)


_COCO_FILES = (
    "images/train2017/1.jpg",
    "images/val2017/2.jpg",
    "labels/train2017/1.txt",
    "labels/val2017/2.txt",
    "train2017.txt",
    "val2017.txt",
)


def _write_some(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        images = {"train2017.txt": "./images/train2017/1.jpg\n", "val2017.txt": "\n./images/val2017/2.jpg\n"}
        (root / name).write_text(images.get(name, "0 .5 .5 .2 .2\n"))


@pytest.mark.parametrize(
    ("name", "there", "missing"),
    [
        ("coco128", ["images/train2017/1.jpg"], "labels/train2017"),
        ("coco128", ["labels/train2017/1.txt"], "images/train2017"),
        ("coco128", ["images/train2017/1.txt", "labels/train2017/1.txt"], "images/train2017"),
        ("coco", ["images/train2017/1.jpg", "images/val2017/2.jpg"], "train2017.txt"),
        ("coco", _COCO_FILES[2:], "images/train2017"),
        ("coco", [name for name in _COCO_FILES if "images/val" not in name], "images/val2017"),
        ("coco", [name for name in _COCO_FILES if "labels/val" not in name], "labels/val2017"),
        ("coco", [name for name in _COCO_FILES if name != "val2017.txt"], "val2017.txt"),
        ("VOC", ["images/train2012/1.jpg"], "images/train2007"),
    ],
)
def test_incomplete_shipped_data_set_raises(
    name: str, there: list[str], missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check this before downloading, as the download could not be stored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset, "fetch_into", None)
    root = tmp_path / "datasets" / name
    _write_some(root, *there)
    lacks = rf"{name}\.yaml:\d+:\d+: (train|val): the data set is incomplete, {root}/{missing} is missing or empty"
    for allowed in (False, True):
        with pytest.raises(ValueError, match=rf"{lacks}; .*use --allow-download to download http") as reported:
            load_dataset(name, allow_download=allowed)
        assert "\n" not in str(reported.value)
    assert load_dataset(name, require=()).class_names  # names alone are there


def test_complete_shipped_data_set_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write_some(tmp_path / "datasets/coco", *_COCO_FILES)
    _write_some(tmp_path / "datasets/VOC", "readme.md")  # not part of the data set
    assert load_dataset("coco").val == (tmp_path / "datasets/coco/val2017.txt",)
    assert dataset.is_coco_2017(load_dataset("coco").val)
    _write_some(tmp_path / "datasets/coco128", *_COCO_FILES[::2])
    assert not dataset.is_coco_2017(load_dataset("coco128").val)
    with pytest.raises(ValueError, match=r"train: not found at "):
        load_dataset("VOC")


def test_file_wins_over_shipped_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    write_yaml(folder, f"train: images/train\nval: images/val\n{NAMES}").rename(folder / "coco.yaml")
    assert load_dataset("coco.yaml").class_names == ("cat", "dog")


def test_invalid_paths_raise(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such dataset yaml.*coco128.yaml.*shapes"):
        load_dataset(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="is a folder; give a dataset yaml"):
        load_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"^~nobody-here/data.yaml: unknown home folder; give the full path"):
        load_dataset("~nobody-here/data.yaml")
    assert "shapes" in shipped_names()


def test_uppercase_json_suffix(folder: Path) -> None:
    (folder / "ALL.JSON").write_text("{}")
    assert load_dataset(write_yaml(folder, "train: ALL.JSON\nval: ALL.JSON\n")).class_names == ()


def test_real_data(bccd: Path) -> None:
    found = load_dataset(bccd)
    assert found.class_names == ("RBC", "WBC", "Platelets")
    assert found.split("test") == (bccd.parent / "images" / "test",)
