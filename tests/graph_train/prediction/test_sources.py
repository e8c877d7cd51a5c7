import io
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from graph_train.prediction import sources
from graph_train.prediction.sources import Sources, find_sources


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.jpg", "b.PNG", "a.bmp", "notes.md", "clip.mp4", "raw.heic", "deep/er/a.jpg", "deep/c.webp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(entries: list[str], lines: Sequence[str] | None = None, *, allow_download: bool = False) -> Sources:
    with tempfile.TemporaryDirectory() as folder:
        return find_sources(entries, lines, downloads=Path(folder), allow_download=allow_download)


def names(found: Sources) -> dict[str, str]:
    """Return the files by result name, images before videos."""
    return {str(file.name): str(file.path) for file in (*found.images, *found.videos)}


def test_folder_is_searched_recursively(tree: Path) -> None:
    found = find(["photos"])
    # a.jpg and a.bmp would share a label file, so the second one by name gets a number.
    assert names(found) == {
        "a.bmp": "photos/a.bmp",
        "a_2.jpg": "photos/a.jpg",
        "b.PNG": "photos/b.PNG",
        "deep/c.webp": "photos/deep/c.webp",
        "deep/er/a.jpg": "photos/deep/er/a.jpg",
        "raw.heic": "photos/raw.heic",
        "clip.mp4": "photos/clip.mp4",
    }
    assert found.problems == ()


