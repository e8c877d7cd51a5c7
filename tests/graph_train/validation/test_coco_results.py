import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_train.metrics.average_precision import match_detections
from graph_train.validation.coco_results import (
    COCO_CATEGORY_IDS,
    CocoIds,
    default_ids,
    evaluate_results,
    find_annotations,
    ids_of_annotations,
    result_entries,
    write_results,
)
from graph_train.validation.measuring import ImageDetections
from tests.parity.metrics import coco_ap

NAMES = ("RBC", "WBC", "Platelets")


def image_with(*rows: tuple[float, ...], path: str = "images/000042.jpg") -> ImageDetections:
    return ImageDetections(Path(path), (480, 640), np.asarray(rows, np.float32).reshape(-1, 6), np.zeros((0, 5)))


def entries_of(image: ImageDetections, ids: CocoIds) -> list[dict[str, Any]]:
    return result_entries(image.detections, ids.image_id(image.path), ids.category_ids)


def test_entry_known_values() -> None:
    entries = entries_of(image_with((10.12345, 20, 30.5, 60, 0.1234567, 1)), default_ids(("a", "b")))
    assert entries == [{"image_id": 42, "category_id": 1, "bbox": [10.123, 20, 20.377, 40], "score": 0.12346}]


def test_boxes_round_as_in_yolov5() -> None:
    """Recorded from YOLOv5: from the centre in float32, 534.40045 becomes 534.40051, and 534.401 when rounded."""
    entries = entries_of(
        image_with(
            (534.4004516601562, 291.7640380859375, 587.1075439453125, 359.54010009765625, 0.5, 0),
            (501.73675537109375, 368.9385070800781, 635.7423706054688, 386.311767578125, 0.5, 0),
        ),
        default_ids(("a",)),
    )
    assert [entry["bbox"] for entry in entries] == [
        [534.401, 291.764, 52.707, 67.776],
        [501.737, 368.938, 134.006, 17.373],
    ]


@pytest.mark.parametrize(("name", "number"), [("000042.jpg", 42), ("cell_7.jpg", "cell_7"), ("²3.jpg", "²3")])
def test_image_id_without_annotations(name: str, number: object) -> None:
    assert default_ids(("a",)).image_id(Path(name)) == number


def test_duplicate_image_ids_raise() -> None:
    ids = default_ids(("a",))
    apart = [Path("left/1.jpg"), Path("left/2.jpg"), Path("right/3.jpg")]
    assert ids.for_images(apart) is ids
    for other in ("right/1.jpg", "left/001.jpg"):
        with pytest.raises(
            ValueError, match=f"--save-json: {other} and left/1.jpg have the same image id 1; rename one"
        ):
            ids.for_images([*apart, Path(other)])


def test_coco_category_ids() -> None:
    assert len(COCO_CATEGORY_IDS) == 80
    # person, bicycle ... fire hydrant 11, stop sign 13; the last one is toothbrush 90
    assert (COCO_CATEGORY_IDS[0], COCO_CATEGORY_IDS[10], COCO_CATEGORY_IDS[11], COCO_CATEGORY_IDS[79]) == (
        1,
        11,
        13,
        90,
    )
    assert default_ids([f"c{i}" for i in range(80)], is_coco=True).category_ids == COCO_CATEGORY_IDS
    assert default_ids(NAMES, is_coco=True).category_ids == (0, 1, 2)


def write_annotations(path: Path) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "val/x.jpg", "width": 100, "height": 100}],
        "annotations": [],
        "categories": [{"id": 3, "name": "RBC"}, {"id": 1, "name": "WBC"}],
    }
    path.write_text(json.dumps(content))
    return path


def test_ids_come_from_annotations(tmp_path: Path) -> None:
    file = write_annotations(tmp_path / "instances_val.json")
    ids = ids_of_annotations(file, ("WBC", "RBC"))
    assert ids.category_ids == (1, 3)
    assert ids.image_id(Path("elsewhere/x.jpg")) == ids.image_id(Path("x.png")) == 7
    with pytest.raises(ValueError, match=r"y.jpg: not in the COCO annotations"):
        ids.image_id(Path("y.jpg"))
    with pytest.raises(ValueError, match="no category 'Platelets'"):
        ids_of_annotations(file, NAMES)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"images": 3, "categories": []}'])
