"""`graph-bench pipeline`: images per second of the training pipeline, its stages and an OpenCV loader."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import add_quick, add_repeats
from benchmarks.harness.measure import ratios, summarise, take_turns
from benchmarks.harness.tables import Table, number, rows_of
from benchmarks.harness.workers import Worker
from benchmarks.step.competitors import find_torch, peer_versions

OURS, OPENCV = "graph-train", "opencv"
STAGES = ("read", "decode", "geometry", "pixels", "hand-over")
SIZES, QUICK_SIZES = (320, 640), (320,)
_COUNT, _QUICK_COUNT = 600, 200
NEEDED = ("cv2", "numpy")
"""Modules that the OpenCV loader's interpreter needs."""
NO_OPENCV = (
    "OpenCV rows are skipped: this interpreter has no cv2. Create an environment with it (python3.11 -m venv T && "
    "T/bin/pip install numpy opencv-python-headless) and pass --torch-python T/bin/python."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data set, image sizes, thread counts and OpenCV's interpreter."""
    add_repeats(parser)
    add_quick(parser)
    parser.add_argument("--data", default="shapes", help="dataset yaml, or `shapes`; the train split is loaded")
    parser.add_argument("--imgsz", type=int, nargs="+", help=f"image sizes (default: {' '.join(map(str, SIZES))})")
    parser.add_argument("--workers", type=int, nargs="+", help="thread counts (default: powers of two up to --threads)")
    parser.add_argument("--batch-size", type=int, default=16, help="images per batch")
    parser.add_argument(
        "--cache",
        nargs="+",
        choices=("none", "ram"),
        default=["none", "ram"],
        help="image caches to measure (default: both)",
    )
    parser.add_argument("--torch-python", metavar="PATH", help="Python interpreter with OpenCV (default: this one)")


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure the whole pipeline at every size, cache and thread count, and its stages with the most threads."""
    sizes = flags.imgsz or (QUICK_SIZES if flags.quick else SIZES)
    workers = sorted(set(flags.workers or _powers_of_two(flags.threads)))
    if min(workers) < 1 or flags.batch_size < 1:
        raise ValueError(f"--workers {min(workers)}, --batch-size {flags.batch_size}: must be at least 1")
    opencv = find_torch(flags.torch_python, NEEDED)
    rows: list[dict[str, Any]] = []
    speedups: list[dict[str, Any]] = []
    for image_px in sizes:
        for cache in flags.cache:
            for threads in workers:
                measured = _compare(flags, image_px, threads, cache, opencv)
                rows += measured["rows"]
                speedups += measured["speedups"]
        rows += _stages(flags, image_px, max(workers), opencv)
    return {"rows": rows, "speedups": speedups, "notes": [] if opencv else [NO_OPENCV]}


def _powers_of_two(limit: int) -> list[int]:
    return [*(2**n for n in range(limit.bit_length()) if 2**n < limit), limit]


class _Point:
    """The workers of both sides at one point."""

    def __init__(self, flags: argparse.Namespace, image_px: int, threads: int, cache: str, opencv: Path | None) -> None:
        self._stack = ExitStack()
        enter = self._stack.enter_context
        folder = enter(tempfile.TemporaryDirectory(prefix="graph-bench-"))
        self.known = {"imgsz": image_px, "threads": threads, "device": flags.device, "cache": cache}
        self.workers = {OURS: enter(Worker(OURS, "benchmarks.data.pipeline_worker", threads=threads))}
        common = {"image_px": image_px, "batch": flags.batch_size, "cache": cache == "ram"}
        listed = f"{folder}/images.json"
        self._prepared: dict[str, Any] = {OURS: {}}
        self.workers[OURS].call(
            "prepare", data=str(flags.data), threads=threads, device=flags.device, list_file=listed, **common
        )
        if opencv is not None:
            self.workers[OPENCV] = enter(Worker(OPENCV, "benchmarks.peers.opencv_worker", threads=1, python=opencv))
            self._prepared[OPENCV] = self.workers[OPENCV].call("prepare", data=listed, **common)

    def __enter__(self) -> "_Point":
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()

    def row(self, loader: str, stage: str, speeds: Sequence[float], **more: Any) -> dict[str, Any]:
        """Return one row: the median of the speeds and their quartiles."""
        summary = summarise(speeds)
        quartiles = {key: value for key, value in summary.as_dict().items() if key != "median"}
        return {
            "loader": loader,
            "stage": stage,
            **self.known,
            "images_per_second": summary.median,
            **quartiles,
            **more,
            **peer_versions(self._prepared[loader]),
        }


def _compare(
    flags: argparse.Namespace, image_px: int, threads: int, cache: str, opencv: Path | None
) -> dict[str, list[dict[str, Any]]]:
    """Measure both sides in turn and return their rows of the stage "all"."""
    count = _QUICK_COUNT if flags.quick else _COUNT
    with _Point(flags, image_px, threads, cache, opencv) as point:
        cpu: dict[str, list[float]] = {name: [] for name in point.workers}

        def once(name: str) -> float:
            more = {} if name == OURS else {"workers": threads}
            result = point.workers[name].call("once", count=count, **more)
            cpu[name].append(result["cpu_ms"])
            return float(result["images_per_second"])

        runners = {name: lambda name=name: once(name) for name in point.workers}
        label = f"{image_px} px, {threads} threads, cache {cache}"
        speeds = take_turns(runners, repeats=flags.repeats, label=label)
        rows = [
            point.row(name, "all", speeds[name], cpu_ms_per_image=summarise(cpu[name][-flags.repeats :]).median)
            for name in runners
        ]
        if opencv is None:
            return {"rows": rows, "speedups": []}
        times = {
            "images_per_second": ratios(speeds[OURS], speeds[OPENCV]),
            "cpu_ms_per_image": ratios(cpu[OPENCV][-flags.repeats :], cpu[OURS][-flags.repeats :]),
        }
        return {"rows": rows, "speedups": [{**point.known, "of": of, **times[of].as_dict()} for of in times]}


def _stages(flags: argparse.Namespace, image_px: int, threads: int, opencv: Path | None) -> list[dict[str, Any]]:
    """Return a row for each stage of our pipeline and of the OpenCV loader, each stage measured alone."""
    with _Point(flags, image_px, threads, "none", opencv) as point:
        stage = point.workers[OURS].call
        runners = {name: lambda name=name: float(stage("stage", name=name)) for name in STAGES}
        speeds = take_turns(runners, repeats=flags.repeats, label=f"{image_px} px, stages")
        rows = [point.row(OURS, name, values) for name, values in speeds.items()]
        if opencv is None:
            return rows
        theirs = [point.workers[OPENCV].call("stages") for _ in range(flags.repeats)]
        point.known["threads"] = 1
        return rows + [point.row(OPENCV, name, [turn[name] for turn in theirs]) for name in theirs[0]]


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return tables of the whole loaders, our speedup and the stages."""
    whole = [row for row in body["rows"] if row["stage"] == "all"]
    stages = [row for row in body["rows"] if row["stage"] != "all"]
    columns = {
        "px": "imgsz",
        "cache": "cache",
        "threads": "threads",
        "loader": "loader",
        "img/s": "images_per_second",
        "lower quartile": "lower_quartile",
        "upper quartile": "upper_quartile",
        "CPU ms per image": "cpu_ms_per_image",
    }
    made = [rows_of(whole, columns, "Training pipeline: mosaic of four, default augmentation", *body["notes"])]
    if body["speedups"]:
        made.append(_speedup_table(body["speedups"]))
    columns = {"px": "imgsz", "threads": "threads", "loader": "loader", "stage": "stage", "img/s": "images_per_second"}
    note = "read, geometry and hand-over use one thread; OpenCV's decoding includes reading"
    return [*made, rows_of(stages, columns, "Stages, each alone", note)]


def _speedup_table(speedups: Sequence[Mapping[str, Any]]) -> Table:
    names = {"images_per_second": "speed", "cpu_ms_per_image": "CPU time"}
    rows = tuple(
        (
            number(pair["imgsz"]),
            pair["cache"],
            number(pair["threads"]),
            names[pair["of"]],
            f"{pair['median']:.2f}",
            f"{pair['lower_quartile']:.2f} … {pair['upper_quartile']:.2f}",
        )
        for pair in speedups
    )
    title = "Improvement over the OpenCV loader, as ratios within each turn"
    return Table(title, ("px", "cache", "threads", "of", "times", "quartiles"), rows)


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot two panels per size: both loaders, and the stages of our pipeline."""
    from benchmarks.harness.plots import bars

    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in body["rows"]:
        quartiles = (row["images_per_second"], row["lower_quartile"], row["upper_quartile"])
        if row["stage"] == "all":
            cache = ", cache ram" if row["cache"] == "ram" else ""
            label = f"{row['loader']}, {row['threads']} threads{cache}"
            groups.setdefault(f"{row['imgsz']} px", {})[label] = quartiles
        # The hand-over copies nothing: its bar would hide all others.
        elif row["loader"] == OURS and row["stage"] != "hand-over":
            groups.setdefault(f"{row['imgsz']} px, stages alone", {})[row["stage"]] = quartiles
    bars(groups, path, title="Training pipeline", unit="images per second")
