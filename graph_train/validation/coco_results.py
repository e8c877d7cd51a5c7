"""Detections in the form of COCO result files, and COCO's evaluation of them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.validation.measuring import ImageDetections
from kernels.host.files import write_atomically

Entry = dict[str, Any]

_ABSENT_FROM_COCO = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in _ABSENT_FROM_COCO)
"""Category ids of the 80 classes of COCO 2017, in the order of YOLO's class numbers."""


@dataclass(frozen=True)
class CocoIds:
    """The ids of images and classes in a result file.

    `image_ids` maps file names, with and without their extension, to image ids; empty: the number that the file name
    is, else the file name without extension. `category_ids` has one id per class.
    """

    image_ids: dict[str, Any]
    category_ids: tuple[int, ...]

    def image_id(self, path: Path) -> Any:
        """Return the id of an image file.

        Raises:
            ValueError: there are annotations, and they do not name this image.
        """
        if not self.image_ids:
            return id_of_name(path.stem)
        for key in (path.name, path.stem):
            if key in self.image_ids:
                return self.image_ids[key]
        raise ValueError(f"{path}: not among the images of the COCO annotations; validate the split they belong to")

    def for_images(self, paths: Sequence[Path]) -> "CocoIds":
        """Return the same ids; refuse them if they do not tell these images apart.

        Raises:
            ValueError: two of them would have one id, or one has none.
        """
        seen: dict[Any, Path] = {}
        for path in paths:
            number = self.image_id(path)
            if seen.setdefault(number, path) != path:
                raise ValueError(f"--save-json: {path} and {seen[number]} would both be image {number!r}; rename one")
        return self


def id_of_name(name: str) -> int | str:
    """Return the id of an image without annotations: the number that its name is (42 for `000042`), else the name."""
    return int(name) if name.isascii() and name.isdigit() else name


def default_ids(class_names: Sequence[str], *, is_coco: bool = False) -> CocoIds:
    """Return ids used without an annotation file: COCO's own ids for its 80 classes, otherwise class numbers from 0."""
    if is_coco and len(class_names) == len(COCO_CATEGORY_IDS):
        return CocoIds({}, COCO_CATEGORY_IDS)
    return CocoIds({}, tuple(range(len(class_names))))


def ids_of_annotations(annotations: Path, class_names: Sequence[str]) -> CocoIds:
    """Return the ids that a COCO annotation file uses: images by file name, classes by name.

    Raises:
        ValueError: the file is no COCO annotation file, or lacks a class of the data set.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
        images = {str(image["file_name"]): image["id"] for image in content["images"]}
        categories = {str(category["name"]): int(category["id"]) for category in content["categories"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{annotations}: not a COCO annotation file ({type(error).__name__}: {error})") from None
    missing = [name for name in class_names if name not in categories]
    if missing:
        raise ValueError(
            f"{annotations}: has no category {missing[0]!r} (its categories: {', '.join(categories)}); "
            "class names of the data set and of the annotations must agree"
        )
    by_name = {Path(name).name: number for name, number in images.items()}
    by_stem = {Path(name).stem: number for name, number in images.items()}
    if len(by_stem) < len(images):
        repeated = next(name for name, count in Counter(Path(name).stem for name in images).items() if count > 1)
        raise ValueError(
            f"{annotations}: several images are called {repeated}, in different folders or with different "
            "extensions; rename them, a COCO result names images by their file names"
        )
    return CocoIds(by_stem | by_name, tuple(categories[name] for name in class_names))


def find_annotations(image: Path) -> Path | None:
    """Find `annotations/instances_<split>.json` next to the `images` folder of an image, where COCO's layout
    has it; return None if there is none."""
    split, root = image.parent.name, image.parent.parent
    for folder in (root.parent / "annotations", root / "annotations"):
        candidate = folder / f"instances_{split}.json"
        if candidate.is_file():
            return candidate
    return None


def result_entries(image: ImageDetections, ids: CocoIds) -> list[Entry]:
    """Return the entries of one image: bbox x, y, w, h in px with 3 digits, score with 5, as YOLOv5 writes them."""
    return entries_of(image.detections, ids.image_id(image.path), ids.category_ids)


def entries_of(detections: npt.NDArray[Any], image_id: Any, category_ids: Sequence[int]) -> list[Entry]:
    """Return the entries of (k, 6) x1, y1, x2, y2 in px, confidence, class; `category_ids` has one for each class."""
    corners = detections[:, :4].astype(np.float64)
    boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1).round(3)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(row[5])],
            "bbox": box.tolist(),
            "score": round(float(row[4]), 5),
        }
        for row, box in zip(detections, boxes, strict=True)
    ]


def write_results(path: Path, entries: Sequence[Entry]) -> None:
    """Write a COCO result file; a number that is not finite is an error, never a token that JSON does not know."""
    write_atomically(path, json.dumps(list(entries), allow_nan=False))


@dataclass(frozen=True)
class CocoMetrics:
    """The 12 numbers of COCO's evaluation, in its order, and the table it prints."""

    stats: tuple[float, ...]
    table: str

    @property
    def map50_95(self) -> float:
        """Mean average precision over IoU 0.5 to 0.95, at most 100 detections per image."""
        return self.stats[0]

    @property
    def map50(self) -> float:
        """Mean average precision at IoU 0.5."""
        return self.stats[1]


