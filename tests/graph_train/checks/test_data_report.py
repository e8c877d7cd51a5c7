"""Detection of files that occur in several splits, reading as little as possible."""

import os
from pathlib import Path

import pytest

from graph_train.checks import data_report
from graph_train.checks.data_report import shared_images
from pipelines.data.dataset import Split
from pipelines.data.images import ImageFacts, ImageFormat
from pipelines.data.index import ImageIndex


def index_of(*files: Path) -> ImageIndex:
    return ImageIndex.of(
        [(file, ImageFacts(40, 30, ImageFormat("jpeg", "RGB", 8, 1, file.stat().st_size, True))) for file in files]
    )


def write_file(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


LONG = b"begin" + bytes(20_000) + b"end"


def test_duplicates_are_reported_and_similar_files_are_not(tmp_path: Path) -> None:
    train = [write_file(tmp_path / f"t{n}", content) for n, content in enumerate((LONG, b"short", b"other"))]
    val = [
        write_file(tmp_path / "v0", LONG.replace(b"\0", b"\1", 10_000).replace(b"\1", b"\0", 9_999)),
        write_file(tmp_path / "v1", b"shirt"),
        write_file(tmp_path / "v2", LONG),
        write_file(tmp_path / "v3", b"other"),
    ]
    splits: dict[Split, ImageIndex] = {"train": index_of(*train), "val": index_of(*val), "test": index_of(val[2])}
    reported = [str(problem) for problem in shared_images(splits)]
    assert reported == [
        f"{val[2]}: warning: 2 images of val (this is the first) are also in train",
        f"{val[2]}: warning: 1 image of test is also in train",
    ]


def test_only_possible_duplicates_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read only files whose size occurs in several splits, each file once, and stop at a differing tail."""
    picture = write_file(tmp_path / "a", LONG)
    links = [tmp_path / f"link{n}" for n in range(3)]
    for link in links:
        link.symlink_to(picture)
    hard = tmp_path / "hard"
    os.link(picture, hard)
    alone = [write_file(tmp_path / name, b"of one size") for name in ("b", "c")]
    other = write_file(tmp_path / "d", LONG[:-1] + b"D")
    ends: list[str] = []
    read_ends = data_report._ends

    def recorded(file: str) -> bytes:
        ends.append(file)
        return read_ends(file)

    monkeypatch.setattr(data_report, "_ends", recorded)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read to the end"))
    splits: dict[Split, ImageIndex] = {"train": index_of(*links, *alone), "val": index_of(hard, other)}
    (reported,) = shared_images(splits)
    assert str(reported) == f"{hard}: warning: 1 image of val is also in train"
    assert len(ends) == 2


def test_no_files_have_no_duplicates() -> None:
    assert shared_images({}) == []
