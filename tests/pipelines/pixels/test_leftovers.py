"""Memory, threads and files of a pipeline, each case in a child process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipelines.rendered import rendered_index

ROOT = Path(__file__).resolve().parents[3]


def iterate_in_subprocess(images: Path, own: Path, *, epochs: int, cache: str = "none", stop_after: int = 0) -> Any:
    """Run `tests.pipelines.pass_over` with its own folders for temporary files and caches; return its output."""
    for name in ("tmp", "cache"):
        (own / name).mkdir(parents=True)
    arguments = [str(images), str(own / "cache"), str(epochs), cache, str(stop_after)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipelines.pass_over", *arguments],
        env={**os.environ, "TMPDIR": str(own / "tmp")},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    message, _ = process.communicate(timeout=500)
    assert process.returncode == 0
    assert session_commands(process.pid) == []
    return json.loads(message)


def session_commands(session: int) -> list[str]:
    """Return the command lines of the processes in a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                found.append((folder / "cmdline").read_text())
        except OSError:  # already ended
            continue
    return found


def unmapped_shared_memory() -> set[str]:
    """Return this user's shared memory files that no process has mapped."""
    own = {entry.name for entry in os.scandir("/dev/shm") if entry.stat(follow_symlinks=False).st_uid == os.getuid()}
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped |= set(re.findall(r"/dev/shm/(\S+)", maps.read_text()))
        except OSError:  # already ended
            continue
    return own - mapped


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_break_mid_epoch_leaves_nothing_behind(tmp_path: Path, cache: str) -> None:
    images = tmp_path / "set" / "images"
    images.mkdir(parents=True)
    rendered_index(images, images=48)
    before = unmapped_shared_memory()
    left = iterate_in_subprocess(images, tmp_path / "own", epochs=2, cache=cache, stop_after=1)
    assert left["threads"] == []
    assert unmapped_shared_memory() - before == set()
    assert list((tmp_path / "own" / "tmp").iterdir()) == []
    assert [path.name for path in (tmp_path / "set").rglob("*") if path.is_dir()] == ["images"]
    assert all(path.suffix in (".png", ".jpg") for path in images.iterdir())
    if cache == "disk":  # whole files only
        kept = list((tmp_path / "own" / "cache").rglob("*.rgb"))
        assert len(kept) == 48
        assert not list((tmp_path / "own" / "cache").rglob("tmp*"))


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "ram"])
def test_memory_is_constant_over_twenty_epochs(bccd: Path, tmp_path: Path, cache: str) -> None:
    """Compare medians, since free memory that is not yet returned to the system fluctuates."""
    resident = iterate_in_subprocess(bccd.parent / "images" / "train", tmp_path, epochs=25, cache=cache)["resident"][5:]
    early, late = np.median(resident[:10]), np.median(resident[10:])
    assert late <= 1.01 * early, [round(count / 1e6) for count in resident]
