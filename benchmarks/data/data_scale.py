"""`graph-bench data-scale`: the processor time and memory that a large data set costs outside the training step.

Everything is measured with the large set and with a small one, which gives the fixed cost of starting up. Each number
comes from a fresh process with its own index cache.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data.link_set import make_link_set
from benchmarks.harness.flags import add_quick, add_work, work_folder
from benchmarks.harness.measure import seconds_of, summarise
from benchmarks.harness.tables import Table, number
from benchmarks.harness.workers import Worker

IMAGES, BOXES, SMALL = 118_287, 1_600_000, 100
QUICK_IMAGES = 2_000
FIRST, CACHED_START, CHECK, PLAN, PLANS, TRAIN = (
    "first index",
    "index again",
    "graph-check",
    "first batch planned",
    "batches planned",
    "first training step",
)
_PLANNED = 256
"""Batches whose planning is timed; each has 16 images, each a mosaic of four."""
_WORKER = "benchmarks.data.data_scale_worker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of both data sets and their source images."""
    add_quick(parser)
    parser.add_argument("--repeats", type=int, default=1, help="measurements of each number (default: 1)")
    parser.add_argument("--images", type=int, help=f"training images (default: {IMAGES}, with --quick {QUICK_IMAGES})")
    parser.add_argument(
        "--labels", type=int, help="labels in them (default: in proportion to 1.6 million for the default size)"
    )
    parser.add_argument("--small", type=int, default=SMALL, help=f"images in the small set (default: {SMALL})")
    parser.add_argument("--data", default="shapes", help="dataset yaml with the images to link to, or `shapes`")
    parser.add_argument(
        "--steps", type=int, default=6, help="training steps before memory is read (default: 6); 0 skips training"
    )
    add_work(parser)


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Create both sets and measure them in turn.

    Raises:
        ValueError: too few images for the steps, or fewer images than in the small set.
    """
    images = flags.images if flags.images is not None else (QUICK_IMAGES if flags.quick else IMAGES)
    labels = flags.labels if flags.labels is not None else round(BOXES * images / IMAGES)
    if not 0 < flags.small < images or min(flags.steps, labels - 1) < 0:
        sizes = f"--small {flags.small}, --images {images}, --labels {labels}"
        raise ValueError(f"{sizes}: sizes must be at least 1, --small less than --images, --steps at least 0")
    with work_folder(flags.work) as folder:
        sets = {}
        for size in (flags.small, images):
            rows = max(1, round(labels * size / images))
            sets[size] = make_link_set(folder / str(size), images=size, boxes=rows, pictures=flags.data)
        turns = [
            {size: _measure(yaml, folder / "turn", size, flags) for size, yaml in sets.items()}
            for _ in range(flags.repeats)
        ]
    rows = [_row(what, size, [turn[size][what] for turn in turns]) for what in turns[0][images] for size in sets]
    return {"rows": rows, "growth": growth(rows, flags.small, images)}


def _measure(yaml: Path, work: Path, images: int, flags: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return `processor_s`, wall-clock `seconds` and the worker's memory for each piece of work."""
    cache = work / "cache"
    _copy_plugin(cache)
    data, index = str(yaml), str(cache / "graph-train" / "index")
    try:
        with _Process(cache, flags.threads) as process:
            found = {FIRST: process.timed("index", data=data, cache=index)}
        later = [(CACHED_START, "index", {"cache": index}), (CHECK, "check", {})]
        if flags.steps:
            training = {"steps": flags.steps, "threads": flags.threads, "folder": str(work / "runs")}
            later.append((TRAIN, "train", training))
        for what, handler, arguments in later:
            with _Process(cache, flags.threads) as process:
                found[what] = process.timed(handler, data=data, **arguments)
        with _Process(cache, flags.threads) as process:
            process.timed("prepare_plan", data=data, cache=index)
            found[PLAN] = process.timed("plan", batches=1)
            found[PLANS] = process.timed("plan", batches=_PLANNED)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if found[FIRST]["images"] != images:
        raise ValueError(
            f"{yaml}: {found[FIRST]['images']} of {images} images are usable; some image files may be corrupt"
        )
    return found


def _copy_plugin(cache: Path) -> None:
    """Copy the compiled kernels from the user's cache; nothing else in it is used or changed."""
    from kernels.build import plugin_build
    from kernels.build.cache import PluginUnavailableError, cache_folder

    try:
        kept = cache_folder() / plugin_build.plugin_key(plugin_build.find_toolchain())
    except PluginUnavailableError:
        return
    if kept.is_dir():
        shutil.copytree(kept, cache / "graph-train" / "plugin" / kept.name)


class _Process:
    """A worker whose calls are timed from its start or from the end of the previous call."""

    def __init__(self, cache: Path, threads: int) -> None:
        self._worker = Worker("data-scale", _WORKER, threads=threads, environment={"XDG_CACHE_HOME": str(cache)})
        self._spent = 0.0

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *reason: Any) -> None:
        self._worker.__exit__(*reason)

    def timed(self, handler: str, **arguments: Any) -> dict[str, float]:
        """Return the handler's result with `seconds` and, unless it is there already, `processor_s`."""
        measured: dict[str, float] = {}
        seconds = seconds_of(lambda: measured.update(self._worker.call(handler, **arguments) or {}))
        before, self._spent = self._spent, self._worker.call("processor_ms")["process"] / 1e3
        return {"processor_s": self._spent - before, "seconds": seconds, **measured}


def _row(what: str, images: int, turns: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the medians over the turns."""
    middle = {key: summarise(turn[key] for turn in turns).median for key in turns[0]}
    return {"what": what, **middle, "images": images}


def growth(rows: Sequence[Mapping[str, Any]], small: int, images: int) -> dict[str, dict[str, float]]:
    """Return, per piece of work, the extra processor time and memory (MB) of the large set over the small one."""
    found = {(row["what"], row["images"]): row for row in rows}
    return {
        what: {
            key: found[what, images][key] - found[what, small][key]
            for key in ("processor_s", "memory_mb")
            if key in row
        }
        for (what, size), row in found.items()
        if size == images
    }


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return both sets side by side."""
    small, images = sorted({row["images"] for row in body["rows"]})
    found = {(row["what"], row["images"]): row for row in body["rows"]}
    cells = tuple(
        (
            what,
            *(number(found[what, size]["processor_s"]) for size in (small, images)),
            number(found[what, images]["seconds"]),
            *(number(found[what, size].get("memory_mb")) for size in (small, images)),
            number(grown.get("memory_mb")),
        )
        for what, grown in body["growth"].items()
    )
    columns = (
        "what",
        f"processor s, {small:,} images",
        f"processor s, {images:,} images",
        "seconds",
        f"MB, {small:,} images",
        f"MB, {images:,} images",
        "MB more",
    )
    note = (
        "Processor time (user and system) of a process since its start; for planning, only of the first batch of an "
        f"epoch or of {_PLANNED} batches. "
        f"{number(int(found[FIRST, images]['boxes']))} labels. Memory is the peak; for the training, the memory of "
        "the process after its last step."
    )
    return [Table("A large data set", columns, cells, (note,))]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot processor time and memory of both sets."""
    from benchmarks.harness.plots import bars

    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for title, key in (("processor time, s", "processor_s"), ("memory, MB", "memory_mb")):
        groups[title] = {
            f"{row['what']}, {row['images']:,} images": (row[key],) * 3 for row in body["rows"] if key in row
        }
    bars(groups, path, title="A large data set", unit="")
