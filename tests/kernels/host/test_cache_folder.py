"""The user's cache folder."""

import os
import pwd
from pathlib import Path

import pytest

from kernels.host.cache_folder import make_private_folder, user_cache_folder
from pipelines.data.index import scan_images
from tests.pipelines.data_sets import add_image


@pytest.fixture
def without_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a user without a home folder, as in a container started with `--user 12345`."""

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("without_home_folder")
def test_missing_home_folder_error_has_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="has no home folder for the cache: set XDG_CACHE_HOME"):
        user_cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / "graph-train"


def test_relative_home_folder_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "here")
    with pytest.raises(OSError, match="the home folder here for the cache is not an absolute path: set XDG_CACHE_HOME"):
        user_cache_folder()


@pytest.mark.usefixtures("without_home_folder")
def test_index_without_cache_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_image(tmp_path, "a.jpg", "0 .5 .5 .1 .1")
    with caplog.at_level("WARNING", "graph_train"):
        assert len(scan_images([tmp_path / "images"], ["a"])) == 1
    assert "the index of the data set is not cached" in caplog.text


def test_uncreatable_cache_error_has_remedy(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a folder")
    with pytest.raises(NotADirectoryError, match="Not a directory; set XDG_CACHE_HOME to "):
        make_private_folder(tmp_path / "home" / "graph-train")


def test_read_only_cache_error_has_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # as of another user, or on a read-only disk
    with pytest.raises(PermissionError, match="Permission denied; set XDG_CACHE_HOME to "):
        make_private_folder(tmp_path)
