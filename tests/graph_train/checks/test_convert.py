"""Conversion of Pascal VOC and COCO annotations to YOLO data sets, read back with our reader."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from graph_train.cli.check import main
from pipelines.data.dataset import load_dataset
from pipelines.data.index import ImageIndex, scan_images
from pipelines.data.voc_xml import read_voc
from tests.pipelines.data_sets import picture

OBJECT = (
    "<object><name>{0}</name><difficult>{1}</difficult>"
    "<bndbox><xmin>{2}</xmin><ymin>{3}</ymin><xmax>{4}</xmax><ymax>{5}</ymax></bndbox></object>"
)


def write_voc(folder: Path, name: str, *objects: tuple[object, ...], size: tuple[int, int] = (40, 30)) -> None:
    """Write a VOC annotation and its image of 40 x 30 px."""
    for inner in ("Annotations", "JPEGImages"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    picture().save(folder / "JPEGImages" / f"{name}.jpg")
    text = "".join(OBJECT.format(*entry) for entry in objects)
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    (folder / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><filename>{name}.jpg</filename>{sides}{text}</annotation>"
    )


def read(folder: Path, split: str) -> ImageIndex:
    dataset = load_dataset(folder / "data.yaml")
    return scan_images(dataset.split(split), dataset.class_names)  # type: ignore[arg-type]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    folder = tmp_path / "VOC2007"
    write_voc(folder, "000001", ("dog", 0, 1, 1, 21, 16), ("cat", 0, 11, 6, 31, 26), ("cat", 1, 1, 1, 9, 9))
    write_voc(folder, "000002")
    write_voc(folder, "000003", ("cat", 0, "2.5", 3, 39, 60))
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text("000001\n000002  1\n")
    (folder / "ImageSets/Main/val.txt").write_text("000003\n")
    return folder


@pytest.mark.parametrize("copy", [False, True])
def test_voc_converts_to_yolo(voc: Path, tmp_path: Path, copy: bool, capsys: pytest.CaptureFixture[str]) -> None:
    lists = [str(voc / f"ImageSets/Main/{split}.txt") for split in ("train", "val")]
    output = tmp_path / "yolo"
    arguments = ["convert", "--train", lists[0], "--val", lists[1], "--output", str(output)]
    assert main([*arguments, "--copy"] if copy else arguments) == 0
    printed = capsys.readouterr().out
    assert "train: 2 images, 1 of them without objects, 2 objects" in printed
    assert "1 object marked as difficult skipped" in printed
    assert yaml.safe_load((output / "data.yaml").read_text())["names"] == {0: "cat", 1: "dog"}
    train, val = read(output, "train"), read(output, "val")
    assert not train.problems and not val.problems
    assert train.paths[0].is_symlink() is not copy
    # Corners from 1: 1 to 21 of 40 px is 0 to 20.
    np.testing.assert_allclose(train.labels[0], [[1, 0.25, 0.25, 0.5, 0.5], [0, 0.5, 0.5, 0.5, 2 / 3]], atol=1e-6)
    assert len(train.labels[1]) == 0
    # Clipped to the image: 2.5 to 39 is 1.5 to 38, 3 to 60 is 2 to 30.
    np.testing.assert_allclose(val.labels[0], [[0, 19.75 / 40, 16 / 30, 36.5 / 40, 28 / 30]], atol=1e-6)


def test_xml_files_next_to_images(tmp_path: Path) -> None:
    """Roboflow exports Pascal VOC this way."""
    for split in ("train", "valid"):
        write_voc(tmp_path / "x", split, ("dog", 0, 1, 1, 21, 16))
        (tmp_path / split).mkdir()
        for inner, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
            (tmp_path / "x" / inner / f"{split}.{suffix}").rename(tmp_path / split / f"{split}.{suffix}")
    flags = ["--train", str(tmp_path / "train"), "--val", str(tmp_path / "valid"), "--output", str(tmp_path / "yolo")]
    assert main(["convert", *flags]) == 0
    assert [len(labels) for labels in read(tmp_path / "yolo", "val").labels] == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>", "declares entities"),
        ("<annotation><size>", "invalid xml"),
        (f"<annotation><size><width>{'0' * 8}19</width></size></annotation>", "size/width is '0000000019'"),
        (f"<annotation><filename>{'a' * 300}.jpg</filename></annotation>", "size/width is ''"),
        ("<html/>", "not a Pascal VOC annotation: the root element is <html>"),
        ("<annotation><size><width>a</width></size></annotation>", "size/width is 'a'"),
    ],
)
def test_damaged_annotations_are_skipped_and_reported(
    voc: Path, tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (voc / "Annotations/000002.xml").write_text(content)
    write_voc(voc, "000003", ("cat", 0, 5, 5, 5, 9), ("cat", 0, "x", 5, 8, 9), ("cat", 0, "nan", 5, 8, 9))
    lists = [str(voc / f"ImageSets/Main/{split}.txt") for split in ("train", "val")]
    output, problems = tmp_path / "yolo", tmp_path / "problems.txt"
    arguments = ["--train", lists[0], "--val", lists[1], "--output", str(output), "--problems", str(problems)]
    assert main(["convert", *arguments]) == 1
    printed = capsys.readouterr().out
    assert f"{voc}/Annotations/000002.xml: error: {message}" in printed
    assert "object 1: the box is empty or outside the image; skipped" in printed
    assert "object 2: xmin is 'x', not a coordinate in pixels" in printed
    assert "object 3: xmin is 'nan', not a coordinate in pixels" in printed
    assert len(problems.read_text().splitlines()) == 4
    assert len(read(output, "train")) == 1


def test_document_types_are_rejected_in_any_encoding(voc: Path, tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "dog">]><annotation>&b;</annotation>'
    (voc / "Annotations/000002.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match="declares entities or a document type, which is not allowed"):
        read_voc(voc / "Annotations/000002.xml")


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_annotations_of_another_image_size(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Boxes in px of another shape would be wrong for the image; those of a scaled copy are right."""
    sizes = {"same": (40, 30), "scaled": (80, 60), "other": (30, 40)}
    source = tmp_path / kind
    for name, size in sizes.items():
        write_voc(source, name, ("dog", 0, 1, 1, 21, 16), size=size)
    if kind == "coco":
        images = [
            {"id": number, "file_name": f"{name}.jpg", "width": size[0], "height": size[1]}
            for number, (name, size) in enumerate(sizes.items())
        ]
        source = source / "JPEGImages/a.json"
        source.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    flags = ["--train", str(source), "--val", str(source), "--output", str(tmp_path / "yolo")]
    assert main(["convert", *flags]) == 1
    printed = capsys.readouterr().out
    assert "other.jpg: error: 40 x 30 px, the annotations say 30 x 40; image skipped" in printed
    assert "scaled.jpg: warning: 40 x 30 px, the annotations say 80 x 60; boxes scaled" in printed
    assert sorted(path.stem for path in (tmp_path / "yolo/images/train").iterdir()) == ["same", "scaled"]


