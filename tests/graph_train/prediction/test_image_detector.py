"""`graph_train.load`: image types, results, one compilation per shape, threads, memory."""

import gc
import io
import json
import os
import pickle
import re
import select
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import graph_train
from graph_train.detection import inference
from graph_train.host.memory import resident_bytes
from graph_train.prediction.image_detector import ImageDetector
from models.weights import save_weights
from tests.graph_train.tiny import steepen, tiny_network

NAMES = ("red", "green", "blue")
SIZES = ((64, 96), (96, 64), (50, 90))
"""Height and width in px. At 96 px they give three batch shapes: the last image is enlarged to 53 x 96, 64 x 96 with
border."""


def random_image(height: int, width: int, seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.ascontiguousarray(blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = np.stack([random_image(64, 96, seed).transpose(2, 0, 1) for seed in range(3)])
    network = steepen(tiny_network(seed=3), images)
    network.names = list(NAMES)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(network, path)
    return path


@pytest.fixture(scope="module")
def detector(weights: Path) -> ImageDetector:
    return graph_train.load(weights, imgsz=96, device="cpu", workers=2)


class BytesPath:
    """A path that is given as bytes, as entries of `os.scandir(b"…")` are."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self._path)


def rows(result: Any) -> np.ndarray:
    return np.concatenate((result.boxes, result.scores[:, None], result.classes[:, None]), axis=1)


def test_every_image_type_gives_same_result(detector: ImageDetector, tmp_path: Path) -> None:
    pixels = random_image(64, 96, 7)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    stream = io.BytesIO()
    # Stored rotated, with an EXIF orientation that restores the same image.
    turned, exif = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    turned.save(stream, "PNG", exif=exif)
    strided = np.concatenate((pixels, pixels), axis=1)[:, :96]
    given = [path, str(path), path.read_bytes(), stream.getvalue(), Image.open(path), pixels, strided]
    expected = detector(pixels)
    assert len(expected) > 3
    for image, result in zip(given, detector(given), strict=True):
        np.testing.assert_array_equal(rows(result), rows(expected))
        np.testing.assert_array_equal(rows(detector(image)), rows(expected))
        assert result.image_hw == (64, 96)
    assert [detector(image).path for image in given[:3]] == [path, path, None]


def test_detector_matches_command(detector: ImageDetector, weights: Path, tmp_path: Path) -> None:
    for number, (height, width) in enumerate(SIZES * 2):
        kind = "jpg" if number < 3 else "png"
        Image.fromarray(random_image(height, width, number)).save(tmp_path / f"{number}.{kind}", quality=95)
    result = graph_train.predict(weights=weights, source=tmp_path, imgsz=96, device="cpu", workers=2, nosave=True)
    for found, own in zip(result.predictions, detector([found.path for found in result.predictions]), strict=True):
        assert len(own)
        np.testing.assert_allclose(rows(own), found.detections, atol=1e-3)


def test_image_order_is_preserved(detector: ImageDetector) -> None:
    images = [random_image(*SIZES[number % 3], number) for number in range(20)]
    expected = [rows(detector(image)) for image in images]
    for result, alone, image in zip(detector(images), expected, images, strict=True):
        np.testing.assert_allclose(rows(result), alone, atol=1e-3)
        assert result.image_hw == image.shape[:2]
    stacked = np.stack(images[::3])
    assert [len(result) for result in detector(stacked)] == [len(rows) for rows in expected[::3]]
    assert detector([]) == []


def test_graph_is_compiled_once_per_shape(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[int, ...]] = []
    compile_graph = inference.compile_graph

    def counting(graph: Any, images: Any, *rest: Any) -> None:
        compiled.append(tuple(images.shape))
        compile_graph(graph, images, *rest)

    monkeypatch.setattr(inference, "compile_graph", counting)
    own = graph_train.load(weights, imgsz=96, device="cpu", graph=True)
    images = [random_image(*SIZES[number % 3], number) for number in range(100)]
    first = own(images)
    assert sorted(compiled) == sorted({*compiled})
    assert len(compiled) == 2  # with its border, the third size has the shape of the first
    again = own(images)
    own(images[0])
    assert len(compiled) == 2
    assert [len(result) for result in first] == [len(result) for result in again]
    own.close()
    assert len(own(images[0])) == len(first[0])


def test_concurrent_calls_get_their_own_results(detector: ImageDetector) -> None:
    images = [random_image(*SIZES[number % 3], number) for number in range(24)]
    expected = [rows(detector(image)) for image in images]
    with ThreadPoolExecutor(6) as pool:
        for alone, result in zip(expected, pool.map(detector, images), strict=True):
            np.testing.assert_array_equal(rows(result), alone)


def test_pickled_detector_reloads_weights(detector: ImageDetector) -> None:
    pixels = random_image(64, 96, 7)
    copy = pickle.loads(pickle.dumps(detector))  # noqa: S301 - written here
    np.testing.assert_array_equal(rows(copy(pixels)), rows(detector(pixels)))


@pytest.mark.parametrize("loads", [False, True])
def test_forked_process_raises_instead_of_hanging(detector: ImageDetector, weights: Path, loads: bool) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            (graph_train.load(weights, imgsz=96) if loads else detector)(random_image(64, 96, 7))
        except ValueError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        assert select.select([reading], [], [], 60)[0], "the child waits for threads that it does not have"
        assert "forked after OneFlow was loaded" in os.read(reading, 1000).decode()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


def test_results_render_list_and_save(detector: ImageDetector, tmp_path: Path) -> None:
    pixels = random_image(64, 96, 7)
    before = pixels.copy()
    result = detector(pixels)
    assert (result.boxes >= 0).all() and (result.boxes <= [96, 64, 96, 64]).all()
    assert (np.diff(result.scores) <= 0).all()
    drawn = result.plot()
    assert drawn.shape == pixels.shape and (drawn != pixels).any()
    np.testing.assert_array_equal(pixels, before)
    listed = json.loads(json.dumps(result.as_dict()))
    assert (listed["path"], listed["height"], listed["width"]) == (None, 64, 96)
    assert [entry["name"] for entry in listed["objects"]] == [NAMES[number] for number in result.classes]
    assert listed["objects"][0]["box"] == pytest.approx(result.boxes[0].tolist())
    result.save_txt(tmp_path / "labels.txt", confidence=True)
    written = np.loadtxt(tmp_path / "labels.txt", ndmin=2)
    np.testing.assert_array_equal(written[:, 0], result.classes)
    np.testing.assert_allclose(written[:, 1] * 96, result.boxes[:, [0, 2]].mean(axis=1), atol=1e-3)
    np.testing.assert_allclose(written[:, 5], result.scores, atol=1e-5)
    assert repr(result).startswith("image: 96x64 px, ")


@pytest.mark.parametrize("line_px", [0, -1, float("nan"), 2.5, "a", None, 10**9, [3]])
def test_invalid_line_width_raises(detector: ImageDetector, line_px: Any) -> None:
    result = detector(random_image(64, 96, 7))
    with pytest.raises(ValueError, match=re.escape(f"line_px={line_px!r}: must be an integer from 1 to 1000")):
        result.plot(line_px=line_px)


@pytest.mark.parametrize("path", [None, 5, b"labels.txt", ["labels.txt"]])
def test_saving_to_no_path_raises(detector: ImageDetector, path: Any) -> None:
    with pytest.raises(ValueError, match=r"path=.*: must be a string or a path"):
        detector(random_image(64, 96, 7)).save_txt(path)


def test_width_of_numpy_and_undecoded_paths_are_accepted(
    detector: ImageDetector, weights: Path, tmp_path: Path
) -> None:
    image = random_image(64, 96, 7)
    paths: list[Any] = [BytesPath(path) for path in (tmp_path / "a.png", tmp_path / "a.txt", weights)]
    photo, labels, file = paths
    Image.fromarray(image).save(tmp_path / "a.png")
    result, width = detector(photo), np.ones((), np.int64)[()]
    np.testing.assert_array_equal(rows(result), rows(detector(image)))
    np.testing.assert_array_equal(result.plot(line_px=width), result.plot(line_px=1))
    result.save_txt(labels)
    assert (tmp_path / "a.txt").exists()
    assert graph_train.load(file, device="cpu").class_names == NAMES


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 96, 3), np.float32), r"image 1: array \(64, 96, 3\) of float32; .*multiply by 255"),
        (np.zeros((64, 96), np.uint8), r"image 1: array \(64, 96\) of uint8; expected \(h, w, 3\)"),
        (np.zeros((9, 96, 3), np.uint8), "image 1: 96 x 9 px; sides of at least 10 px"),
        (7, "image 1: type int; expected a path"),
        # Their range is unknown: 0 to 1, 255 or 65535. They came out black.
        (Image.new("F", (64, 64)), "image 1: pixels of type 'F'; 8-bit and 16-bit images are supported"),
        (Image.new("I", (64, 64)), "image 1: pixels of type 'I'"),
        # Refused before 28 GiB are copied.
        (np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (100_000, 100_000, 3)), "image 1: 100000 x 100000 px"),
        (b"no image", r"image 1: not an image \(JPEG, PNG, BMP, WebP or TIFF by its content\)$"),
        ("none.jpg", "none.jpg: no such file"),
        ("https://me:secret@host/a.jpg", r"^image 1: https://host/a.jpg is a URL; use predict\(source="),
    ],
)
def test_invalid_image_is_named(detector: ImageDetector, image: Any, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        detector([random_image(64, 96, 0), image])


def test_settings_match_command(weights: Path) -> None:
    with pytest.raises(ValueError, match="unknown setting 'conf_thresh'; did you mean 'conf_thres'"):
        graph_train.load(weights, conf_thresh=0.5)
    with pytest.raises(ValueError, match="--weights: give trained weights"):
        graph_train.load("")
    numbers = {"imgsz": np.int64(96), "conf_thres": np.float32(0.5), "classes": [np.int32(1)]}
    assert set(graph_train.load(weights, device="cpu", **numbers)(random_image(64, 96, 7)).classes) <= {1}
    with pytest.raises(ValueError, match="--classes 3: the weights have 3 classes"):
        graph_train.load(weights, classes=3, device="cpu")
    sure = graph_train.load(weights, imgsz=96, conf_thres=0.6, classes=(1,), max_det=2, graph=False, device="cpu")
    result = sure(random_image(64, 96, 7))
    assert len(result) <= 2
    assert (result.scores > 0.6).all() and (result.classes == 1).all()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_is_constant_over_thousand_calls(weights: Path) -> None:
    own = graph_train.load(weights, imgsz=96, device="cpu")
    images = [random_image(*SIZES[number % 3], number) for number in range(9)]
    measured = []
    for call in range(1000):
        own(images if call % 2 else images[call % 9])
        if call % 100 == 99:
            gc.collect()
            measured.append(resident_bytes())
    assert max(measured[2:]) - measured[1] < 8e6, [round(value / 1e6, 1) for value in measured]
