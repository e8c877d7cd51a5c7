"""`graph-bench data-scale`: the generated data set, its rows and the growth between sizes."""

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from benchmarks.data.data_scale import CACHED_START, CHECK, FIRST, PLAN, PLANS, TRAIN, growth
from benchmarks.data.link_set import CLASSES, make_link_set
from benchmarks.harness.results import read_result
from kernels.host.cache_folder import user_cache_folder
from pipelines.data.dataset import load_dataset
from pipelines.data.index import index_images


def test_data_set_has_requested_image_and_label_counts(tmp_path: Path) -> None:
    yaml = make_link_set(tmp_path / "set", images=200, boxes=1500, pictures="shapes")
    dataset = load_dataset(yaml)
    train, val = (
        index_images(split, dataset.class_names, cache_dir=tmp_path / "cache") for split in (dataset.train, dataset.val)
    )
    assert (len(train), train.num_boxes, len(val)) == (200, 1500, 8)
    assert val.num_boxes == 60
    assert train.problems == val.problems == ()
    assert len(dataset.class_names) == CLASSES
    assert all(path.is_symlink() for path in train.paths)
    targets = ({os.path.realpath(path) for path in index.paths} for index in (train, val))
    assert not set.intersection(*targets), "a picture of both splits would be a warning"


def measured(tmp_path: Path, *flags: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the benchmark rows for sets of 20 and 60 images."""
    common = ["--images", "60", "--labels", "400", "--small", "20", "--json", str(tmp_path / "d.json")]
    assert main(["data-scale", *common, *flags]) == 0
    return {(row["what"], row["images"]): row for row in read_result(tmp_path / "d.json")["rows"]}


def test_reports_rows_for_both_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = measured(tmp_path, "--steps", "0", "--plot", str(tmp_path / "d.png"))
    assert rows.keys() == {(what, size) for what in (FIRST, CACHED_START, CHECK, PLAN, PLANS) for size in (20, 60)}
    assert all(row["processor_s"] > 0 and row["memory_mb"] > 10 for row in rows.values())
    assert rows[FIRST, 60]["boxes"] == 400
    assert rows[PLANS, 60]["processor_s"] > rows[PLAN, 60]["processor_s"]
    assert (tmp_path / "d.png").stat().st_size > 5000
    assert "processor s, 60 images" in capsys.readouterr().out
    assert not (user_cache_folder() / "index").exists(), "an index of the temporary set was written to the user's cache"


@pytest.mark.slow
def test_trains_on_both_sets(tmp_path: Path) -> None:
    rows = measured(tmp_path, "--steps", "2")
    for size in (20, 60):
        assert rows[TRAIN, size]["peak_memory_mb"] >= rows[TRAIN, size]["memory_mb"] > rows[FIRST, size]["memory_mb"]
        assert rows[TRAIN, size]["processor_s"] > rows[CACHED_START, size]["processor_s"]


def test_growth_is_difference_between_sets() -> None:
    rows = [
        {"what": FIRST, "images": 10, "processor_s": 1.0, "memory_mb": 50.0},
        {"what": FIRST, "images": 99, "processor_s": 4.0, "memory_mb": 70.0},
    ]
    assert growth(rows, 10, 99) == {FIRST: {"processor_s": 3.0, "memory_mb": 20.0}}


@pytest.mark.parametrize(
    "flags", [["--images", "100"], ["--images", "200", "--labels", "0"], ["--small", "0"], ["--steps", "-1"]]
)
def test_rejects_sizes_without_growth(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data-scale", *flags]) == 2
    assert "must be at least" in capsys.readouterr().err
