"""The set-up of a run: data without anything to learn is rejected."""

import logging
from pathlib import Path

import pytest

from graph_train.settings.train_options import options_from_flags
from graph_train.training.setup import load_data
from tests.pipelines.data_sets import add_image, write_yaml

BOX = "0 .5 .5 .2 .4\n"


def data_set(folder: Path, *, train: str | None, val: str | None, names: str = "cat") -> Path:
    add_image(folder, "train/a.jpg", train)
    add_image(folder, "train/b.jpg", train)
    add_image(folder, "val/c.jpg", val)
    return write_yaml(folder, f"train: images/train\nval: images/val\nnames: [{names}]\n")


@pytest.mark.parametrize("empty", [None, ""])
def test_training_without_labels_raises(tmp_path: Path, empty: str | None) -> None:
    file = data_set(tmp_path, train=empty, val=BOX)
    where = str(tmp_path / "labels" / "train" / "a.txt")
    with pytest.raises(ValueError, match=f"{file}: train: none of the 2 images has labels.*{where}"):
        load_data(options_from_flags(data=str(file)))


def test_validation_without_labels_warns_unless_strict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = data_set(tmp_path, train=BOX, val=None)
    with caplog.at_level(logging.WARNING, "graph_train"):
        assert len(load_data(options_from_flags(data=str(file))).val) == 1
    assert "val: the only image has no labels" in caplog.text
    with pytest.raises(ValueError, match="val: the only image has no labels"):
        load_data(options_from_flags(data=str(file), strict=True))


def test_duplicate_class_names_warn_unless_strict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = data_set(tmp_path, train=BOX, val=BOX, names="cat, dog, cat")
    with caplog.at_level(logging.WARNING, "graph_train"):
        assert load_data(options_from_flags(data=str(file))).class_names == ("cat", "dog", "cat")
    assert "classes 0 and 2 have the same name 'cat'" in caplog.text
    with pytest.raises(ValueError, match="classes 0 and 2 have the same name 'cat'"):
        load_data(options_from_flags(data=str(file), strict=True))


def test_fingerprint_depends_on_labels_of_each_image_but_not_on_folder(tmp_path: Path) -> None:
    found = {}
    other = "0 .5 .5 .3 .3\n"
    for name, first, second in (
        ("original", BOX + other, BOX),
        ("copy", BOX + other, BOX),
        ("moved", BOX, other + BOX),
        ("changed", BOX + other, other),
        ("emptied", BOX + other, ""),
    ):
        file = data_set(tmp_path / name, train=first, val=BOX)
        (tmp_path / name / "labels" / "train" / "b.txt").write_text(second)
        found[name] = load_data(options_from_flags(data=str(file))).fingerprint
    assert found.pop("copy") == found["original"]
    assert len(set(found.values())) == len(found)
