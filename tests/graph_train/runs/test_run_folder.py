"""The run folder: unexpected files in place of its own, and error messages."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from graph_train.runs import run_folder
from graph_train.runs.run_folder import LOCK, LOG_FILE, RunFolder, make_unused_folder, new_run_folder


def opened(path: Path, *, resumed: bool = False) -> None:
    folder = RunFolder(path, resumed=resumed)
    try:
        folder.open_log()
    finally:
        folder.close()


@pytest.mark.parametrize("name", [LOCK, LOG_FILE])
@pytest.mark.parametrize("resumed", [True, False])
def test_links_out_of_folder_are_not_followed(tmp_path: Path, name: str, resumed: bool) -> None:
    foreign, run = tmp_path / "foreign.txt", tmp_path / "run"
    foreign.write_text("123456")
    run.mkdir()
    (run / name).symlink_to(foreign)
    with pytest.raises(ValueError, match=f"{run / name}: is a symbolic link") as error:
        opened(run, resumed=resumed)
    assert ("--name" in str(error.value)) != resumed  # which --resume rejects
    assert foreign.read_text() == "123456"
    (run / name).unlink()
    opened(run, resumed=resumed)
    opened(run, resumed=resumed)


@pytest.mark.parametrize("name", [LOCK, LOG_FILE])
def test_pipes_in_place_of_run_files_raise(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="not a regular file"):
        opened(tmp_path)


OTHER_FILES = ("results.csv", "opt.yaml", "results.png", "labels.jpg", "problems.txt", "wandb_id.txt")


@pytest.mark.parametrize("name", ["weights/last.safetensors", "weights/last.1.safetensors", *OTHER_FILES])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_special_files_in_place_of_run_files_raise(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    (tmp_path / "weights").mkdir()
    make(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: not a regular file; remove it"):
        opened(tmp_path, resumed=True)
    assert (tmp_path / name).exists()


def test_foreign_lock_file_is_not_modified(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("npm lock")
    with pytest.raises(ValueError, match="not a lock file"):
        opened(tmp_path)
    assert (tmp_path / LOCK).read_text() == "npm lock"


def test_undecodable_names_can_be_logged(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open_log()
    try:
        from graph_train.runs.run_folder import LOG

        LOG.info("%s", os.fsdecode(b"caf\xe9.jpg"))
    finally:
        folder.close()
    assert r"caf\udce9.jpg" in (tmp_path / LOG_FILE).read_text()


def test_unusable_folder_error_suggests_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="choose another --project or --name"):
        opened(tmp_path / "file")
    with pytest.raises(OSError, match="make it writable, or copy it and resume the copy"):
        opened(tmp_path / "file", resumed=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights").touch()
    with pytest.raises(ValueError, match=r"run/weights: is not a folder; move it away$"):
        opened(tmp_path / "run", resumed=True)


@pytest.mark.parametrize(("project", "exist_ok"), [("file", False), ("file", True), (".", True)])
def test_uncreatable_folder_error_names_flags(tmp_path: Path, project: str, exist_ok: bool) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"cannot be created .*; choose another --project or --name"):
        make_unused_folder(str(tmp_path / project), "file", exist_ok=exist_ok)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("target", ["nowhere", "exp"])
def test_dangling_links_count_as_used_names(tmp_path: Path, target: str) -> None:
    (tmp_path / "exp").symlink_to(target)
    assert make_unused_folder(str(tmp_path), "exp", exist_ok=False) == tmp_path / "exp2"
    with pytest.raises(OSError, match=r"cannot be created \(File exists\); choose another --project or --name"):
        make_unused_folder(str(tmp_path / "exp"), "new", exist_ok=False)


@pytest.mark.parametrize(("project", "name"), [(".", "."), ("", ""), ("/", "")])
def test_project_and_name_must_give_a_new_folder(project: str, name: str) -> None:
    with pytest.raises(ValueError, match="does not name a new folder; give a --name"):
        make_unused_folder(project, name, exist_ok=False)


@pytest.mark.parametrize("file", ["hyp.yaml", "results.csv", "weights/best.safetensors", "labels.jpg"])
def test_files_of_others_are_not_replaced(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    for other in ("notes.txt", "data.yaml", "photo.jpg"):
        (tmp_path / other).touch()
    for project, name in ((tmp_path, ""), (tmp_path.parent, tmp_path.name)):
        reason = f"is not a run folder, and a run would replace files in it, such as {Path(file).name}"
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: {reason}; choose another --name") + "$"):
            new_run_folder(str(project), name, exist_ok=True)
    assert not (tmp_path / LOCK).exists()
    (tmp_path / file).unlink()
    new_run_folder(str(tmp_path), "", exist_ok=True).close()
    (tmp_path / file).write_text("of the run")
    new_run_folder(str(tmp_path), "", exist_ok=True).close()


def test_concurrent_trainings_get_separate_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unused = run_folder.unused_path

    def taken_by_another(project: str, name: str, *, exist_ok: bool) -> Path:
        """Let another process create the folder that this command has just chosen."""
        found = unused(project, name, exist_ok=exist_ok)
        (tmp_path / "exp").mkdir(exist_ok=True)
        return found

    monkeypatch.setattr(run_folder, "unused_path", taken_by_another)
    folder = new_run_folder(str(tmp_path), "exp", exist_ok=False)
    folder.close()
    assert folder.path == tmp_path / "exp2"


@pytest.mark.parametrize("name", ["last", "last.1", "best", "last.earlier", "best.earlier"])
def test_weights_of_earlier_run_in_folder_raise(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path)
    try:
        for file in ("last", "last.1", "best", "last.earlier", "best.earlier", "mine"):
            (folder.weights / f"{file}.safetensors").write_text(file)
        given = folder.weights / f"{name}.safetensors"
        with pytest.raises(ValueError, match="choose another --name, or copy the file elsewhere first"):
            folder.reject_as_weights(os.path.relpath(given))
        folder.reject_as_weights(str(folder.weights / "mine.safetensors"))
        folder.reject_as_weights("")
    finally:
        folder.close()
