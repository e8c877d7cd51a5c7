"""Writing of video files: complete, or an error."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.data.video import Video, VideoFile
from tests.file_limit import file_limit

pytest.importorskip("cv2")
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


@pytest.mark.parametrize("limit", [0, 1000, 20_000])
def test_full_disk_is_an_error(tmp_path: Path, limit: int) -> None:
    with pytest.raises(OSError, match=r"a.mp4: (the video is incomplete|cannot be written)"), file_limit(limit):
        write(tmp_path / "a.mp4")


def test_video_without_frames_is_no_error(tmp_path: Path) -> None:
    VideoFile(tmp_path / "a.mp4", (96, 64), 10.0).close()
