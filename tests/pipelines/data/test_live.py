import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.data import live
from pipelines.data.live import LiveVideo, shown_address
from pipelines.data.video import VideoFile
from tests.distributed.jobs import free_port
from tests.rtsp_server import rtsp_server
from tests.served import WebServer, jpeg_of, web_server


@pytest.fixture
def camera() -> Iterator[WebServer]:
    """Serve ten frames, each a uniform grey that encodes its number."""
    with web_server() as server:
        server.camera = [jpeg_of(np.full((64, 96, 3), 20 * number, np.uint8)) for number in range(1, 11)]
        yield server


def read_five_frames(address: str, end: Callable[[], None], reason: str = "ended") -> LiveVideo:
    """Read five frames of a stream, whose greys must match their numbers, and return the closed stream."""
    video = LiveVideo(address)
    assert video.size == (96, 64)
    seen = []
    for number, frame in video.frames():
        seen.append(number)
        assert float(frame.mean()) == pytest.approx(20 * ((number - 1) % 10 + 1), abs=3)
        if len(seen) == 5:
            end()
    video.close()
    assert len(seen) >= 5
    assert seen == sorted(set(seen))
    assert (video.ended.rpartition(" ")[0], video.failed) == (f"{reason} after frame", reason != "ended")
    return video


def test_stream_frames_are_numbered(camera: WebServer) -> None:
    read_five_frames(f"{camera.address}/camera", lambda: setattr(camera, "camera_ends", True))


def test_rtsp_camera_frames(camera: WebServer) -> None:
    hang_up = threading.Event()
    with rtsp_server(camera.camera, hang_up) as address:
        read_five_frames(f"{address}/live", hang_up.set)


def test_connection_to_killed_server_is_lost(camera: WebServer) -> None:
    with contextlib.ExitStack() as server:
        address = server.enter_context(rtsp_server(camera.camera, threading.Event()))
        lost = f"connection lost, the server does not answer (Connection refused (port {address.rpartition(':')[2]}))"
        read_five_frames(f"{address}/live", server.close, lost)


def test_recording_is_read_without_gaps(camera: WebServer, tmp_path: Path) -> None:
    """The frames of a playlist with an end arrive as fast as they are read, so none may be skipped."""
    clip = VideoFile(tmp_path / "part.ts", (96, 64), 10.0)
    for number in range(20):
        clip.add(np.full((64, 96, 3), 10 * number, np.uint8))
    clip.close()
    playlist = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\npart.ts\n#EXT-X-ENDLIST\n"
    camera.files["/clip.m3u8"] = ("application/vnd.apple.mpegurl", playlist.encode())
    camera.files["/part.ts"] = ("video/mp2t", (tmp_path / "part.ts").read_bytes())
    for every in (1, 3):
        video = LiveVideo(f"{camera.address}/clip.m3u8")
        seen = []
        for number, frame in video.frames(every):
            time.sleep(0.05)  # a slow consumer
            assert float(frame.mean()) == pytest.approx(10 * (number - 1), abs=4)
            seen.append(number)
        video.close()
        assert seen == list(range(1, 21, every))
        assert (video.ended, video.failed) == ("ended after frame 20", False)


def test_only_newest_frame_is_kept(camera: WebServer) -> None:
    camera.camera_ends = True
    video = LiveVideo(f"{camera.address}/camera")
    while not video.ended:
        time.sleep(0.02)
    assert [number for number, _ in video.frames()] == [10]
    video.close()


def test_frame_stride_skips_frames(camera: WebServer) -> None:
    video = LiveVideo(f"{camera.address}/camera")
    numbers: list[int] = []
    for number, _ in video.frames(every=4, stopped=lambda: len(numbers) == 3):
        numbers.append(number)
    video.close()
    assert len(numbers) == 3
    assert np.diff(numbers).min() >= 4


def test_stalled_stream_times_out(camera: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TIMEOUT_SECONDS", 1.0)
    video = LiveVideo(f"{camera.address}/camera")
    camera.frozen.set()
    numbers = [number for number, _ in video.frames()]
    assert video.failed
    assert video.ended == f"sent no frame for 1 s after frame {numbers[-1]}"
    video.close()


def test_waiting_reader_can_be_stopped(camera: WebServer) -> None:
    video = LiveVideo(f"{camera.address}/camera")
    camera.frozen.set()
    stopped = threading.Event()
    threading.Timer(0.5, stopped.set).start()
    started = time.monotonic()
    list(video.frames(stopped=stopped.is_set))
    assert time.monotonic() - started < 5
    camera.frozen.clear()
    video.close()


def test_missing_camera_is_reported() -> None:
    number = next(number for number in range(90, 200) if not Path(f"/dev/video{number}").exists())
    with pytest.raises(OSError, match=rf"^camera {number}: there is no /dev/video{number}; available cameras: "):
        LiveVideo(str(number))


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp", "http"])
def test_unreachable_server_is_reported(scheme: str) -> None:
    port = free_port()
    with pytest.raises(OSError, match=rf"^{scheme}://127.0.0.1:{port}/x: Connection refused \(port {port}\)$"):
        LiveVideo(f"{scheme}://me:secret@127.0.0.1:{port}/x")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("rtsp://no-such-host.invalid/x", "no such host: no-such-host.invalid"),
        ("rtsp://127.0.0.1:99999/x", "invalid URL"),
        ("rtsp:///x", "URL without a host"),
        (os.fsdecode(b"rtsp://host/\xff"), r"rtsp://host/\\xff: not valid UTF-8"),  # OpenCV would crash
    ],
)
def test_invalid_addresses_are_reported(address: str, message: str) -> None:
    with pytest.raises((OSError, ValueError), match=message):
        LiveVideo(address)


def test_non_video_response_is_reported(camera: WebServer, capfd: pytest.CaptureFixture[str]) -> None:
    camera.files["/page"] = ("text/html", b"<html>no video</html>")
    with pytest.raises(OSError, match="connected, but no video was received"):
        LiveVideo(f"{camera.address}/page")
    assert capfd.readouterr().err == ""


def test_passwords_are_not_shown() -> None:
    assert shown_address("rtsp://me:a@b@cam:554/x@y\n") == "rtsp://cam:554/x@y\\n"
    assert shown_address("0") == "0"