def evaluate_results(annotations: Path, results: Path, image_ids: Sequence[Any]) -> CocoMetrics:
    """Evaluate a result file on the given images, as pycocotools would.

    Annotations are numbered anew: COCO's evaluation takes one with id 0, which exports of labelling tools begin with,
    for unmatched.

    Raises:
        ValueError: the result file is empty or does not belong to these annotations.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    entries = json.loads(results.read_text(encoding="utf-8"))
    if not entries:
        raise ValueError(f"{results}: no detection in it; lower --conf-thres")
    truth = json.loads(annotations.read_text(encoding="utf-8"))
    numbers = _image_numbers([image["id"] for image in truth["images"]])
    for entry in entries:
        if entry["image_id"] not in numbers:
            raise ValueError(f"{results}: does not belong to {annotations}, which has no image {entry['image_id']!r}")
        entry["image_id"] = numbers[entry["image_id"]]
    content = {
        "images": [{**image, "id": numbers[image["id"]]} for image in truth["images"]],
        "annotations": _numbered_labels(truth["annotations"], numbers),
        "categories": truth["categories"],
    }
    table: list[str] = []
    labels = COCO(content)
    evaluation = COCOeval_faster(labels, labels.loadRes(entries), "bbox", print_function=lambda _: None)
    evaluation.params.imgIds = [numbers[image] for image in image_ids]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.print_function = table.append
    evaluation.summarize()
    return CocoMetrics(tuple(float(value) for value in evaluation.stats), "\n".join(table[: len(evaluation.stats)]))


def _image_numbers(ids: Sequence[Any]) -> dict[Any, int]:
    """Return numbers from 1 for ids that may be texts; ties between equal scores are broken in the order of the ids."""
    all_numbers = all(isinstance(number, int) for number in ids)
    return {number: place for place, number in enumerate(sorted(ids, key=None if all_numbers else str), start=1)}


def _numbered_labels(labels: Sequence[Entry], image_numbers: dict[Any, int]) -> list[Entry]:
    """Return the annotations with ids from 1.

    `iscrowd` and `area`, which training does not need, get their usual values.
    """
    known = (label for label in labels if label["image_id"] in image_numbers)
    return [
        {
            "iscrowd": 0,
            "area": label["bbox"][2] * label["bbox"][3],
            **label,
            "id": number,
            "image_id": image_numbers[label["image_id"]],
        }
        for number, label in enumerate(known, start=1)
    ]
