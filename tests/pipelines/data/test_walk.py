"""Directory walks: kernel file systems, loops, and progress of long walks."""

import io
import logging
import os
from pathlib import Path

import pytest

from pipelines.data import walk
from pipelines.data.listing import list_images
from pipelines.data.problems import Problem
from pipelines.data.walk import walk_files


@pytest.mark.parametrize("folder", ["/proc", "/proc/self", "/sys"])
def test_kernel_file_systems_raise(folder: str) -> None:
    with pytest.raises(ValueError, match=rf"^{folder}: is a kernel file system \((proc|sysfs)\)"):
        list_images([Path(folder)], ("a",))


def test_kernel_links_are_skipped_and_loops_entered_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").touch()
    (tmp_path / "processes").symlink_to("/proc")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    problems: list[Problem] = []
    assert list(walk_files(tmp_path, problems)) == [tmp_path / "a" / "x.jpg"] and problems == []


def test_folder_removed_during_walk_is_ignored(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").touch()
    found = walk_files(tmp_path, [])
    first = next(found)
    for file in (tmp_path / "b" / "x.jpg", tmp_path / "b"):
        (os.unlink if file.is_file() else os.rmdir)(file)
    assert [first, *found] == [tmp_path / "a" / "x.jpg"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_long_walk_shows_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.jpg").touch()
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(walk, "_BAR_AFTER_SECONDS", 0.0)
    list_images([tmp_path], ("a",), progress="train")
    assert f"train: reading {tmp_path}" in terminal.getvalue()


def test_long_walk_logs_progress_without_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.jpg").touch()
    monkeypatch.setattr(walk, "_LOG_INTERVAL_SECONDS", -1.0)
    with caplog.at_level(logging.WARNING, "graph_train"):
        list_images([tmp_path], ("a",))
        assert caplog.text == ""
        list_images([tmp_path], ("a",), progress="train")
    assert f"{tmp_path}: still reading, 1 files so far" in caplog.text