def test_sources_and_links_are_not_overwritten(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xml = voc / "Annotations/000001.xml"
    before = xml.read_bytes()
    flags = ["convert", "--train", str(voc), "--val", str(voc), "--output", str(tmp_path / "yolo")]
    assert main([*flags, "--problems", str(xml)]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert xml.read_bytes() == before and not (tmp_path / "yolo").exists()
    (tmp_path / "yolo").symlink_to("nowhere")
    assert main(flags) == 2
    assert "already exists" in capsys.readouterr().err and (tmp_path / "yolo").is_symlink()


@pytest.mark.parametrize("name", ["", "a\nb"])
def test_unprintable_class_names_are_rejected(
    voc: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--train", str(voc), "--val", str(voc), "--output", str(tmp_path / "yolo"), "--names", name]
    assert main(["convert", *flags]) == 2
    assert capsys.readouterr().err == f"graph-check: --names {name!r}: must be a printable class name\n"


def test_full_disk_error_names_output(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(source: str, _: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)

    monkeypatch.setattr("shutil.copyfile", full)
    output = tmp_path / "yolo"
    assert main(["convert", "--train", str(voc), "--val", str(voc), "--output", str(output), "--copy"]) == 2
    expected = f"graph-check: --output {output}: No space left on device; the partial output has been removed\n"
    assert capsys.readouterr().err == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VOC2007"]


def test_second_interrupt_leaves_no_partial_output(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def remove_after_second_interrupt(*arguments: Any, **settings: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        remove(*arguments, **settings)

    remove = shutil.rmtree
    monkeypatch.setattr(os, "replace", interrupted)
    monkeypatch.setattr(shutil, "rmtree", remove_after_second_interrupt)
    source, output = str(voc / "ImageSets/Main/train.txt"), str(tmp_path / "new" / "yolo")
    assert main(["convert", "--train", source, "--val", source, "--output", output]) == 130
    assert list((tmp_path / "new").iterdir()) == []


def test_files_without_image_extension_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_coco(tmp_path / "train")
    file.write_text(file.read_text().replace("b.jpg", file.name))
    assert main(["convert", "--train", str(file), "--val", str(file), "--output", str(tmp_path / "yolo")]) == 1
    assert f"{file}: error: not the name of a supported image; skipped" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "yolo/images/train").iterdir()] == ["a.jpg"]


@pytest.mark.parametrize(
    ("output", "message"),
    [("o" * 300, "File name too long"), ("list.txt/a", "Not a directory"), ("/proc/x", "created")],
)
def test_impossible_outputs_are_named(
    voc: Path, tmp_path: Path, output: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("")
    flags = ["--train", str(voc), "--val", str(voc), "--output", str(tmp_path / output)]
    assert main(["convert", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"graph-check: --output {tmp_path / output}: ") and message in error


def write_coco(folder: Path) -> Path:
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        picture().save(folder / name)
    named = enumerate(("a.jpg", "b.jpg", "c.jpg"))
    images = [{"id": number, "file_name": name, "width": 40, "height": 30} for number, name in named]
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 7, "bbox": [0, 0, 20, 15], "iscrowd": 0},
        {"id": 2, "image_id": 0, "category_id": 3, "bbox": [10, 5, 20, 20], "iscrowd": 0},
    ]
    categories = [{"id": 7, "name": "zebra"}, {"id": 3, "name": "boat"}]
    file = folder / "_annotations.coco.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def test_coco_converts_to_yolo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = write_coco(tmp_path / "train"), tmp_path / "yolo"
    assert main(["convert", "--train", str(file), "--val", str(file), "--output", str(output)]) == 1
    assert "c.jpg: error: no such image; skipped" in capsys.readouterr().out
    train = read(output, "train")
    assert train.class_names == ("boat", "zebra")
    np.testing.assert_allclose(train.labels[0], [[1, 0.25, 0.25, 0.5, 0.5], [0, 0.5, 0.5, 0.5, 2 / 3]], atol=1e-6)
    assert len(train) == 2


def test_names_set_class_order_and_reject_others(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--train", str(voc), "--val", str(voc), "--output", str(tmp_path / "yolo"), "--names", "dog"]
    assert main(["convert", *arguments]) == 1
    assert "class 'cat' is not among the class names; object skipped" in capsys.readouterr().out
    assert [len(labels) for labels in read(tmp_path / "yolo", "train").labels] == [1, 0, 0]


def test_user_errors_are_one_line_and_leave_no_files(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("a\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    for source, output, message in (
        (tmp_path / "none", "yolo", "none: no such folder, list or COCO json"),
        (tmp_path / "empty", "yolo", "empty: no xml files"),
        (tmp_path / "list.txt", "yolo", "list.txt: not a list in VOC's ImageSets/Main"),
        (voc, "empty", "empty: already exists"),
    ):
        arguments = ["--train", str(source), "--val", str(voc), "--output", str(tmp_path / output)]
        assert main(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert main(["convert", "--train", str(voc)]) == 2
    assert "--train and --val: give the annotations" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
