"""A data set with every kind of damaged file: hundreds of images and labels, some of them valid."""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.corpus.images import Case, Expected, damaged_images, encoded, picture
from tests.corpus.labels import GOOD, damaged_labels

GOOD_IMAGES = 6
CLASSES = ("red", "green")
_NAMES = (
    *("with space.jpg", "two\nlines.jpg", "tab\there.jpg", "50%s{0}$(x).jpg", "'quoted\".jpg", "-rf.jpg", "..jpg"),
    *("ünï-日本.jpg", "\x1b[31mred.jpg", "n" * 250 + ".jpg", "a.b.c.jpg", os.fsdecode(b"not-utf8-\xff\xfe.jpg")),
)


@dataclass(frozen=True)
class CorpusFile:
    """An image and its label file, which of the two is damaged, and the expected outcome."""

    image: Path
    fault: Path
    expected: Expected


def write_corpus(root: Path) -> tuple[Path, list[CorpusFile]]:
    """Write the data set; return its yaml and the files of its train split. The val split is valid."""
    images, labels = root / "images" / "train", root / "labels" / "train"
    for folder in (images, labels, root / "images" / "val", root / "labels" / "val"):
        folder.mkdir(parents=True)
    files = []
    for number in range(GOOD_IMAGES):
        files.append(_add(images, labels, Case(f"good-{number}.jpg", encoded(image=picture(64, 48 + number)), "used")))
    for case in damaged_images():
        files.append(_add(images, labels, case))
    for case in damaged_labels():
        found = _add(images, labels, Case(f"label-{case.name}.png", encoded("PNG"), "used"), case.content)
        files.append(CorpusFile(found.image, labels / f"label-{case.name}.txt", case.expected))
    files += [_add(images, labels, Case(name, encoded(), "used")) for name in _NAMES]
    files += _special(images, labels)
    for number in range(4):
        _add(root / "images" / "val", root / "labels" / "val", Case(f"{number}.jpg", encoded(), "used"))
    return _yaml(root), files


def _add(images: Path, labels: Path, case: Case, rows: bytes = GOOD) -> CorpusFile:
    image = images / case.name
    image.write_bytes(case.content)
    (labels / image.with_suffix(".txt").name).write_bytes(rows)
    return CorpusFile(image, image, case.expected)


def _special(images: Path, labels: Path) -> list[CorpusFile]:
    """Create files that are not regular or not accessible."""
    (images / "loop.jpg").symlink_to("loop.jpg")
    (images / "nowhere.jpg").symlink_to("/nonexistent/x.jpg")
    (images / "device.jpg").symlink_to("/dev/zero")
    (images / "around").symlink_to(images)
    os.mkfifo(images / "pipe.jpg")
    (images / "folder.jpg").mkdir()
    found = [
        CorpusFile(images / name, images / name, "reported")
        for name in ("loop.jpg", "nowhere.jpg", "device.jpg", "pipe.jpg")
    ]
    locked = _add(images, labels, Case("locked.jpg", encoded(), "reported" if os.geteuid() else "used"))
    locked.image.chmod(0)
    for name in ("label-pipe", "label-folder", "label-loop"):
        label = labels / f"{name}.txt"
        _add(images, labels, Case(f"{name}.jpg", encoded(), "used"))
        label.unlink()
        found.append(CorpusFile(images / f"{name}.jpg", label, "reported"))
    os.mkfifo(labels / "label-pipe.txt")
    (labels / "label-folder.txt").mkdir()
    (labels / "label-loop.txt").symlink_to("label-loop.txt")
    (labels / "orphan.txt").write_bytes(GOOD)
    return [*found, locked, CorpusFile(images / "none.jpg", labels / "orphan.txt", "reported")]


def _yaml(root: Path) -> Path:
    file = root / "corpus.yaml"
    file.write_text(yaml.safe_dump({"path": ".", "train": "images/train", "val": "images/val", "names": list(CLASSES)}))
    return file
