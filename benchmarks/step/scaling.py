"""`graph-bench scaling`: strong scaling over ranks on this host, and the bytes that they send."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import add_points, add_quick, add_repeats
from benchmarks.harness.measure import ratios, summarise, take_turns
from benchmarks.harness.points import Point, parse_point
from benchmarks.harness.tables import Table, number, percent
from benchmarks.harness.workers import Worker
from graph_train.ranks.rendezvous import free_port

POINTS, QUICK_POINTS = ("yolov5n:16:320", "yolov5s:4:320"), ("yolov5n:8:160",)
COLUMNS = tuple(
    "model, batch, px, ranks, ms/step, quartiles, img/s, speedup, efficiency, overhead ms, independent ms, "
    "all-reduce ms, exchange ms, sent MB per step, ring MB".split(", ")
)
_BYTES = 4
"""Size of a gradient value."""
_STEPS_PER_TURN = 3
_EXCHANGES_PER_TURN, _EXCHANGE_TURNS = 5, 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--repeats`, `--points`, `--ranks` and `--interface`."""
    add_repeats(parser)
    add_quick(parser)
    add_points(parser, POINTS)
    parser.add_argument(
        "--ranks",
        nargs="+",
        type=int,
        default=[1, 2],
        help="numbers of ranks; the first is the baseline (default: 1 2)",
    )
    parser.add_argument(
        "--interface", default="lo", help="network interface on which sent bytes are counted (default: lo)"
    )


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure each number of ranks at each point, with the same number of threads per rank.

    Raises:
        ValueError: fewer than one rank, a batch with fewer images than ranks, or an unknown interface.
    """
    points = [parse_point(text) for text in flags.points or (QUICK_POINTS if flags.quick else POINTS)]
    for count in flags.ranks:
        if count < 1 or any(point.batch_size < count for point in points):
            raise ValueError(f"--ranks {count}: must be at least 1 and at most the batch size")
    sent_bytes(flags.interface)
    threads = max(1, flags.threads // max(flags.ranks))
    rows = [row for point in points for row in _measure_point(point, flags, threads)]
    return {"rows": rows, "threads_per_rank": threads}


def _measure_point(point: Point, flags: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="graph-bench-"))
        with Worker("description", "benchmarks.step.step_worker", threads=threads) as worker:
            size = worker.call("describe", folder=folder, **asdict(point))
            shares = {n: _describe_share(worker, point, n, folder) for n in flags.ranks if n > 1}
        jobs = {str(n): stack.enter_context(_Job(n, folder, flags, threads)) for n in dict.fromkeys(flags.ranks)}
        jobs |= {
            f"{n} independent": stack.enter_context(_Job(n, share, flags, threads, independent=True))
            for n, share in shares.items()
        }
        seconds = take_turns(
            {name: job.turn for name, job in jobs.items()}, repeats=flags.repeats, label=f"{point}, ranks in turn"
        )
        gradient_mb = size["parameters"] * _BYTES / 1e6
        return [_row(point, jobs[str(n)], seconds, flags.ranks[0], gradient_mb) for n in dict.fromkeys(flags.ranks)]


def _describe_share(worker: Worker, point: Point, ranks: int, folder: str) -> str:
    """Write the files of a point with the batch size of the rank with the most images."""
    share = Path(folder) / f"share-of-{ranks}"
    share.mkdir()
    worker.call("describe", folder=str(share), **asdict(replace(point, batch_size=-(-point.batch_size // ranks))))
    return str(share)


def _row(
    point: Point, job: "_Job", turns: Mapping[str, Sequence[float]], fewest: int, gradient_mb: float
) -> dict[str, Any]:
    seconds, first = turns[str(job.ranks)], turns[str(fewest)]
    independent = turns.get(f"{job.ranks} independent", seconds)
    step, gain = summarise(value * 1e3 for value in seconds), ratios(first, seconds)
    return {
        "model": point.model,
        "batch_size": point.batch_size,
        "imgsz": point.imgsz,
        "ranks": job.ranks,
        "ms_per_step": step.median,
        **{key: value for key, value in step.as_dict().items() if key != "median"},
        "images_per_second": point.batch_size / step.median * 1e3,
        "speedup": gain.as_dict(),
        "efficiency": gain.median * fewest / job.ranks,
        "lost_ms": step.median - summarise(value * 1e3 for value in first).median * fewest / job.ranks,
        "apart_ms": summarise(value * 1e3 for value in independent).as_dict(),
        "sum_ms": job.exchange_ms("sums"),
        "agreement_ms": job.exchange_ms("agreements"),
        "mb_sent_per_step": summarise(job.sent_mb).median,
        "gradient_mb": gradient_mb,
        "ring_mb": 2 * (job.ranks - 1) * gradient_mb,
    }


class _Job:
    """Ranks on this host, each a worker; all run at the same time.

    With `independent` they do not communicate; their time then includes only the cost of sharing cores and memory.
    """

    def __init__(
        self, ranks: int, folder: str, flags: argparse.Namespace, threads: int, *, independent: bool = False
    ) -> None:
        self.ranks, self.sent_mb = ranks, list[float]()
        self._interface = flags.interface
        self._stack = ExitStack()
        port = str(free_port())
        self._workers = [
            Worker(
                f"rank {rank} of {ranks}",
                "benchmarks.step.scaling_worker",
                threads=threads,
                environment=_variables(rank, 1 if independent else ranks, port),
            )
            for rank in range(ranks)
        ]
        self._pool = self._stack.enter_context(ThreadPoolExecutor(ranks))
        self._stack.callback(self._close)
        self._call_all("prepare", folder=folder, device=flags.device)

    def __enter__(self) -> "_Job":
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()

    def _call_all(self, function: str, **arguments: Any) -> list[Any]:
        return list(self._pool.map(lambda worker: worker.call(function, **arguments), self._workers))

    def turn(self) -> float:
        """Return the seconds per step of the slowest rank."""
        before = sent_bytes(self._interface)
        seconds = max(self._call_all("steps", count=_STEPS_PER_TURN)) / _STEPS_PER_TURN
        self.sent_mb.append((sent_bytes(self._interface) - before) / _STEPS_PER_TURN / 1e6)
        return seconds

    def exchange_ms(self, kind: str) -> dict[str, Any]:
        """Return the milliseconds of one type of communication: gradient `sums` or the `agreements` before a batch."""
        turns = [max(self._call_all(kind, count=_EXCHANGES_PER_TURN)) for _ in range(_EXCHANGE_TURNS + 1)]
        return summarise(seconds / _EXCHANGES_PER_TURN * 1e3 for seconds in turns[1:]).as_dict()

    def _close(self) -> None:
        try:
            self._call_all("report_done")
        finally:
            # OneFlow's ranks wait for each other when they end.
            list(self._pool.map(lambda worker: worker.close(), self._workers))


def _variables(rank: int, ranks: int, port: str) -> dict[str, str]:
    if ranks == 1:
        return {}
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def sent_bytes(interface: str) -> int:
    """Return the bytes sent by a network interface so far.

    Raises:
        ValueError: unknown interface.
    """
    rows = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()[2:]
    columns = {name.strip(): values.split() for name, _, values in (row.partition(":") for row in rows)}
    if interface not in columns:
        raise ValueError(f"--interface {interface}: must be one of {', '.join(columns)}")
    return int(columns[interface][8])


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return one table row per point and number of ranks."""
    lines = tuple(
        (
            row["model"],
            str(row["batch_size"]),
            str(row["imgsz"]),
            str(row["ranks"]),
            number(row["ms_per_step"]),
            f"{number(row['lower_quartile'])}–{number(row['upper_quartile'])}",
            number(row["images_per_second"]),
            f"{row['speedup']['median']:.2f}",
            percent(row["efficiency"]),
            number(row["lost_ms"]),
            number(row["apart_ms"]["median"]),
            number(row["sum_ms"]["median"]),
            number(row["agreement_ms"]["median"]),
            number(row["mb_sent_per_step"]),
            number(row["ring_mb"]),
        )
        for row in body["rows"]
    )
    notes = (
        f"Every rank has {body['threads_per_rank']} threads; with more ranks than cores, only the overhead is "
        "measured.",
        "Overhead: ms beyond an equal share of the first row's step. Independent: the same number of processes that do "
        "not communicate, each with its share of the batch.",
        "All-reduce: of the gradients alone. Exchange: of a few numbers before each batch of a training.",
        "Sent: by all ranks together, on one interface. Ring: what a ring all-reduce sends, 2 (ranks - 1) times the "
        "size of the gradients.",
    )
    return [Table("Strong scaling over ranks", COLUMNS, lines, notes)]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot the speed over the number of ranks, one line per model."""
    from benchmarks.harness.plots import lines

    points: dict[str, list[tuple[float, float]]] = {}
    for row in body["rows"]:
        name = f"{row['model']} batch {row['batch_size']}"
        points.setdefault(name, []).append((row["ranks"], row["speedup"]["median"]))
    lines({"": points}, path, title="Strong scaling over ranks", x="ranks", y="speedup over the first")
