from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from graph_train.prediction import addresses
from graph_train.prediction.sources import Sources, find_sources
from pipelines.data.video import VideoFile
from tests.distributed.jobs import free_port
from tests.served import WebServer, jpeg_of, web_server

PHOTO = jpeg_of(np.full((64, 96, 3), 120, np.uint8))


@pytest.fixture
def server() -> Iterator[WebServer]:
    with web_server() as state:
        state.files["/a.jpg"] = ("image/jpeg", PHOTO)
        yield state


def find(folder: Path, *entries: str, lines: list[str] | None = None) -> Sources:
    (folder / "downloads").mkdir(exist_ok=True)
    return find_sources(entries, lines, downloads=folder / "downloads", allow_download=lines is not None)


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        ("/photos/a.jpg", "image/jpeg", "a.jpg"),
        ("/photos/b.PNG?size=2", "application/octet-stream", "b.png"),
        ("/snapshot?channel=1", "image/jpeg", "snapshot.jpg"),
        ("/", "image/png; charset=binary", "127_0_0_1.jpg"),
        ("/my%20photo%2F..%2Fx.jpg", "image/jpeg", "x.jpg"),
        ("/für/größe.jpg", "image/jpeg", "größe.jpg"),
    ],
)
def test_image_urls(server: WebServer, tmp_path: Path, path: str, kind: str, name: str) -> None:
    asked = path.partition("?")[0].replace("ü", "%C3%BC").replace("ö", "%C3%B6").replace("ß", "%C3%9F")
    server.files[asked] = (kind, PHOTO)
    found = find(tmp_path, server.address + path)
    (image,) = found.images
    assert image.path.read_bytes() == PHOTO
    assert (image.name, image.address) == (Path(name), server.address + path)
    assert image.path.parent == tmp_path / "downloads"


def test_downloads_keep_source_order_and_happen_once(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    server.files["/more/a.jpg"] = ("image/jpeg", PHOTO)
    urls = [f"{server.address}/a.jpg", f"{server.address}/more/a.jpg"]
    found = find(tmp_path, urls[0], str(tmp_path / "a.jpg"), urls[1], urls[0])
    assert [str(image.name) for image in found.images] == ["a.jpg", "a_2.jpg", "a_3.jpg"]
    assert [image.shown for image in found.images] == [urls[0], str(tmp_path / "a.jpg"), urls[1]]
    assert sorted(path for path, _ in server.requests) == ["/a.jpg", "/more/a.jpg"]


def test_video_is_downloaded_and_camera_is_not(server: WebServer, tmp_path: Path) -> None:
    clip = VideoFile(tmp_path / "c.mp4", (96, 64), 10.0)
    clip.add(np.zeros((64, 96, 3), np.uint8))
    clip.close()
    content = (tmp_path / "c.mp4").read_bytes()
    server.files |= {"/clip.mp4": ("", content), "/download": ("video/mp4", content)}
    server.files["/list"] = ("application/x-mpegURL", b"#EXTM3U")
    server.camera = [PHOTO]
    found = find(tmp_path, f"{server.address}/clip.mp4", f"{server.address}/download?id=1")
    assert [video.path.read_bytes() for video in found.videos] == [content] * 2
    assert [str(video.name) for video in found.videos] == ["clip.mp4", "download.mp4"]
    for path in ("/camera", "/list", "/live.m3u8"):
        live = find(tmp_path, server.address + path).live
        assert live is not None
        assert live.address == server.address + path


def test_credentials_are_sent_and_not_shown(server: WebServer, tmp_path: Path) -> None:
    (image,) = find(tmp_path, server.address.replace("://", "://me:p%40ss@") + "/a.jpg").images
    assert server.requests == [("/a.jpg", "Basic bWU6cEBzcw==")]
    assert image.shown == f"{server.address}/a.jpg"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none.jpg", r"/none.jpg: download failed: Not Found \(HTTP 404\)$"),
        ("/none", r"/none: download failed: Not Found \(HTTP 404\)$"),
        ("/page", "/page: content type text/html; expected an image or a video$"),
        ("/list.txt", "/list.txt: content type text/plain; expected an image or a video$"),
        ("/what", "/what: content type missing; expected an image or a video$"),
        ("/large.jpg", r"/large.jpg: is larger than 0 MB; it is not used$"),
    ],
)
def test_unusable_responses_are_reported(
    server: WebServer, tmp_path: Path, path: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "MAX_FILE_BYTES", 5000)
    server.files |= {
        "/page": ("text/html", b"<html>"),
        "/list.txt": ("text/plain", b"a.jpg"),
        "/what": ("", b"x"),
        "/large.jpg": ("image/jpeg", PHOTO * 20),
    }
    with pytest.raises(ValueError, match=f"^{server.address}{message}"):
        find(tmp_path, server.address + path)
    found = find(tmp_path, "-", lines=[server.address + "/a.jpg", server.address + path])
    assert len(found.images) == 1
    assert str(found.problems[0]).startswith(f"standard input:2: error: {server.address}{path}: ")


def test_unreachable_server_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^http://no-such-host\.invalid/a\.jpg: download failed: no such host"):
        find(tmp_path, "http://no-such-host.invalid/a.jpg")
    with pytest.raises(ValueError, match=r"/a.jpg: download failed: Connection refused"):
        find(tmp_path, f"http://127.0.0.1:{free_port()}/a.jpg")
