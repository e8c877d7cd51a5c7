"""What `benchmarks.scaling_model` predicts for clusters that nobody of this project has: assumptions, then tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from benchmarks.scaling_model import (
    BACKWARD_SHARE,
    Compute,
    Link,
    gather_seconds,
    hierarchical_seconds,
    ring_seconds,
    step_seconds,
    tree_seconds,
)
from benchmarks.tables import Table, number, percent

GPUS = (1, 8, 64, 1024)
COLUMNS = ("GPUs", "hosts", "batch", "images per GPU", "compute ms", "ring ms", "in levels ms", "small ms", "data ms",
           "step ms", "img/s", "efficiency", "in levels", "overlapped")  # fmt: skip


def _assumed(value: float, unit: str, why: str) -> Any:
    return field(default=value, metadata={"unit": unit, "why": why})


@dataclass(frozen=True)
class Assumptions:
    """A cluster and a network; every value is an assumption unless its reason says that it was measured."""

    gpus_per_host: float = _assumed(8, "", "assumed")
    fixed_ms: float = _assumed(8, "ms", "assumed: launches and the update, per step")
    per_image_ms: float = _assumed(2.5, "ms", "assumed: yolov5s at 640 px with --amp on an A100, 400 images/s")
    gradient_mb: float = _assumed(28.941556, "MB", "counted: yolov5s, 80 classes, float32")
    inside_gb_s: float = _assumed(200, "GB/s", "assumed: NVLink, each GPU, one direction, as an all-reduce reaches it")
    inside_us: float = _assumed(5, "µs", "assumed: one message inside a host")
    between_gb_s: float = _assumed(20, "GB/s", "assumed: InfiniBand of 200 Gbit/s, one adapter per GPU")
    between_us: float = _assumed(10, "µs", "assumed: one message between hosts")
    small_sums: float = _assumed(12, "", "assumed: all-reduces of a few numbers in a step (losses, matches), by trees")
    agreement_us: float = _assumed(50, "µs", "assumed: one message between the processors of hosts, over TCP")
    data_cores: float = _assumed(64, "", "assumed: cores of a host that prepare images")
    data_ms: float = _assumed(3.29, "ms", "measured: of a core per image, 640 px, mosaic, nothing cached")
    weak_batch: float = _assumed(16, "images", "chosen: per GPU, where the batch grows with the GPUs")
    strong_batch: float = _assumed(1024, "images", "chosen: of all GPUs together, where it stays the same")

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise ValueError(f"--assume {item.name}={getattr(self, item.name)}: must be above 0")

    def changed(self, texts: Sequence[str]) -> "Assumptions":
        """With values of the command line, `NAME=VALUE` each.

        Raises:
            ValueError: an unknown name, no number, or one that is not above 0.
        """
        known, values = {item.name for item in fields(self)}, {}
        for text in texts:
            name, _, value = text.partition("=")
            if name not in known:
                raise ValueError(f"--assume {text}: write NAME=VALUE; names are {', '.join(sorted(known))}")
            try:
                values[name] = float(value)
            except ValueError:
                raise ValueError(f"--assume {text}: {value!r} is no number") from None
        return replace(self, **values)


@dataclass(frozen=True)
class Prediction:
    """One step on so many GPUs; seconds of its parts."""

    gpus: int
    hosts: int
    images_per_gpu: float
    compute: float
    ring: float
    levels: float
    small: float
    data: float

    @property
    def step(self) -> float:
        """As the project does it: one ring over all GPUs, after the backward pass."""
        return step_seconds(self.compute, self.ring + self.small, self.data)

    @property
    def step_in_levels(self) -> float:
        """With sums inside each host first."""
        return step_seconds(self.compute, self.levels + self.small, self.data)

    @property
    def step_overlapped(self) -> float:
        """In levels, and gradients sent while the backward pass goes on: small sums stay what they are."""
        hidden = min(BACKWARD_SHARE * self.compute, self.levels)
        return step_seconds(self.compute, self.levels + self.small, self.data, hidden=hidden)


def predict(assumed: Assumptions, gpus: int, images_per_gpu: float) -> Prediction:
    """A step of `gpus` GPUs, full hosts of them, each with so many images."""
    per_host = int(min(gpus, assumed.gpus_per_host))
    hosts = -(-gpus // per_host)
    size = assumed.gradient_mb * 1e6
    inside = Link(assumed.inside_gb_s * 1e9, assumed.inside_us / 1e6)
    between = Link(assumed.between_gb_s * 1e9, assumed.between_us / 1e6)
    # A ring over hosts is as slow as its slowest message; it leaves a host over all adapters, as NCCL's rings do.
    widest = min(between.bytes_per_second * per_host, inside.bytes_per_second)
    around = Link(widest, between.latency_s) if hosts > 1 else inside
    sums = assumed.small_sums * tree_seconds(gpus, around.latency_s)
    return Prediction(
        gpus=gpus,
        hosts=hosts,
        images_per_gpu=images_per_gpu,
        compute=Compute(assumed.fixed_ms / 1e3, assumed.per_image_ms / 1e3).seconds(images_per_gpu),
        ring=ring_seconds(gpus, size, around),
        levels=hierarchical_seconds(hosts, per_host, size, inside, between),
        small=sums + gather_seconds(gpus, assumed.agreement_us / 1e6),
        data=images_per_gpu * per_host * assumed.data_ms / 1e3 / assumed.data_cores,
    )


def tables(assumed: Assumptions) -> list[Table]:
    """The assumptions, weak scaling, strong scaling."""
    weak = [predict(assumed, gpus, assumed.weak_batch) for gpus in GPUS]
    strong = [predict(assumed, gpus, assumed.strong_batch / gpus) for gpus in GPUS]
    rows = tuple(
        (item.name, f"{number(float(getattr(assumed, item.name)))} {item.metadata['unit']}".strip(),
         item.metadata["why"] if getattr(assumed, item.name) == item.default else "given")
        for item in fields(assumed)
    )  # fmt: skip
    return [
        Table("Assumptions", ("name", "value", "why"), rows),
        _table("Predicted, not measured: weak scaling, the batch per GPU stays the same", weak),
        _table("Predicted, not measured: strong scaling, the batch of all GPUs stays the same", strong),
    ]


def _table(title: str, steps: Sequence[Prediction]) -> Table:
    rows = []
    for step in steps:
        images = step.gpus * step.images_per_gpu
        parts = (step.compute, step.ring, step.levels, step.small, step.data, step.step)
        ways = (step.step, step.step_in_levels, step.step_overlapped)
        rows.append(
            (
                *(number(int(count)) for count in (step.gpus, step.hosts, images)),
                number(step.images_per_gpu),
                *(number(seconds * 1e3) for seconds in parts),
                number(images / step.step),
                *(percent(_efficiency(steps[0], step, seconds)) for seconds in ways),
            )
        )
    return Table(title, COLUMNS, tuple(rows))


def _efficiency(one: Prediction, many: Prediction, seconds: float) -> float:
    """Images per second and GPU, as a share of those of one GPU."""
    return (many.images_per_gpu / seconds) / (one.images_per_gpu / one.step)
