"""Reading and writing of video files: complete, or an error."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.video import Video, VideoFile
from tests.file_limit import file_limit

cv2 = pytest.importorskip("cv2")
FRAMES = np.random.default_rng(0).integers(0, 256, (12, 64, 96, 3), np.uint8)


def write(path: Path) -> None:
    file = VideoFile(path, (96, 64), 10.0)
    for frame in FRAMES:
        file.add(frame)
    file.close()
    file.close()


def test_written_video_has_all_frames(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    assert len(list(Video(tmp_path / "a.mp4").read())) == len(FRAMES)


@pytest.mark.parametrize("name", ["10:30.mp4", "file:a.mp4", "a:b/c.mp4"])
def test_names_with_a_colon_are_no_protocols(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    write(Path(name))
    assert len(list(Video(Path(name)).read())) == len(FRAMES)


def test_path_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    """OpenCV would crash."""
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    expected = r"caf\\xe9.mp4: the path is not valid UTF-8, which OpenCV cannot open; rename it"
    with pytest.raises(OSError, match=expected):
        VideoFile(path, (96, 64), 10.0)
    path.touch()
    with pytest.raises(OSError, match=expected):
        Video(path)


@pytest.mark.parametrize("ending", [".avi", ".mkv"])
def test_incomplete_file_is_noticed(tmp_path: Path, ending: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"a{ending}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (96, 64))
    for frame in FRAMES[np.arange(40) % len(FRAMES)]:
        writer.write(frame)
    writer.release()
    whole = Video(path)
    assert whole.frames == len(list(whole.read())) == 40 and whole.incomplete_reason == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capfd.readouterr()
    cut = Video(path)
    read = 3 * len(list(cut.read(3)))
    assert 10 < read < 30
    found = re.fullmatch(
        r"ends after frame (\d+) of 40, the file is incomplete or damaged; copy it again", cut.incomplete_reason
    )
    assert found and read - 3 < int(found[1]) <= read
    path.write_bytes(b"")
    with pytest.raises(OSError, match="cannot be decoded as a video"):
        Video(path)
    assert capfd.readouterr() == ("", "")  # of FFmpeg


@pytest.mark.parametrize("limit", [0, 1000, 20_000])
def test_full_disk_is_an_error(tmp_path: Path, limit: int) -> None:
    with pytest.raises(OSError, match=r"a.mp4: (the video is incomplete|cannot be written)"), file_limit(limit):
        write(tmp_path / "a.mp4")


def test_video_without_frames_is_no_error(tmp_path: Path) -> None:
    VideoFile(tmp_path / "a.mp4", (96, 64), 10.0).close()
