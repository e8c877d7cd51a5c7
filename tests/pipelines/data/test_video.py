"""Reading and writing of video files: complete, or an error."""

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.video import Video, VideoFile
from pipelines.data.video_container import missing_bytes, stated_seconds
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


def with_index_first(content: bytes) -> bytes:
    """Return an MP4 file with its index (`moov`) in front of the frames, as files for the web have it."""
    boxes, position = {}, 0
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        boxes[kind] = content[position : position + length]
        position += length
    moov = bytearray(boxes.pop(b"moov"))
    chunks = moov.index(b"stco") + 8
    (count,) = struct.unpack_from(">I", moov, chunks)
    for place in range(chunks + 4, chunks + 4 + 4 * count, 4):
        struct.pack_into(">I", moov, place, struct.unpack_from(">I", moov, place)[0] + len(moov))
    return boxes.pop(b"ftyp") + moov + b"".join(boxes.values())


def video_content(path: Path) -> bytes:
    codec = "mp4v" if path.suffix == ".mp4" else "MJPG"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10.0, (96, 64))
    for frame in FRAMES:
        writer.write(frame)
    writer.release()
    return with_index_first(path.read_bytes()) if path.suffix == ".mp4" else path.read_bytes()


@pytest.mark.parametrize("ending", [".avi", ".mkv", ".mp4"])
@pytest.mark.parametrize("kept", [0.6, 0.9])
def test_short_file_that_lacks_its_end_is_noticed(tmp_path: Path, ending: str, kept: float) -> None:
    """The last second of a video, or a tenth of its frames, is too much to lose in silence."""
    path = tmp_path / f"a{ending}"
    content = video_content(path)
    path.write_bytes(content)
    whole = Video(path)
    assert len(list(whole.read())) == len(FRAMES) and whole.incomplete_reason == ""
    index = content.rfind({".avi": b"idx1", ".mkv": b"\x1c\x53\xbb\x6b", ".mp4": b"none"}[ending])
    path.write_bytes(content[: round(kept * (index if index > 0 else len(content)))])
    assert missing_bytes(path) > 0
    cut = Video(path)
    read = len(list(cut.read()))
    assert 0 < read < len(FRAMES)
    assert cut.incomplete_reason.startswith(f"ends after frame {read} of {len(FRAMES)}, the file is incomplete")


@pytest.mark.parametrize("ending", [".avi", ".mkv", ".mp4"])
def test_all_frames_are_enough(tmp_path: Path, ending: str) -> None:
    """Bytes after the end, and an index at the end that is cut, matter to nobody."""
    path = tmp_path / f"a{ending}"
    content = video_content(path)
    for changed in (content + bytes(5), content + b"\0" * 4096, content + b"abc defgh", content[:-1]):
        path.write_bytes(changed)
        video = Video(path)
        assert len(list(video.read())) == len(FRAMES) and video.incomplete_reason == "", changed[-9:]


def trimmed(content: bytes, shown: float) -> bytes:
    """Return an MP4 file with an edit list that shows only its beginning, as phones trim videos."""
    moov = content.index(b"moov") - 4
    mvhd, trak = content.index(b"mvhd"), content.index(b"trak") - 4
    _, duration = struct.unpack_from(">II", content, mvhd + 16)
    new = round(shown * duration)
    elst = struct.pack(">I4sIIIiI", 28, b"elst", 0, 1, new, 0, 1 << 16)
    edts = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    out = bytearray(content)
    struct.pack_into(">I", out, mvhd + 20, new)
    old = content.find(b"edts", trak)
    tkhd = content.index(b"tkhd", trak) - 4
    place = tkhd + struct.unpack_from(">I", content, tkhd)[0]
    removed = struct.unpack_from(">I", content, old - 4)[0] if old > 0 else 0
    if old > 0:
        place = old - 4
    out[place : place + removed] = edts
    for box in (moov, trak):
        struct.pack_into(">I", out, box, struct.unpack_from(">I", content, box)[0] + len(edts) - removed)
    return bytes(out)


