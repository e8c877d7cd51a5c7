"""`graph-predict` on URLs, cameras and streams."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import graph_train
from graph_train.cli.predict import main
from models.weights import save_weights
from pipelines.data.video import Video, VideoFile
from tests.distributed.jobs import free_port
from tests.graph_train.tiny import steepen, tiny_network
from tests.served import WebServer, jpeg_of, web_server

WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    random = np.random.default_rng(5)
    return [random.integers(0, 256, (8, 12, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1) for _ in range(3)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, photos: list[np.ndarray]) -> Path:
    network = steepen(tiny_network(seed=3), np.stack(photos).transpose(0, 3, 1, 2))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(network, path)
    return path


@pytest.fixture
def server(photos: list[np.ndarray]) -> Iterator[WebServer]:
    with web_server() as state:
        state.camera = [jpeg_of(photo) for photo in photos]
        for number, content in enumerate(state.camera):
            state.files[f"/{number}.jpg"] = ("image/jpeg", content)
        state.files["/page.jpg"] = ("text/html", b"<html>gone</html>")
        yield state


def arguments(weights: Path, folder: Path, *more: str) -> list[str]:
    return [
        "--weights",
        str(weights),
        "--imgsz",
        "96",
        "--workers",
        "2",
        "--project",
        str(folder),
        "--device",
        "cpu",
        "--eager",
        *more,
    ]


def test_images_from_urls(
    weights: Path,
    server: WebServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # OpenCV is for videos only.
    monkeypatch.setitem(sys.modules, "cv2", None)
    urls = [f"{server.address}/{name}" for name in ("1.jpg", "page.jpg", "0.jpg")]
    flags = ("--save-csv", "--save-json", "--save-txt", "--source", *urls)
    assert main(arguments(weights, tmp_path, *flags)) == 2
    message = capsys.readouterr().out
    assert f"{urls[0]}: 96x64 px, " in message
    assert f"skipped: {urls[1]}: error: not an image" in message
    folder = tmp_path / "exp"
    assert {path.name for path in folder.iterdir()} == {
        "1.jpg",
        "0.jpg",
        "labels",
        "predictions.csv",
        "predictions.json",
    }
    with (folder / "predictions.csv").open(newline="") as file:
        assert {row["file"] for row in csv.DictReader(file)} == {urls[0], urls[2]}
    assert {row["file_name"] for row in json.loads((folder / "predictions.json").read_text())} == {urls[0], urls[2]}
    # The same as for the file.
    (tmp_path / "1.jpg").write_bytes(server.files["/1.jpg"][1])
    by_path, by_url = (
        graph_train.predict(weights=weights, source=source, imgsz=96, nosave=True, device="cpu", graph=False)
        for source in (tmp_path / "1.jpg", urls[0])
    )
    np.testing.assert_array_equal(by_path.predictions[0].detections, by_url.predictions[0].detections)
    assert by_url.predictions[0].address == urls[0]
    assert not by_url.predictions[0].path.exists()
    assert by_path.counts == by_url.counts


def test_video_from_url(weights: Path, server: WebServer, photos: list[np.ndarray], tmp_path: Path) -> None:
    clip = VideoFile(tmp_path / "c.mp4", (WIDTH, HEIGHT), 10.0)
    for photo in photos:
        clip.add(photo)
    clip.close()
    server.files["/clip.mp4"] = ("video/mp4", (tmp_path / "c.mp4").read_bytes())
    source = f"{server.address}/clip.mp4"
    assert main(arguments(weights, tmp_path, "--source", source, "--save-csv", "--batch-size", "2")) == 0
    written = Video(tmp_path / "exp/clip.mp4")
    assert (written.size, len(list(written.read()))) == ((WIDTH, HEIGHT), 3)
    with (tmp_path / "exp/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["file"], row["frame"]) for row in rows} == {(source, number) for number in "123"}


def test_stream_until_end(weights: Path, server: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = f"{server.address}/camera"
    table = tmp_path / "exp/predictions.csv"

    def hang_up() -> None:
        """Close the connection after some frames were processed."""
        while not (table.exists() and len(frames_of(table, source)) >= 3):
            time.sleep(0.05)
        server.camera_ends = True

    threading.Thread(target=hang_up, daemon=True).start()
    flags = ("--source", source, f"{server.address}/0.jpg", "--save-csv", "--save-txt", "--vid-stride", "3")
    assert main(arguments(weights, tmp_path, *flags)) == 0
    message = capsys.readouterr().out
    assert f"{source}: ended after frame " in message
    with table.open(newline="") as file:
        assert next(csv.DictReader(file))["file"] == f"{server.address}/0.jpg"  # images first
    seen = frames_of(table, source)
    assert len(seen) >= 3
    assert np.diff(seen).min() >= 3
    assert {path.stem for path in (tmp_path / "exp/labels").iterdir()} == {"0", *(f"camera_{n}" for n in seen)}
    # Dropped frames are filled in, so that the video plays in real time.
    times = [1, *(np.diff(seen) // 3)]
    assert len(list(Video(tmp_path / "exp/camera.mp4").read())) == sum(times)


def frames_of(table: Path, source: str) -> list[int]:
    """Return the frame numbers in the complete rows of a table that may still be growing."""
    whole = table.read_text().rpartition("\n")[0].splitlines()
    return list(dict.fromkeys(int(row["frame"]) for row in csv.DictReader(whole) if row["file"] == source))


def test_interrupted_stream_leaves_complete_files(weights: Path, server: WebServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "graph_train.cli.predict"]
    flags = arguments(weights, tmp_path, "--source", f"{server.address}/camera", "--save-csv")
    table = tmp_path / "exp/predictions.csv"
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        end = time.monotonic() + 400
        # Rows are there while it runs.
        while not (table.exists() and frames_of(table, f"{server.address}/camera")) and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(started.pid, signal.SIGINT)
        message, errors = started.communicate(timeout=150)
    assert started.returncode == 0 and "press Ctrl-C to stop" in message and "Results saved to" in message, (
        message + errors
    )
    assert "Traceback" not in errors
    seen = frames_of(table, f"{server.address}/camera")
    assert table.read_text().endswith("\n")
    # From the first frame that was looked at to the last one.
    assert len(list(Video(tmp_path / "exp/camera.mp4").read())) >= 1 + seen[-1] - seen[0]


def test_user_errors_are_one_line(
    weights: Path, server: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    for more, message in (
        (("--source", "77"), "camera 77: there is no /dev/video77; available cameras: "),
        (("--source", f"rtsp://me:secret@127.0.0.1:{port}/x"), f"rtsp://127.0.0.1:{port}/x: Connection refused"),
        (("--source", f"{server.address}/none.jpg"), "none.jpg: download failed: Not Found (HTTP 404)"),
        (("--source", f"{server.address}/page.jpg"), "page.jpg: error: not an image"),
        (("--source", f"{server.address}/camera", "--save-json"), "--save-json: not supported for"),
    ):
        assert main([*arguments(weights, tmp_path), *more]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("graph-predict: ") and len(error.splitlines()) == 1
        assert message in error
    assert not list(tmp_path.rglob("*.*"))


def test_stalled_stream_is_reported(
    weights: Path,
    server: WebServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipelines.data.live.TIMEOUT_SECONDS", 1.0)
    server.frozen.set()
    source = f"{server.address}/camera"
    assert main(arguments(weights, tmp_path, "--source", source)) == 2
    assert f"skipped: {source}: error: sent no frame for 1 s" in capsys.readouterr().out
    assert len(list(Video(tmp_path / "exp/camera.mp4").read())) >= 1


def test_streams_need_extra(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.data.video.importlib.util.find_spec", lambda _: None)
    for source in ("0", "rtsp://127.0.0.1:9/x"):
        with pytest.raises(ValueError, match=f"^{source}: videos need OpenCV: uv sync .*--extra video"):
            graph_train.predict(weights=weights, source=source, project=tmp_path)
