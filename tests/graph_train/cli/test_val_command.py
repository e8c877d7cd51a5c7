import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.harness.training_command import as_flags
from graph_train.cli.val import main
from graph_train.detection.augmented_views import VIEWS, AugmentedInference, InferenceView, back_to_image, scaled
from graph_train.detection.detector import load_detector
from graph_train.detection.label_files import write_label_file
from graph_train.host.failures import USER_ERROR
from graph_train.settings.flag_table import options_of
from graph_train.settings.val_options import ValOptions
from graph_train.validation import evaluate as evaluation
from graph_train.validation.evaluate import evaluate
from kernels.ops.augmented_views.function import ViewRows
from kernels.runtime import Tensor, flow
from models.network import DetectionModel
from models.spec import load_model_spec
from models.weights import save_weights

NAMES = ("circle", "square")


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write five small images in COCO's layout, with YOLO labels and COCO annotations whose category ids start at 5."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("images/val", "labels/val", "annotations"):
        (root / folder).mkdir(parents=True)
    images, annotations = [], []
    for number in range(5):
        picture = Image.new("RGB", (96, 64), (90, 90, 90))
        ImageDraw.Draw(picture).rectangle((20, 16, 60, 48), fill=(200, 30, 30))
        picture.save(root / f"images/val/p{number}.jpg")
        (root / f"labels/val/p{number}.txt").write_text(f"{number % 2} {40 / 96} 0.5 {40 / 96} 0.5\n")
        images.append({"id": 100 + number, "file_name": f"p{number}.jpg", "width": 96, "height": 64})
        box = {"bbox": [20, 16, 40, 32], "area": 1280, "iscrowd": 0}
        annotations.append({"id": number + 1, "image_id": 100 + number, "category_id": 5 + number % 2, **box})
    categories = [{"id": 5 + number, "name": name} for number, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_val.json").write_text(json.dumps(content))
    (root / "data.yaml").write_text("train: images/val\nval: images/val\nnames: [circle, square]\n")
    return root / "data.yaml"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained network that detects objects nearly everywhere."""
    network = DetectionModel(load_model_spec("yolov5n.yaml", num_classes=2), seed=0)
    network.names = list(NAMES)
    for convolution in network.head.m:
        convolution.bias.data.add_(3.0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(network, path)
    return path


def flags(data_set: Path, weights: Path, folder: Path, *more: str) -> list[str]:
    size = as_flags(imgsz=64, batch_size=4, workers=1)
    return [*as_flags(weights=weights, data=data_set, project=folder, device="cpu"), *size, *more]


def test_writes_all_outputs(data_set: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(data_set, weights, tmp_path, "--save-json", "--save-txt", "--save-conf", "--max-det", "20")) == 0
    out = capsys.readouterr().out
    for text in ("all", "circle", "square", "Speed:", "Average Precision", f"Results saved to {tmp_path / 'exp'}"):
        assert text in out
    entries = json.loads((tmp_path / "exp/tiny_predictions.json").read_text())
    assert {entry["image_id"] for entry in entries} == set(range(100, 105))
    assert {entry["category_id"] for entry in entries} <= {5, 6}
    assert len(entries) <= 5 * 20
    rows = np.loadtxt(tmp_path / "exp/labels/p0.txt", ndmin=2)
    of_image = [entry for entry in entries if entry["image_id"] == 100]
    assert rows.shape == (len(of_image), 6)
    x, y, width, height = of_image[0]["bbox"]
    assert rows[0, 1:5] * [96, 64, 96, 64] == pytest.approx([x + width / 2, y + height / 2, width, height], abs=2e-3)
    assert (tmp_path / "exp/PR_curve.png").exists()


def test_coco_results_are_saved_by_default(
    data_set: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "coco").mkdir()
    images = sorted((data_set.parent / "images/val").iterdir())
    (tmp_path / "coco/val2017.txt").write_text("".join(f"{image}\n" for image in images))
    coco = tmp_path / "coco.yaml"
    coco.write_text("path: coco\ntrain: val2017.txt\nval: val2017.txt\nnames: [circle, square]\n")
    common = ("--noplots", "--eager", "--conf-thres", "0.01")
    assert main(flags(coco, weights, tmp_path / "runs", *common)) == 0
    assert json.loads((tmp_path / "runs/exp/tiny_predictions.json").read_text())
    assert "--conf-thres 0.01: above 0.001, " in capsys.readouterr().out
    for others in (("--save-hybrid",), ("--task", "speed")):
        assert (
            main(flags(coco, weights, tmp_path / "runs", *(common if len(others) == 1 else common[:2]), *others)) == 0
        )
        assert ("labels count as detections" in capsys.readouterr().out) == (len(others) == 1)
    assert [file.parent.name for file in tmp_path.rglob("*_predictions.json")] == ["exp"]


def test_eager_matches_graph(data_set: Path, weights: Path, tmp_path: Path) -> None:
    common = {
        "weights": weights,
        "data": data_set,
        "imgsz": 64,
        "device": "cpu",
        "workers": 1,
        "noplots": True,
        "project": str(tmp_path),
    }
    found = [evaluate(options_of(ValOptions, {**common, "graph": graph})).results[0] for graph in (True, False)]
    assert found[0].means == found[1].means
    assert found[0].images == 5


def test_speed_task_and_incremented_run_folder(data_set: Path, weights: Path, tmp_path: Path) -> None:
    assert main(flags(data_set, weights, tmp_path, "--noplots")) == 0
    assert main(flags(data_set, weights, tmp_path, "--task", "speed")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exp", "exp2"]


def test_study_separates_sizes_and_weights(
    data_set: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "STUDY_SIZES", (64, 96))
    other = tmp_path / "other" / weights.name  # as `best.safetensors` of two runs
    other.parent.mkdir()
    shutil.copy(weights, other)
    given = flags(data_set, weights, tmp_path, "--task", "study", "--weights", str(weights), str(other))
    at = given.index("--imgsz")  # the study has its own sizes
    del given[at : at + 2]
    assert main(given) == 0
    out = capsys.readouterr().out
    places = [out.index(f"{path} at {size} px\n") for path in (weights, other) for size in (64, 96)]
    assert places == sorted(places)
    for name in ("tiny", "tiny2"):
        rows = np.loadtxt(tmp_path / f"exp/study_data_{name}.txt")  # as the reference's plot_val_study reads it
        assert rows.shape == (2, 10)
        assert (rows[:, 7:] > 0).all()
    assert (tmp_path / "exp/study.png").exists()


def test_weights_are_labelled_by_difference() -> None:
    assert evaluation._distinct_labels(["runs/exp/best.pt"]) == ["best.pt"]
    assert evaluation._distinct_labels(["runs/exp/best.pt", "runs/exp2/best.pt"]) == ["exp/best.pt", "exp2/best.pt"]
    assert evaluation._distinct_labels(["a.pt", "/elsewhere/a.pt"])[1] == "elsewhere/a.pt"


def test_ensemble_and_augmented_inference_add_boxes(weights: Path) -> None:
    images = np.full((1, 3, 64, 96), 114, np.uint8)
    one = load_detector([weights], device="cpu", graph=False)(images)[0]
    two = load_detector([weights, weights], device="cpu", graph=False)(images)[0]
    assert np.array_equal(two, np.concatenate((one, one), axis=1))
    seen = load_detector([weights], device="cpu", graph=False, augment=True)(images)[0]
    # Levels of 64 x 96 px: 3 anchors x (8x12, 4x6, 2x3); at 0.83 and 0.67 the view is filled up to 64 x 96 and 64 x 96.
    rows = np.asarray([96, 24, 6]) * 3
    assert seen.shape[1] == (rows.sum() - rows[2]) + rows.sum() + (rows.sum() - rows[0])
    assert np.allclose(seen[:, : rows[:2].sum()], one[:, : rows[:2].sum()], atol=1e-3)


def detect_brightest_pixel(images: Tensor) -> np.ndarray:
    """Predict a 10 px box at the brightest pixel: 21 equal rows, as from 3 levels."""
    pixels = images.numpy()[:, 0]
    where = [np.unravel_index(image.argmax(), image.shape) for image in pixels]
    rows = np.asarray([[x + 0.5, y + 0.5, 10, 10, 1, 1] for y, x in where], np.float32)
    return np.repeat(rows[:, None], 21, axis=1)


@pytest.mark.parametrize("view", VIEWS)
def test_view_round_trip(view: InferenceView) -> None:
    images = np.zeros((1, 3, 64, 96), np.uint8)
    images[:, :, 38:43, 68:73] = 100
    images[:, :, 40, 70] = 255
    found = detect_brightest_pixel(scaled(flow.from_numpy(images), view, 32))
    rows = back_to_image(found, ViewRows(0, 21, view.scale, view.mirrored), 96)
    assert rows[0, 0, :4] == pytest.approx([70.5, 40.5, 10 / view.scale, 10 / view.scale], abs=1.5)


def test_view_as_large_as_small_image_has_its_own_graph(weights: Path) -> None:
    """The 0.83 view of a 64 px image is padded to 64 px, too, but it is float32, while the image is uint8."""
    images = np.random.default_rng(3).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8)
    graph, eager = (
        load_detector([weights], device="cpu", graph=graph, augment=True)(images)[0] for graph in (True, False)
    )
    np.testing.assert_allclose(graph, eager, rtol=1e-5, atol=1e-5)


def test_augmented_inference_joins_views() -> None:
    images = np.zeros((2, 3, 64, 96), np.uint8)
    images[:, :, 38:43, 68:73] = 200
    images[:, :, 40, 70] = 255
    rows, loss = AugmentedInference(detect_brightest_pixel, (8, 16, 32))(images, np.zeros((0, 6), np.float32))
    assert loss is None
    assert rows.shape == (2, 20 + 21 + 5, 6)  # the first view without its last level, the last one without its first
    assert np.ptp(rows[:, :, 0]) < 4


def test_label_file_known_values(tmp_path: Path) -> None:
    rows = np.asarray([[10, 20, 30, 60, 0.5, 1]], np.float32)
    file = tmp_path / "cell.txt"
    write_label_file(file, rows, image_hw=(100, 200), confidence=False)
    assert file.read_text() == "1 0.1 0.4 0.1 0.4\n"
    write_label_file(file, rows, image_hw=(100, 200), confidence=True)
    assert file.read_text() == "1 0.1 0.4 0.1 0.4 0.5\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--weights: give t"),
        ({"weights": "a", "data": ""}, "--data '': empty"),
        ({"weights": "a", "half": True}, "--half"),
        ({"weights": "a", "dnn": True}, "--dnn"),
        ({"weights": "a", "conf_thres": 2}, "--conf-thres 2"),
        ({"weights": "a", "task": "all"}, "--task 'all': must be one of val"),
        ({"weights": "a", "imgsz": 0}, "--imgsz 0: must be at least 32"),
        ({"weights": "a", "save_conf": True}, "--save-conf"),
        ({"weights": "a", "save_hybrid": True, "save_json": True}, "--save-hybrid"),
        ({"weights": "a", "task": "speed", "save_json": True}, "--task speed saves no detections"),
        ({"weights": "a", "task": "speed", "iou_thres": 0.5}, "--iou-thres: --task speed always uses"),
        ({"weights": "a", "task": "study", "imgsz": 320}, "--imgsz: --task study uses its own image sizes"),
        ({"weights": "a", "conf_thresh": 1}, "did you mean 'conf_thres'"),
    ],
)
def test_inapplicable_settings_are_rejected(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options_of(ValOptions, given)


def test_mismatched_class_names_warn(
    data_set: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warn if `--data` is forgotten and the built-in data set has the same number of classes."""
    for names, reported in (("[circle, cell]", True), ("[circle, square]", False)):
        other = data_set.with_name("other.yaml")
        other.write_text(f"train: images/val\nval: images/val\nnames: {names}\n")
        assert main(flags(other, weights, tmp_path, "--noplots", "--eager")) == 0
        warning = f"{weights}: class 1 is 'square', but in {other} it is 'cell'"
        assert (warning in capsys.readouterr().out) == reported


def test_user_errors_are_one_line(
    data_set: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, word in (
        (["--weights", str(tmp_path / "none.pt"), "--data", str(data_set)], "none.pt"),
        (["--weights", str(weights), "--data", str(tmp_path / "none.yaml")], "none.yaml"),
        (["--weights", str(weights), "--data", str(data_set), "--task", "test"], "test"),
    ):
        assert main([*arguments, "--device", "cpu", "--project", str(tmp_path)]) == USER_ERROR
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("graph-val: ")
        assert word in error


def test_network_for_grey_images_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "grey.safetensors"
    grey = {**load_model_spec("yolov5n.yaml", num_classes=2).config, "ch": 1}
    save_weights(DetectionModel(load_model_spec(grey), seed=0), path)
    with pytest.raises(ValueError, match=f"{path}: its network: ch=1: images have 3 channels"):
        load_detector([path], device="cpu")


def test_impossible_results_folder_is_rejected_before_slow_work(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"x")
    options = {"weights": str(tmp_path / "damaged.safetensors"), "data": str(tmp_path / "none.yaml")}
    with pytest.raises(OSError, match=r"/proc/new/exp: the results folder cannot be created \(.*; choose another"):
        evaluate(options_of(ValOptions, {**options, "project": "/proc/new"}))


def test_data_set_label_files_are_not_overwritten(weights: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (96, 64)).save(root / "images" / "p.jpg")
    (root / "labels" / "p.txt").write_text("0 .5 .5 .2 .2\n")
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [circle, square]\n")
    flags = {"data": str(root / "data.yaml"), "weights": (str(weights),), "imgsz": 64, "noplots": True}
    with pytest.raises(ValueError, match=r"p\.txt: a result would overwrite a source image or label"):
        evaluate(
            options_of(
                ValOptions, {**flags, "project": str(tmp_path), "name": "set", "exist_ok": True, "save_txt": True}
            )
        )
    assert (root / "labels" / "p.txt").read_text() == "0 .5 .5 .2 .2\n"
