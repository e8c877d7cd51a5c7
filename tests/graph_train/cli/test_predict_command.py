import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import graph_train
from benchmarks.harness.training_command import as_flags
from graph_train.cli.predict import main
from graph_train.detection import inference
from graph_train.detection.detector import load_detector
from graph_train.detection.nms import NmsSettings, non_max_suppression
from graph_train.plots.images import BoxStyle, draw_detections
from graph_train.plots.style import class_colour
from graph_train.prediction.image_detector import ImageDetector
from graph_train.prediction.predict import PredictionResult, _with_frame_folders
from graph_train.prediction.sources import SourceFile, Sources
from graph_train.runs import run_folder
from graph_train.settings.flag_table import options_of
from graph_train.settings.predict_options import DetectorOptions, PredictOptions
from kernels.framework.eager_runs import EAGER_RUNS
from models.weights import save_weights
from pipelines.data.video import Video, VideoFile
from tests.graph_train.tiny import steepen, tiny_network

NAMES = ("red cell", "white/cell", "plate")
WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three images that fit 96 px exactly (one in a subfolder), a tall image and two broken files."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    random = np.random.default_rng(5)
    for name, side in (("a.png", 8), ("b.bmp", 16), ("more/a.png", 32)):
        blocks = random.integers(0, 256, (HEIGHT // side, WIDTH // side, 3), np.uint8)
        Image.fromarray(blocks.repeat(side, axis=0).repeat(side, axis=1)).save(folder / name)
    Image.fromarray(random.integers(0, 256, (90, 50, 3), np.uint8)).save(folder / "high.jpg")
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    images = [np.asarray(Image.open(photos / name)).transpose(2, 0, 1) for name in ("a.png", "b.bmp", "more/a.png")]
    network = steepen(tiny_network(seed=3), np.stack(images))
    network.names = list(NAMES)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(network, path)
    return path


@pytest.fixture
def predict_in_memory(weights: Path, photos: Path, tmp_path: Path) -> Any:
    """Predict on the images without writing files."""

    def run(**flags: Any) -> PredictionResult:
        common = {
            "weights": weights,
            "source": photos,
            "imgsz": 96,
            "nosave": True,
            "device": "cpu",
            "workers": 2,
            "project": tmp_path / "none",
            "graph": False,
        }
        result = graph_train.predict(**{**common, **flags})
        assert not (tmp_path / "none").exists()
        return result

    return run


def arguments(weights: Path, source: Path | str, folder: Path, *more: str) -> list[str]:
    return [*as_flags(weights=weights, source=source, imgsz=96, workers=2, project=folder, device="cpu"), *more]


def test_writes_all_outputs_and_skips_broken_files(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--save-txt", "--save-conf", "--save-json", "--save-crop", "--conf-thres", "0.4", "--max-det", "9")
    assert main(arguments(weights, photos, tmp_path, *flags)) == 2
    printed = capsys.readouterr()
    assert "graph-predict: 2 source files could not be used" in printed.err
    for text in (f"{photos}/a.png: 96x64 px, ", "in 4 of 4 images", "Results saved to", f"{photos}/cut.png: error: "):
        assert text in printed.out
    folder = tmp_path / "exp"
    for name, size in (("a.png", (96, 64)), ("b.bmp", (96, 64)), ("more/a.png", (96, 64)), ("high.jpg", (50, 90))):
        assert Image.open(folder / name).size == size
        assert (
            np.asarray(Image.open(folder / name).convert("RGB")).tolist()
            != np.asarray(Image.open(photos / name).convert("RGB")).tolist()
        )
    entries = json.loads((folder / "predictions.json").read_text())
    of_a = [entry for entry in entries if entry["file_name"] == str(photos / "more/a.png")]
    rows = np.loadtxt(folder / "labels/more/a.txt", ndmin=2)
    assert 1 <= len(of_a) == len(rows) <= 9
    for entry, (category, x, y, width, height, confidence) in zip(of_a, rows, strict=True):
        assert entry["category_id"] == category
        assert entry["category_name"] == NAMES[int(category)]
        assert entry["score"] == pytest.approx(confidence, abs=1e-5)
        box = [(x - width / 2) * WIDTH, (y - height / 2) * HEIGHT, width * WIDTH, height * HEIGHT]
        assert entry["bbox"] == pytest.approx(box, abs=2e-3)
    crops = {str(path.relative_to(folder / "crops")) for path in (folder / "crops").rglob("*.jpg")}
    assert len(crops) == len(entries)
    assert {crop.split("/")[0] for crop in crops} <= {"red cell", "white_cell", "plate"}


def test_writes_table_of_all_detections(weights: Path, photos: Path, tmp_path: Path) -> None:
    result = graph_train.predict(
        weights=weights,
        source=photos,
        imgsz=96,
        nosave=True,
        save_csv=True,
        device="cpu",
        project=tmp_path,
        graph=False,
    )
    with (tmp_path / "exp/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [path.name for path in (tmp_path / "exp").iterdir()] == ["predictions.csv"]
    expected = {str(found.path): found.detections for found in result.predictions}
    assert len(rows) == sum(map(len, expected.values())) > 3
    for path, detections in expected.items():
        own = [row for row in rows if row["file"] == path]
        numbers = [[float(row[key]) for key in ("x1", "y1", "x2", "y2", "confidence", "class")] for row in own]
        np.testing.assert_allclose(numbers, detections, rtol=1e-4)
        assert [row["name"] for row in own] == [NAMES[int(row[5])] for row in detections]
        assert {row["frame"] for row in own} == {""}


def test_detections_match_network(weights: Path, photos: Path, predict_in_memory: Any) -> None:
    found = {
        prediction.path.relative_to(photos): prediction.detections for prediction in predict_in_memory().predictions
    }
    names = [Path("a.png"), Path("b.bmp"), Path("more/a.png")]
    images = np.stack([np.asarray(Image.open(photos / name)).transpose(2, 0, 1) for name in names])
    predictions = load_detector([weights], device="cpu", graph=False)(images)[0]
    expected = non_max_suppression(predictions, NmsSettings(max_det=1000))
    for name, rows in zip(names, expected, strict=True):
        rows[:, :4] = rows[:, :4].clip(0, (WIDTH, HEIGHT, WIDTH, HEIGHT))
        assert len(rows)
        np.testing.assert_allclose(found[name], rows, atol=1e-4)


def test_batch_size_and_graph_do_not_change_results(predict_in_memory: Any) -> None:
    one, many, graph = (
        predict_in_memory(batch_size=1),
        predict_in_memory(batch_size=8),
        predict_in_memory(graph=True, batch_size=2),
    )
    assert [p.name for p in one.predictions] == [Path("a.png"), Path("b.bmp"), Path("high.jpg"), Path("more/a.png")]
    for first, second, third in zip(one.predictions, many.predictions, graph.predictions, strict=True):
        assert first.path == second.path == third.path
        np.testing.assert_allclose(second.detections, first.detections, atol=1e-4)
        np.testing.assert_allclose(third.detections, first.detections, atol=1e-4)
    assert [problem.file.name for problem in one.problems] == ["cut.png", "text.jpg"]
    assert sum(one.counts.values()) == sum(len(prediction.detections) for prediction in one.predictions)


def test_nms_flags(predict_in_memory: Any) -> None:
    def rows(**flags: Any) -> np.ndarray:
        return np.concatenate([found.detections for found in predict_in_memory(**flags).predictions])

    everything = rows()
    assert set(rows(classes=(0, 2))[:, 5]) == set(everything[:, 5]) - {1}
    assert rows(conf_thres=0.8)[:, 4].min() > 0.8 > everything[:, 4].min()
    assert len(rows(max_det=2)) == 8
    assert len(rows(agnostic_nms=True)) < len(everything)
    assert len(rows(iou_thres=0.1)) < len(everything) < len(rows(iou_thres=0.9))
    with pytest.raises(ValueError, match="--classes 3: the weights have 3 classes"):
        rows(classes=3)


def test_ensemble_and_augmented_inference(weights: Path, predict_in_memory: Any) -> None:
    one, two = predict_in_memory(), predict_in_memory(weights=[weights, weights])
    for single, joined in zip(one.predictions, two.predictions, strict=True):
        np.testing.assert_allclose(joined.detections, single.detections, atol=1e-4)  # each box suppresses its double
    seen = [predict_in_memory(augment=True, graph=graph).predictions for graph in (False, True)]
    assert any(len(a.detections) != len(b.detections) for a, b in zip(seen[0], one.predictions, strict=True))
    for eager, graph in zip(*seen, strict=True):
        np.testing.assert_allclose(graph.detections, eager.detections, atol=1e-3)


def test_graph_is_compiled_for_many_batches_or_on_request(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(inference, "compile_graph", lambda graph, *_: compiled.append(graph))

    def graphs(source: Path, *flags: str) -> int:
        compiled.clear()
        assert main(arguments(weights, source, tmp_path, "--nosave", *flags)) == 0
        return len(compiled)

    copies = tmp_path / "copies"
    copies.mkdir()
    for number in range(EAGER_RUNS):
        shutil.copy(photos / "a.png", copies / f"{number}.png")
    assert graphs(copies, "--batch-size", "1") == 0
    assert graphs(copies, "--graph", "--batch-size", "16") == 1
    shutil.copy(photos / "a.png", copies / "one more.png")
    assert graphs(copies, "--eager", "--batch-size", "1") == 0
    assert graphs(copies, "--batch-size", "1") == 1


def test_class_names_from_data_set(photos: Path, predict_in_memory: Any, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("val: .\nnames: [x, y, z]\n")
    assert predict_in_memory(data=tmp_path / "data.yaml").class_names == ("x", "y", "z")
    (tmp_path / "data.yaml").write_text("val: .\nnames: [x, y]\n")
    with pytest.raises(ValueError, match="has 2 classes, but the weights have 3"):
        predict_in_memory(data=tmp_path / "data.yaml")


def test_stdin_source_and_exist_ok(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos}/a.png\n{photos}/b.bmp\n"))
        assert main(arguments(weights, "-", tmp_path, "--exist-ok", "--eager")) == 0
    assert {path.name for path in tmp_path.rglob("*")} == {"exp", "a.png", "b.bmp"}
    assert main(arguments(weights, photos / "a.png", tmp_path, "--eager")) == 0
    assert (tmp_path / "exp2/a.png").exists()


def test_concurrent_commands_get_separate_folders(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unused = run_folder.unused_path

    def create_folder_first(project: str, name: str, *, exist_ok: bool) -> Path:
        """Simulate another process that creates the folder just chosen by this command."""
        found = unused(project, name, exist_ok=exist_ok)
        (tmp_path / "exp").mkdir(exist_ok=True)
        return found

    monkeypatch.setattr(run_folder, "unused_path", create_folder_first)
    assert main(arguments(weights, photos / "a.png", tmp_path, "--eager")) == 0
    assert (tmp_path / "exp2/a.png").exists()
    assert not list((tmp_path / "exp").iterdir())


def test_visualize_writes_feature_maps(weights: Path, photos: Path, tmp_path: Path) -> None:
    for name, mode in (("graph", "--graph"), ("eager", "--eager")):
        assert (
            main(arguments(weights, photos / "*.bmp", tmp_path, "--name", name, "--visualize", "--nosave", mode)) == 0
        )
    folder = tmp_path / "graph/b"
    assert {path.name for path in folder.glob("*.png")} == {
        f"stage{layer}_{kind}_features.png"
        for layer, kind in enumerate(["Conv", "Conv", "Conv", "C3", "Conv", "SPPF", "Upsample", "Concat", "Conv"])
    }
    maps = np.load(folder / "stage3_C3_features.npy")
    assert maps.shape == (16, 8, 12)
    np.testing.assert_allclose(maps, np.load(tmp_path / "eager/b/stage3_C3_features.npy"), atol=1e-5)
    assert not (tmp_path / "graph/b.bmp").exists()


def test_predict_on_video(weights: Path, photos: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    frames = random.integers(0, 256, (7, 8, 12, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    clip = tmp_path / "clip.mp4"
    file = VideoFile(clip, (WIDTH, HEIGHT), 10.0)
    for frame in frames:
        file.add(frame)
    file.close()
    (tmp_path / "no.avi").write_text("no video")
    flags = ("--batch-size", "3", "--save-txt", "--save-json", "--vid-stride", "2")
    code = main([*arguments(weights, clip, tmp_path, *flags), "--source", str(clip), str(tmp_path / "no.avi")])
    assert code == 2
    folder = tmp_path / "exp"
    assert {path.name for path in (folder / "labels").iterdir()} == {f"clip_{number}.txt" for number in (1, 3, 5, 7)}
    assert {entry["frame"] for entry in json.loads((folder / "predictions.json").read_text())} == {1, 3, 5, 7}
    written = Video(folder / "clip.mp4")
    assert (written.size, written.rate, len(list(written.read()))) == ((WIDTH, HEIGHT), 5.0, 4)
    # The same as predicting its frames as images, if the codec decodes them identically.
    source = Video(clip)
    pixels = list(source.read(2))
    for number, frame in enumerate(pixels):
        Image.fromarray(frame).save(tmp_path / f"f{number}.png")
    flags_of_both = {"weights": weights, "imgsz": 96, "nosave": True, "device": "cpu", "graph": False}
    expected = graph_train.predict(**flags_of_both, source=str(tmp_path / "f*.png")).predictions
    found = graph_train.predict(**flags_of_both, source=clip, vid_stride=2).predictions
    assert [prediction.frame for prediction in found] == [1, 3, 5, 7]
    for first, second in zip(found, expected, strict=True):
        np.testing.assert_allclose(first.detections, second.detections, atol=1e-4)


def test_unreadable_parts_of_videos_are_reported(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenCV crashes on names that are not UTF-8, and ends silently where a file does."""
    cv2 = pytest.importorskip("cv2")
    whole, cut, undecodable = tmp_path / "whole.mkv", tmp_path / "cut.mkv", tmp_path / os.fsdecode(b"\xe9.mp4")
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (WIDTH, HEIGHT))
    for frame in np.random.default_rng(0).integers(0, 256, (40, HEIGHT, WIDTH, 3), np.uint8):
        writer.write(frame)
    writer.release()
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    undecodable.touch()
    sources = [whole, cut, undecodable]
    code = main([*arguments(weights, "x", tmp_path, "--eager", "--nosave"), "--source", *map(str, sources)])
    printed = capsys.readouterr()
    assert code == 2 and "graph-predict: 2 source files could not be used" in printed.err
    problems = [line for line in printed.out.splitlines() if line.startswith("skipped: ")]
    assert re.fullmatch(rf"skipped: {cut}: error: ends after frame \d+ of 40, the file is incomplete.*", problems[0])
    assert problems[1].startswith(f"skipped: {tmp_path}/\\xe9.mp4: error: the path is not valid UTF-8, which OpenCV")
    assert len(problems) == 2


def test_video_frames_do_not_collide_with_image_names(weights: Path, photos: Path, tmp_path: Path) -> None:
    file = VideoFile(tmp_path / "clip.v2.mp4", (WIDTH, HEIGHT), 10.0)
    for name in ("a.png", "b.bmp"):
        file.add(np.asarray(Image.open(photos / name)))
    file.close()
    Image.open(photos / "a.png").save(tmp_path / "clip.v2_1.png")
    source = tmp_path / "clip.v2*"
    assert main(arguments(weights, source, tmp_path, "--eager", "--visualize", "--save-txt", "--save-json")) == 0
    folder, results = tmp_path / "exp", {"clip.v2_1", "clip.v2_2_1", "clip.v2_2_2"}
    assert {path.stem for path in (folder / "labels").iterdir()} == results
    assert {entry["image_id"] for entry in json.loads((folder / "predictions.json").read_text())} == results
    assert {path.parent.name for path in folder.rglob("stage0_Conv_features.npy")} == results
    assert {path.name for path in folder.glob("clip*") if path.is_file()} == {"clip.v2_1.png", "clip.v2_2.mp4"}


def test_video_names_avoid_image_names() -> None:
    def named(images: list[str], videos: list[str]) -> list[str]:
        files = [tuple(SourceFile(Path(name), Path(name)) for name in names) for names in (images, videos)]
        return [str(file.name) for file in _with_frame_folders(Sources(files[0], files[1], ())).videos]

    assert named(["clip_0001.jpg", "clip_0.jpg", "a/clip_1.jpg", "clip_1_.jpg"], ["clip.mp4"]) == ["clip.mp4"]
    assert named(["a/clip_12.jpg"], ["clip.mp4", "a/clip.avi"]) == ["clip.mp4", "a/clip_2.avi"]
    assert named(["c_1.jpg", "c_2_5.jpg", "c_3.jpg"], ["c.mp4", "c_4.mp4"]) == ["c_5.mp4", "c_4.mp4"]


def test_view_img_opens_viewer(weights: Path, photos: Path, tmp_path: Path) -> None:
    """The system's viewer is replaced by a program that copies the images."""
    viewer = tmp_path / "bin" / "xdg-open"
    viewer.parent.mkdir()
    viewer.write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/half.png && mv {tmp_path}/half.png {tmp_path}/shown.png\n')
    viewer.chmod(0o755)
    environment = {**os.environ, "DISPLAY": ":0", "PATH": f"{viewer.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "graph_train.cli.predict"]
    flags = arguments(weights, photos / "a.png", tmp_path, "--view-img", "--nosave", "--eager", "--hide-labels")
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    end = time.monotonic() + 30
    while not (tmp_path / "shown.png").exists() and time.monotonic() < end:  # the command does not wait for the viewer
        time.sleep(0.05)
    assert Image.open(tmp_path / "shown.png").size == (96, 64)
    assert not (tmp_path / "exp").exists()


def test_summary_counts_detections(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for threshold, message in (("1.0", r"Found nothing in 1 image\n"), ("0.25", r"Found \d+ .*; in 1 of 1 image\n")):
        flags = ["--nosave", "--eager", "--conf-thres", threshold]
        assert main(arguments(weights, photos / "a.png", tmp_path, *flags)) == 0
        assert re.search(message, capsys.readouterr().out)


def test_at_most_one_thread_per_core(weights: Path) -> None:
    detector = ImageDetector(DetectorOptions(weights=(str(weights),), device="cpu", workers=10**3))
    assert detector.batches.workers == os.cpu_count()


def drawn(row: np.ndarray, style: BoxStyle) -> np.ndarray:
    picture = Image.new("RGB", (120, 80), (90, 90, 90))
    draw_detections(picture, row, NAMES, style)
    return np.asarray(picture)


def test_box_drawing_options() -> None:
    row = np.asarray([[20, 40, 60, 70, 0.5, 1]], np.float32)
    bare = drawn(row, BoxStyle(4, names=False))
    inked = (bare != 90).any(axis=2)
    assert np.argwhere(inked).min(axis=0).tolist() == [40, 20]
    assert np.argwhere(inked).max(axis=0).tolist() == [70, 60]
    assert inked.sum() == 41 * 31 - 33 * 23
    assert tuple(bare[42, 30]) == class_colour(1)
    named = drawn(row, BoxStyle(4, confidences=False))
    complete = drawn(row, BoxStyle(4))
    widths = [(picture[:36] != 90).any(axis=(0, 2)).sum() for picture in (bare, named, complete)]
    assert widths[0] == 0 < widths[1] < widths[2]


def test_undecodable_file_names_are_escaped_in_tables(weights: Path, tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"caf\xe9 \xc2\xa0.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(source)
    assert main([*arguments(weights, source, tmp_path), "--save-csv", "--save-json", "--conf-thres", "0.001"]) == 0
    name = f"{tmp_path}/caf\\xe9 \xa0.png"
    assert name in {row["file"] for row in csv.DictReader((tmp_path / "exp/predictions.csv").open(encoding="utf-8"))}
    assert name in {entry["file_name"] for entry in json.loads((tmp_path / "exp/predictions.json").read_text())}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": ()}, "--weights: give trained weights"),
        ({"source": ()}, "--source: give images"),
        ({"save_conf": True}, "--save-conf: requires --save-txt"),
        ({"nosave": True, "hide_labels": True}, "--hide-labels: has no effect with --nosave"),
        ({"hide_labels": True, "hide_conf": True}, "--hide-conf: redundant with --hide-labels"),
        ({"visualize": True, "augment": True}, "--visualize: not supported with"),
        ({"visualize": True, "weights": ("a", "b")}, "--visualize: not supported with"),
        ({"half": True}, "--half: not supported, this command computes in float32"),
        ({"dnn": True}, "--dnn: OpenCV DNN"),
        ({"update": True}, "--update: not supported"),
        ({"view_img": True}, "--view-img: no display available"),
        ({"imgsz": (1, 2, 3)}, "--imgsz"),
        ({"imgsz": []}, "--imgsz .*give one number, or height and width"),
        ({"conf_thres": 1.5}, "--conf-thres 1.5: must be between 0 and 1"),
        ({"line_thickness": 0}, "--line-thickness 0: must be at least 1"),
    ],
)
def test_inapplicable_settings_are_rejected(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=message):
        options_of(PredictOptions, {"weights": "a.pt", "source": "b.jpg", **given})


def test_user_errors_are_one_line(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_text("x")
    for source, more, word in (
        ("none.jpg", (), "none.jpg: no such file"),
        (tmp_path / "broken.jpg", (), "no usable image; first problem: "),
        (photos / "a.png", ("--vid-stride", "2"), "--vid-stride 2: the sources contain no video"),
    ):
        assert main([*arguments(weights, source, tmp_path), *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("graph-predict: ")
        assert word in error


def test_results_never_overwrite_sources(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    (root / "labels").mkdir(parents=True)
    shutil.copytree(photos, root / "images")
    for image in (root / "images").rglob("*.*"):
        (root / "labels" / f"{image.stem}.txt").write_text("0 .5 .5 .1 .1\n")
    before = {file: file.read_bytes() for file in root.rglob("*.*")}
    common = ["--weights", str(weights), "--source", str(root / "images"), "--imgsz", "64", "--exist-ok"]
    for flags in (["--name", "set/images"], ["--name", "set", "--nosave", "--save-txt"]):
        assert main([*common, "--project", str(tmp_path), *flags]) == 2
        assert "would overwrite a source image or label" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before


def test_impossible_results_folder_is_rejected_before_slow_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"x")
    arguments = ["--weights", str(tmp_path / "damaged.safetensors"), "--source", str(tmp_path / "none.jpg")]
    for more, message in (
        ([], "/proc/new/exp: the results folder cannot be created ("),
        (["--nosave"], "none.jpg: no such file"),
    ):
        assert main([*arguments, "--project", "/proc/new", *more]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("entry", "message"), [("", "--source: give images"), ("pipe.txt", "not a regular file")])
def test_unreadable_sources_are_rejected(
    tmp_path: Path, entry: str, message: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert main(["--weights", str(weights), "--source", str(tmp_path / entry) if entry else ""]) == 2
    assert message in capsys.readouterr().err