def test_results_of_earlier_predictions_are_skipped(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("runs/detect/exp/a.jpg", "runs/detect/exp2/deep/b.jpg", "runs/detect/expert/c.jpg", "runs/d.jpg"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()

    def found(source: str, project: str = "runs/detect") -> set[str]:
        with tempfile.TemporaryDirectory() as folder:
            files = find_sources([source], downloads=Path(folder), results=Path(project, "exp"))
        return {str(file.path) for file in files.images}

    everything = found(".", "elsewhere")
    assert {"runs/detect/exp/a.jpg", "photos/a.jpg"} <= everything
    caplog.set_level("INFO", "graph_train")
    assert found(".") == everything - {"runs/detect/exp/a.jpg", "runs/detect/exp2/deep/b.jpg"}
    assert "skipped 2 files" in caplog.text
    assert found("runs/detect/exp") == {"runs/detect/exp/a.jpg"}


def test_glob_and_file_with_same_name(tree: Path) -> None:
    assert names(find(["photos/**/a.jpg"])) == {"a.jpg": "photos/a.jpg", "a_2.jpg": "photos/deep/er/a.jpg"}
    # given twice, processed once
    assert names(find(["photos/a.jpg", "photos/a.j*"])) == {"a.jpg": "photos/a.jpg"}


def test_file_name_that_looks_like_glob(tree: Path) -> None:
    (tree / "[1].jpg").write_bytes(b"")
    assert names(find(["[1].jpg"])) == {"[1].jpg": "[1].jpg"}


def test_list_entries_resolve_from_list_folder_then_cwd(tree: Path) -> None:
    (tree / "photos/list.txt").write_text("./a.jpg\n\nphotos/b.PNG\nnone.jpg\ndeep\n")
    found = find(["photos/list.txt"])
    assert names(found) == {
        "a.jpg": f"{tree}/photos/a.jpg",
        "b.PNG": f"{tree}/photos/b.PNG",
        "c.webp": f"{tree}/photos/deep/c.webp",
        "er/a.jpg": f"{tree}/photos/deep/er/a.jpg",
    }
    assert [str(problem) for problem in found.problems] == [
        "photos/list.txt:4: error: none.jpg: no such file, folder or match"
    ]


def test_existing_file_is_not_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0", "screenshots"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    (tmp_path / "screen.png").touch()
    for entry in ("0", "screenshots", "screen.png"):
        assert len(find([entry]).images) == 1


def test_stdin_source(tree: Path) -> None:
    found = find(["-"], ["photos/a.jpg\n", "photos/*.PNG\n", "gone.jpg\n"])
    assert list(names(found)) == ["a.jpg", "b.PNG"]
    assert str(found.problems[0]) == "standard input:3: error: gone.jpg: no such file, folder or match"


def test_lists_may_have_a_byte_order_mark_and_any_bytes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undecodable = os.fsdecode(b"photos/caf\xe9\x85.jpg")
    Path(undecodable).touch()
    content = b"\xef\xbb\xbfphotos/a.jpg\r\n" + os.fsencode(undecodable) + b"\n"
    (tree / "list.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    for entry in ("list.txt", "-"):
        found = find([entry])
        assert [str(file.path) for file in found.images] == [f"{tree}/photos/a.jpg", f"{tree}/{undecodable}"]
        assert found.problems == ()


def test_list_that_is_no_text_is_rejected(tree: Path) -> None:
    (tree / "list.txt").write_bytes("photos/a.jpg\n*.png".encode("utf-16"))
    with pytest.raises(ValueError, match=r"^list.txt: binary content; expected a list with one image path per line$"):
        find(["list.txt"])


def test_entry_that_cannot_be_looked_up_is_a_problem(tree: Path) -> None:
    (tree / "list.txt").write_text("x" * 300 + "\nphotos/a.jpg\n")
    found = find(["list.txt"])
    assert list(names(found)) == ["a.jpg"]
    assert re.fullmatch(r"list.txt:1: error: .*/x+: File name too long", str(found.problems[0]))


def test_results_of_long_names_can_be_written(tree: Path) -> None:
    long = "x" * 251
    for name in (f"{long}.png", f"{long}.bmp", f"{long}.mp4", f"{'é' * 125}.mp4"):
        (tree / "photos" / name).touch()
    found = find(["photos/*x.*", "photos/é*"])
    assert [file.name.name for file in found.images] == [f"{long}.bmp", f"{long[2:]}_2.png"]
    assert [file.name.name for file in found.videos] == [f"{'x' * 227}.mp4", f"{'é' * 113}.mp4"]


def test_closed_or_endless_standard_input_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match=r"--source -: standard input is closed; expected a list"):
        find(["-"])
    monkeypatch.setattr(sources, "MAX_LIST_BYTES", 99)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 50), encoding="utf-8"))
    with pytest.raises(ValueError, match=r"--source -: more than 99 bytes; expected a list"):
        find(["-"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("screen 0 0 0 512 256", "screen capture is not supported"),
        ("ftp://me:secret@host/a.jpg", "^ftp://host/a.jpg: unsupported URL; supported are http, https, rtmp"),
        ("http://[/a.jpg", "invalid URL"),
        ("https://www.youtube.com/watch?v=x", "watch.v=x: video pages are not supported; download the video"),
        ("https://youtu.be/x", "^https://youtu.be/x: video pages are not supported"),
        ("cameras.streams", "^cameras.streams: lists of streams are not supported; run one command per stream"),
        ("nothing.jpg", "nothing.jpg: no such file"),
        ("~nobody-here/a.jpg", "^~nobody-here/a.jpg: unknown home folder"),
        ("~nobody-here/list.txt", "^~nobody-here/list.txt: unknown home folder"),
        ("photos/*.gif", "no such file, folder or match"),
        ("empty", "no images or videos found"),
        ("photos/empty.txt", "no images or videos found"),
    ],
)
def test_unusable_source_is_reported(tree: Path, entry: str, message: str) -> None:
    (tree / "empty").mkdir()
    (tree / "cameras.streams").write_text("rtsp://host/a\n")
    (tree / "photos/empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=message):
        find([entry])


def test_cameras_and_streams_are_listed_but_not_opened(tree: Path) -> None:
    found = find(["photos/a.jpg", "7"])
    assert found.live is not None
    assert (found.live.name, found.live.shown, len(found.images)) == (Path("camera7.mp4"), "7", 1)
    live = find(["rtsp://me:secret@cam.local:8554/live/ch 1?sub=1"]).live
    assert live is not None
    assert (live.name, live.shown) == (Path("ch_1.mp4"), "rtsp://cam.local:8554/live/ch 1?sub=1")
    assert "secret" in live.address
    live = find(["rtmp://10.0.0.7"]).live
    assert live is not None
    assert live.name == Path("10_0_0_7.mp4")
    with pytest.raises(ValueError, match="--source: 0 and rtsp://cam: only one camera or stream per run"):
        find(["0", "rtsp://cam"])


def test_urls_in_lists_need_flag(tree: Path) -> None:
    lines = ["photos/a.jpg", "rtsp://me:secret@cam/1", "0"]
    found = find(["-"], lines)
    assert found.live is None
    assert list(map(str, found.problems)) == [
        "standard input:2: error: rtsp://cam/1: use --allow-download to download URLs in lists",
        "standard input:3: error: 0: no such file, folder or match",
    ]
    live = find(["-"], lines, allow_download=True).live
    assert live is not None
    assert live.shown == "rtsp://cam/1"


def test_many_files_of_one_name_are_numbered_without_searching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searching from 2 for each would take hours for a list of frames that each have a folder."""
    files = [tmp_path / str(number) / name for name in ("frame.jpg", "frame.png") for number in range(300)]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    calls: list[int] = []
    numbered = sources.numbered

    def counting(name: Path, number: int) -> Path:
        calls.append(number)
        return numbered(name, number)

    monkeypatch.setattr(sources, "numbered", counting)
    found = [str(file.name) for file in find(["-"], list(map(str, files))).images]
    jpegs, pngs = (f"frame_{n}.jpg" for n in range(2, 301)), (f"frame_{n}.png" for n in range(301, 601))
    assert found == ["frame.jpg", *jpegs, *pngs]
    assert len(calls) < 2 * len(files)
