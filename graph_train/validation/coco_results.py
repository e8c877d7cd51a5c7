"""Detections in COCO results format, and their evaluation as in pycocotools."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.host.files import write_atomically

Entry = dict[str, Any]

_ABSENT_FROM_COCO = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in _ABSENT_FROM_COCO)
"""Category ids of the 80 classes of COCO 2017, by YOLO's class number."""


@dataclass(frozen=True)
class CocoIds:
    """The ids of images and classes in a results file.

    Attributes:
        image_ids: image ids by file name, with and without extension. If empty, the id is the file name without
            extension, as a number if possible.
        category_ids: category id of each class.
    """

    image_ids: dict[str, Any]
    category_ids: tuple[int, ...]

    def image_id(self, path: Path) -> Any:
        """Return the id of an image file.

        Raises:
            ValueError: the annotations do not contain this image.
        """
        if not self.image_ids:
            return id_of_name(path.stem)
        for key in (path.name, path.stem):
            if key in self.image_ids:
                return self.image_ids[key]
        raise ValueError(f"{path}: not in the COCO annotations; validate the split that they belong to")

    def for_images(self, paths: Sequence[Path]) -> "CocoIds":
        """Check that the ids of these images are distinct, and return self.

        Raises:
            ValueError: two images have the same id, or an image has none.
        """
        seen: dict[Any, Path] = {}
        for path in paths:
            number = self.image_id(path)
            if seen.setdefault(number, path) != path:
                raise ValueError(
                    f"--save-json: {path} and {seen[number]} have the same image id {number!r}; rename one"
                )
        return self


def id_of_name(name: str) -> int | str:
    """Return the id of an image without annotations: the name, as an integer if it is numeric (`000042` is 42)."""
    return int(name) if name.isascii() and name.isdigit() else name


def default_ids(class_names: Sequence[str], *, is_coco: bool = False) -> CocoIds:
    """Return the ids for a data set without annotations: COCO's category ids for its 80 classes, else class numbers."""
    if is_coco and len(class_names) == len(COCO_CATEGORY_IDS):
        return CocoIds({}, COCO_CATEGORY_IDS)
    return CocoIds({}, tuple(range(len(class_names))))


def ids_of_annotations(annotations: Path, class_names: Sequence[str]) -> CocoIds:
    """Return the ids in a COCO annotation file, matching images by file name and classes by name.

    Raises:
        ValueError: the file is not a COCO annotation file, or a class of the data set is missing.
        OSError: the file cannot be read.
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
            f"{annotations}: no category {missing[0]!r} (categories: {', '.join(categories)}); the class names of the "
            "data set and the annotations must match"
        )
    by_name = {Path(name).name: number for name, number in images.items()}
    by_stem = {Path(name).stem: number for name, number in images.items()}
    if len(by_stem) < len(images):
        repeated = next(name for name, count in Counter(Path(name).stem for name in images).items() if count > 1)
        raise ValueError(
            f"{annotations}: several images have the name {repeated}, in different folders or with different "
            "extensions; rename them, because they are matched by file name"
        )
    return CocoIds(by_stem | by_name, tuple(categories[name] for name in class_names))


def find_annotations(image: Path) -> Path | None:
    """Return `annotations/instances_<split>.json` next to an image's `images` folder, as in COCO, or None."""
    split, root = image.parent.name, image.parent.parent
    for folder in (root.parent / "annotations", root / "annotations"):
        candidate = folder / f"instances_{split}.json"
        if candidate.is_file():
            return candidate
    return None


def result_entries(detections: npt.NDArray[Any], image_id: Any, category_ids: Sequence[int]) -> list[Entry]:
    """Return the entries of an image for its detections (k, 6) x1, y1, x2, y2 in px, confidence, class.

    The bbox is x, y, w, h in px, rounded to 3 digits, the score to 5. Boxes are computed from the centre in float32,
    as in YOLOv5, so that both round to the same digits.
    """
    first, last = np.split(detections[:, :4].astype(np.float32), 2, axis=1)
    size = last - first
    boxes = np.concatenate(((first + last) / 2 - size / 2, size), axis=1)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(row[5])],
            "bbox": [round(side, 3) for side in box],
            "score": round(float(row[4]), 5),
        }
        for row, box in zip(detections, boxes.tolist(), strict=True)
    ]


def write_results(path: Path, entries: Sequence[Entry]) -> None:
    """Write a COCO results file; a non-finite number is an error, because JSON cannot represent it."""
    write_atomically(path, json.dumps(list(entries), allow_nan=False))


@dataclass(frozen=True)
class CocoMetrics:
    """The 12 metrics of COCO's evaluation, in its order, and its table."""

    stats: tuple[float, ...]
    table: str

    @property
    def map50_95(self) -> float:
        """Mean average precision over IoU 0.5 to 0.95, with at most 100 detections per image."""
        return self.stats[0]

    @property
    def map50(self) -> float:
        """Mean average precision at IoU 0.5."""
        return self.stats[1]


def evaluate_results(annotations: Path, results: Path, image_ids: Sequence[Any]) -> CocoMetrics:
    """Evaluate a results file on the given images, as pycocotools does.

    Annotations are renumbered from 1, because COCO's evaluation treats id 0, which some labelling tools start with, as
    unmatched.

    Raises:
        ValueError: the results file is empty or does not match the annotations.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    entries = json.loads(results.read_text(encoding="utf-8"))
    if not entries:
        raise ValueError(f"{results}: no detections; lower --conf-thres")
    truth = json.loads(annotations.read_text(encoding="utf-8"))
    numbers = _image_numbers([image["id"] for image in truth["images"]])
    for entry in entries:
        if entry["image_id"] not in numbers:
            raise ValueError(f"{results}: does not match {annotations}, which has no image {entry['image_id']!r}")
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
    """Map ids, which may be strings, to numbers from 1 in sorted order; COCO breaks ties of equal scores by it."""
    all_numbers = all(isinstance(number, int) for number in ids)
    return {number: place for place, number in enumerate(sorted(ids, key=None if all_numbers else str), start=1)}


def _numbered_labels(labels: Sequence[Entry], image_numbers: dict[Any, int]) -> list[Entry]:
    """Return the annotations renumbered from 1, with default values for missing `iscrowd` and `area`."""
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