def test_invalid_annotations_raise(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: not a COCO annotation file"):
        ids_of_annotations(tmp_path / "a.json", NAMES)


def test_results_of_other_data_set_raise(tmp_path: Path) -> None:
    file = write_annotations(tmp_path / "instances_val.json")
    write_results(tmp_path / "r.json", entries_of(image_with((0, 0, 9, 9, 0.5, 0)), default_ids(("a",))))
    with pytest.raises(ValueError, match="does not match"):
        evaluate_results(file, tmp_path / "r.json", [7])
    write_results(tmp_path / "empty.json", [])
    with pytest.raises(ValueError, match="no detection"):
        evaluate_results(file, tmp_path / "empty.json", [7])


def jittered_detections(annotations: Path, images: Path, *, noise: float, seed: int) -> list[ImageDetections]:
    """Derive detections from real annotations: jittered, some duplicated, missing, misclassified or random."""
    random = np.random.default_rng(seed)
    content = json.loads(annotations.read_text())
    found = []
    for image in content["images"]:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        labels = np.asarray([[a["category_id"] - 1, *a["bbox"]] for a in mine], np.float64).reshape(-1, 5)
        labels[:, 3:] += labels[:, 1:3]
        made = np.repeat(labels, random.integers(0, 3, len(labels)), axis=0)
        made = np.concatenate((made, np.column_stack((random.integers(0, 3, 4), random.uniform(0, 300, (4, 4))))))
        sides = np.abs(made[:, 3:5] - made[:, 1:3])
        corners = made[:, 1:] + random.normal(0, noise, (len(made), 4)) * np.tile(sides, 2)
        corners[:, 2:] = np.maximum(corners[:, :2] + 1, corners[:, 2:])
        wrong = random.random(len(made)) < 0.1
        category = np.where(wrong, random.integers(0, 3, len(made)), made[:, 0])
        # The scores of COCO files have 5 digits; equal ones would make the order, and so the result, arbitrary.
        score = np.sort(random.choice(99_999, len(made), replace=False) / 1e5)[::-1]
        rows = np.column_stack((corners.clip(0, [640, 480, 640, 480]), score, category)).astype(np.float32)
        found.append(ImageDetections(images / image["file_name"], (480, 640), rows, labels.astype(np.float32)))
    return found


def our_ap(images: list[ImageDetections]) -> np.ndarray:
    correct = np.concatenate([match_detections(image.detections, image.labels) for image in images])
    detections = np.concatenate([image.detections for image in images])
    label_class = np.concatenate([image.labels[:, 0] for image in images])
    return coco_ap(correct, detections[:, 4], detections[:, 5], label_class)


@pytest.mark.parametrize(("noise", "seed"), [(0.02, 0), (0.05, 1), (0.1, 2)])
def test_map_agrees_with_cocoeval_on_real_annotations(tmp_path: Path, bccd: Path, noise: float, seed: int) -> None:
    annotations = bccd.parent / "annotations" / "instances_val.json"
    images = jittered_detections(annotations, bccd.parent / "images" / "val", noise=noise, seed=seed)
    found_beside = find_annotations(images[0].path)
    assert found_beside == annotations
    ids = ids_of_annotations(annotations, NAMES)
    write_results(tmp_path / "r.json", [entry for image in images for entry in entries_of(image, ids)])
    coco = evaluate_results(annotations, tmp_path / "r.json", [ids.image_id(image.path) for image in images])
    assert "Average Precision" in coco.table
    ap = our_ap(images)
    assert (ap[:, 0].mean(), ap.mean()) == pytest.approx((coco.map50, coco.map50_95), abs=1e-3)
    assert 0.1 < ap.mean() < 0.9


def test_duplicate_image_names_raise(tmp_path: Path) -> None:
    file = tmp_path / "instances_val.json"
    images = [{"id": n, "file_name": f"cam{n}/0001.jpg"} for n in (1, 2)]
    file.write_text(json.dumps({"images": images, "categories": [{"id": 3, "name": "RBC"}]}))
    with pytest.raises(ValueError, match="several images have the name 0001"):
        ids_of_annotations(file, ("RBC",))


def test_annotations_need_neither_area_nor_iscrowd(tmp_path: Path) -> None:
    truth, found = tmp_path / "instances_val.json", tmp_path / "found.json"
    boxes = [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 40]}]
    content = {"images": [{"id": 7, "file_name": "x.jpg", "width": 100, "height": 100}], "annotations": boxes}
    truth.write_text(json.dumps({**content, "categories": [{"id": 3, "name": "RBC"}]}))
    write_results(found, [{"image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 40], "score": 0.9}])
    assert evaluate_results(truth, found, [7]).map50_95 == pytest.approx(1.0)


def random_set(seed: int, *, images: int, classes: int, digits: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return annotations, some of them crowds, and detections near them and at random, with tied scores."""
    random = np.random.default_rng(seed)
    categories = [{"id": 3 * number + 1, "name": f"c{number}"} for number in range(classes)]
    labels: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []

    def category() -> int:
        return int(random.choice([3 * number + 1 for number in range(classes)]))

    for image in range(images):
        for _ in range(int(random.integers(0, 15))):
            box = np.concatenate((random.uniform(0, 400, 2), np.exp(random.uniform(1.5, 5.5, 2))))
            label = {"image_id": 7 * image + 1, "category_id": category()}
            facts = {"iscrowd": int(random.random() < 0.05), "area": float(box[2] * box[3] * random.uniform(0.5, 1))}
            labels.append({**label, "id": len(labels) + 1, "bbox": box.tolist(), **facts})
            for _ in range(int(random.integers(0, 3))):
                moved = (box + random.normal(0, 0.12, 4) * np.tile(box[2:], 2)).round(3)
                moved[2:] = np.maximum(moved[2:], 0.5)
                found.append({**label, "bbox": moved.tolist(), "score": round(float(random.random()), digits)})
        for _ in range(130 if image == 0 else 5):  # more than the 100 that count
            anywhere = {"image_id": 7 * image + 1, "category_id": category()}
            box = np.concatenate((random.uniform(0, 400, 2), random.uniform(1, 200, 2))).round(3)
            found.append({**anywhere, "bbox": box.tolist(), "score": round(float(random.random()), digits)})
    size = {"width": 640, "height": 480}
    pictures = [{"id": 7 * image + 1, "file_name": f"{image}.jpg", **size} for image in range(images)]
    return {"info": {}, "images": pictures, "annotations": labels, "categories": categories}, found


def stats_of_pycocotools(truth: Path, found: Path, image_ids: list[int]) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        labels = COCO(str(truth))
        evaluation = COCOeval(labels, labels.loadRes(str(found)), "bbox")
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize(("images", "classes", "digits"), [(1, 2, 5), (30, 3, 5), (30, 80, 5), (40, 1, 1), (30, 10, 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_match_pycocotools(tmp_path: Path, seed: int, images: int, classes: int, digits: int) -> None:
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    content, entries = random_set(seed, images=images, classes=classes, digits=digits)
    truth.write_text(json.dumps(content))
    found.write_text(json.dumps(entries))
    ids = [image["id"] for image in content["images"]][: max(1, images - seed)]
    ours = evaluate_results(truth, found, ids)
    assert len(ours.stats) == 12
    assert ours.stats == pytest.approx(stats_of_pycocotools(truth, found, ids), abs=1e-9)
    assert len(set(ours.stats)) > 3
    lines = ours.table.splitlines()
    assert len(lines) == 12
    assert lines[0] == f" Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = {ours.map50_95:.3f}"


@pytest.mark.parametrize("first", [0, 1])
def test_annotation_ids_and_image_names_do_not_matter(tmp_path: Path, first: int) -> None:
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    box = {"image_id": "left", "category_id": 3, "bbox": [10, 10, 40, 40]}
    pictures = [{"id": name, "file_name": f"{name}.jpg", "width": 100, "height": 100} for name in ("left", "right")]
    labels = [{**box, "id": first}, {**box, "id": first, "image_id": "right"}]
    truth.write_text(json.dumps({"images": pictures, "annotations": labels, "categories": [{"id": 3, "name": "RBC"}]}))
    write_results(found, [{**box, "score": 0.9}, {**box, "image_id": "right", "score": 0.8}])
    assert evaluate_results(truth, found, ["left", "right"]).map50_95 == pytest.approx(1.0)
    write_results(found, [{**box, "image_id": "middle", "score": 0.9}])
    with pytest.raises(ValueError, match="which has no image 'middle'"):
        evaluate_results(truth, found, ["left"])
