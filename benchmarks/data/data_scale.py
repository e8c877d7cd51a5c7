"""`graph-bench data-scale`: what a large data set costs before and beside the steps: processor time and memory.

Everything is measured twice: with the large set, and with a small one, whose cost is that of starting at all. Each
number comes from a process of its own, with an index cache of its own.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data.link_set import make_link_set
from benchmarks.harness.flags import add_quick
from benchmarks.harness.measure import seconds_of, summarise
from benchmarks.harness.tables import Table, number
from benchmarks.harness.work_folder import add_work_argument, work_folder
from benchmarks.harness.workers import Worker

IMAGES, BOXES, SMALL = 118_287, 1_600_000, 100
QUICK_IMAGES = 2_000
FIRST, AGAIN, CHECK, PLAN, PLANS, TRAIN = (
    "first index",
    "index again",
    "graph-check",
    "first batch planned",
    "batches planned",
    "first training step",
)
_PLANNED = 256
"""Batches whose planning is timed: of 16 images, each of which is a mosaic of four."""
_WORKER = "benchmarks.data.data_scale_worker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How large, of which pictures."""
    add_quick(parser)
    parser.add_argument("--repeats", type=int, default=1, help="how often everything is measured (default: 1)")
    parser.add_argument("--images", type=int, help=f"training images (default: {IMAGES}, with --quick {QUICK_IMAGES})")
    parser.add_argument("--labels", type=int, help="their label rows (default: in proportion to 1.6 million)")
    parser.add_argument("--small", type=int, default=SMALL, help=f"images of the set beside it (default: {SMALL})")
    parser.add_argument("--data", default="shapes", help="dataset yaml, or `shapes`, whose pictures are linked to")
    parser.add_argument(
        "--steps", type=int, default=6, help="training steps after which memory is read (default: 6); 0 trains none"
    )
    add_work_argument(parser)


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Makes both sets and measures them in turn.

    Raises:
        ValueError: too few images for the steps, or fewer than in the small set.
    """
    images = flags.images or (QUICK_IMAGES if flags.quick else IMAGES)
    labels = flags.labels if flags.labels is not None else round(BOXES * images / IMAGES)
    if not 0 < flags.small < images or min(flags.steps, labels - 1) < 0:
        sizes = f"--small {flags.small}, --images {images}, --labels {labels}"
        raise ValueError(f"{sizes}: all must be at least 1, --small less than --images, and --steps not below 0")
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
    """What each piece of work took: `processor_s`, `seconds` (wall clock), and memory as the worker tells."""
    cache = work / "cache"
    _copy_plugin(cache)
    data, index = str(yaml), str(cache / "graph-train" / "index")
    try:
        with _Process(cache, flags.threads) as process:
            found = {FIRST: process.timed("index", data=data, cache=index)}
        later = [(AGAIN, "index", {"cache": index}), (CHECK, "check", {})]
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
        raise ValueError(f"{yaml}: {found[FIRST]['images']} of {images} images are usable; are the pictures damaged?")
    return found


def _copy_plugin(cache: Path) -> None:
    """Bring the kernels that are compiled already; nothing else of the user's cache is used, or changed."""
    from kernels.build import plugin_build
    from kernels.build.cache import PluginUnavailableError, cache_folder

    try:
        kept = cache_folder() / plugin_build.plugin_key(plugin_build.find_toolchain())
    except PluginUnavailableError:
        return
    if kept.is_dir():
        shutil.copytree(kept, cache / "graph-train" / "plugin" / kept.name)


class _Process:
    """A worker that measures each call from its own start, or from the end of the call before."""

    def __init__(self, cache: Path, threads: int) -> None:
        self._worker = Worker("data-scale", _WORKER, threads=threads, environment={"XDG_CACHE_HOME": str(cache)})
        self._spent = 0.0

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *reason: Any) -> None:
        self._worker.__exit__(*reason)

    def timed(self, handler: str, **arguments: Any) -> dict[str, float]:
        """What the handler told, with `processor_s` (unless it told that itself) and `seconds`."""
        told: dict[str, float] = {}
        seconds = seconds_of(lambda: told.update(self._worker.call(handler, **arguments) or {}))
        before, self._spent = self._spent, self._worker.call("processor_ms")["process"] / 1e3
        return {"processor_s": self._spent - before, "seconds": seconds, **told}


def _row(what: str, images: int, turns: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians over the turns."""
    middle = {key: summarise(turn[key] for turn in turns).median for key in turns[0]}
    return {"what": what, **middle, "images": images}


def growth(rows: Sequence[Mapping[str, Any]], small: int, images: int) -> dict[str, dict[str, float]]:
    """By what was measured: how much more processor time and memory (MB) the large set takes than the small one."""
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
    """Both sets side by side."""
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
        "Processor time (user and system) of a process from its start; of planning, that alone: the first batch "
        f"of an epoch, and {_PLANNED} batches. "
        f"{number(int(found[FIRST, images]['boxes']))} labels. Memory is the peak; of the training what the process "
        "holds after its last step."
    )
    return [Table("A large data set", columns, cells, (note,))]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Processor time of both sets, and their memory."""
    from benchmarks.harness.plots import bars

    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for title, key in (("processor time, s", "processor_s"), ("memory, MB", "memory_mb")):
        groups[title] = {
            f"{row['what']}, {row['images']:,} images": (row[key],) * 3 for row in body["rows"] if key in row
        }
    bars(groups, path, title="A large data set", unit="")