def test_trimmed_video_is_complete(tmp_path: Path) -> None:
    """It has more frames than it shows."""
    path = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (96, 64))
    for number in range(60):
        writer.write(FRAMES[number % len(FRAMES)])
    writer.release()
    assert stated_seconds(path) == pytest.approx(6.0, abs=0.2)
    path.write_bytes(trimmed(path.read_bytes(), 0.5))
    assert stated_seconds(path) == pytest.approx(3.0, abs=0.2)
    video = Video(path)
    read = len(list(video.read()))
    assert read < video.frames and video.incomplete_reason == "", (read, video.frames)


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        (b"", 0.0),
        (b"RIFF\x10\0\0\0AVI ", 0.0),
        (b"\0\0\0\x08ftyp\0\0\0\x08moov", 0.0),
        (b"\0\0\0\x08ftyp\0\0\0\x30moov\0\0\0\x28mvhd" + struct.pack(">12xII12x", 600, 3000), 5.0),
        (b"\0\0\0\x08ftyp\0\0\0\x30moov\0\0\0\x28mvhd" + struct.pack(">12xII12x", 0, 3000), 0.0),
        (b"\0\0\0\x08ftyp\0\0\0\x30moov\0\0\0\x28mvhd" + struct.pack(">12xII12x", 600, 2**32 - 1), 0.0),
        (b"\0\0\0\x08ftyp\0\0\0\x30moov\0\0\0\x28mvhd\1" + struct.pack(">19xIQ", 600, 1200), 2.0),
        (b"\0\0\0\x08ftyp\0\0\0\x30moov\0\0\0\x28mvhd\1", 0.0),
    ],
)
def test_stated_seconds_by_container(tmp_path: Path, content: bytes, seconds: float) -> None:
    (tmp_path / "a").write_bytes(content)
    assert stated_seconds(tmp_path / "a") == seconds


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (b"", 0),
        (b"GIF89a" + bytes(20), 0),
        (b"\0\0\0\x08ftyp\0\0\0\x20mdat", 24),
        (b"\0\0\0\x08ftyp\0\0\0\0mdat" + bytes(9), 0),  # to the end
        (b"\0\0\0\x08ftyp\0\0\0\x01mdat" + (100).to_bytes(8, "big"), 84),
        (b"\0\0\0\x08ftyp\0\0\0\x01mdat", 0),
        (b"\0\0\0\x08ftyp\0\0\0\x07mdat", 0),
        (b"\0\0\0\x08ftyp" * 3 + b"\0\0", 0),
        (b"RIFF\x10\0\0\0AVI ", 12),
        (b"RIFF\x10\0\0\0WAVE", 0),
        (b"RIFF\0\0\0\0AVI ", 0),
        (b"RIFF\xff\xff\xff\xffAVI ", 0),
        (b"RIFF\5\0\0\0AVI x", 0),  # without the byte that fills up
        (b"RIFF\4\0\0\0AVI RIFF\x14\0\0\0AVIX", 16),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x81", 1),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01\0\0\0\0\0\1\0", 256),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\xff", 0),  # a recorded stream
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01\xff", 0),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67", 0),
        (b"\x1a\x45\xdf\xa3" + bytes(20), 0),
    ],
)
def test_missing_bytes_by_container(tmp_path: Path, content: bytes, missing: int) -> None:
    (tmp_path / "a").write_bytes(content)
    assert missing_bytes(tmp_path / "a") == missing


@pytest.mark.parametrize("limit", [0, 1000, 20_000])
def test_full_disk_is_an_error(tmp_path: Path, limit: int) -> None:
    with pytest.raises(OSError, match=r"a.mp4: (the video is incomplete|cannot be written)"), file_limit(limit):
        write(tmp_path / "a.mp4")


def test_video_without_frames_is_no_error(tmp_path: Path) -> None:
    VideoFile(tmp_path / "a.mp4", (96, 64), 10.0).close()
