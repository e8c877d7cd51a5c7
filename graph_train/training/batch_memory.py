"""Measures how much memory training steps take, in a process of its own: OneFlow keeps the memory of compiled graphs.

    python -m graph_train.training.batch_memory REQUEST

REQUEST is a JSON file: `options` (flags), `hyp` (hyper-parameters), `batches` (rising numbers of images), `parent` (the
process whose death ends this one) and `result`, a file that gets a JSON line with the `Facts` and then one for each
`Measured`. What was measured before a lack of memory ended the process stays there.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graph_train.host.interrupts import Interruptible, end_with_parent
from graph_train.host.run_command import run_command
from kernels.host.process_settings import configure_process

SAFE_SHARE = 0.9
"""A batch is not tried if it would take more than this share of what is free."""


@dataclass(frozen=True)
class Facts:
    """What decides how much of the measured is needed, besides the batch."""

    train_images: int
    val_images: int
    val_shapes: int
    """Different shapes of validation batches."""
    graphs_add_up: bool
    """Compiled graphs share no memory."""
    sizes: float
    """Graphs of all image sizes of `--multi-scale`, in units of the largest; 1 without it."""


@dataclass(frozen=True)
class Measured:
    """Bytes that something has taken: host memory on a CPU, else memory of the GPU."""

    what: str
    """`start` (everything but the following), `data` (one batch being made), `step` or `validation`."""
    images: int
    taken: int


def _measure(request: Mapping[str, Any], write: Callable[[Facts | Measured], None]) -> None:
    """Assembles the run and lets it make a batch, do a step of each size, and validate; reports what each took."""
    import numpy as np

    from graph_train.host.devices import select_device
    from graph_train.settings.hyperparameters import Hyperparameters
    from graph_train.settings.train_options import options_from_flags
    from graph_train.training.assembly import assemble

    batches: list[int] = request["batches"]
    options = options_from_flags(**{**request["options"], "batch_size": batches[-1]})
    memory = _Memory(select_device(options.engine.device), compiled=options.engine.graph)
    run = assemble(options, Hyperparameters(**request["hyp"]), any_anchors=True)
    write(_facts(run, graphs_add_up=memory.graphs_add_up))
    write(Measured("start", 0, memory.used()))
    before = memory.used()
    next(iter(run.train_pipeline.epoch(0)))
    write(Measured("data", batches[-1], memory.used() - before))
    measure_steps(memory, batches, lambda images: _step(run, images), write)
    before, side = memory.used(), run.setup.image_px
    run.inference(np.zeros((batches[-1], 3, side, side), np.uint8), np.zeros((0, 6), np.float32))
    write(Measured("validation", batches[-1], memory.used() - before))


def measure_steps(
    memory: "_Memory", batches: list[int], step: Callable[[int], None], write: Callable[[Measured], None]
) -> None:
    """Take a step with each batch size, smallest first, and report what it took.

    A compiled graph keeps its memory, on a GPU as on a CPU, so what earlier sizes took does not count. Op by op memory
    is used again, and the whole of it counts. A size that may not fit ends the measurement.
    """
    before, taken = memory.used(), 0
    for number, images in enumerate(batches):
        if number and taken * images / batches[number - 1] > SAFE_SHARE * memory.free():
            break
        before = memory.used() if memory.graphs_add_up else before
        step(images)
        taken = memory.used() - before
        write(Measured("step", images, taken))


class _Memory:
    """The memory that a run needs more of with larger batches."""

    def __init__(self, device: str, *, compiled: bool) -> None:
        self._on_cpu = device == "cpu"
        self._number = 0 if self._on_cpu else int(device.partition(":")[2])
        self.graphs_add_up = compiled
        self._others = 0 if self._on_cpu else self._on_gpu()

    def used(self) -> int:
        """Bytes of this process."""
        from graph_train.host.memory import peak_bytes, resident_bytes

        if not self._on_cpu:
            return self._on_gpu() - self._others
        # Op by op, memory is given back and taken again: the most at once counts.
        return resident_bytes() if self.graphs_add_up else peak_bytes()

    def _on_gpu(self) -> int:
        from graph_train.host.memory import device_memory

        memory = device_memory(self._number)
        return memory.total - memory.free

    def free(self) -> int:
        """Bytes that are left."""
        from graph_train.host.memory import device_memory
        from kernels.host.free_memory import free_memory

        return free_memory() if self._on_cpu else device_memory(self._number).free


def _facts(run: Any, *, graphs_add_up: bool) -> Facts:
    from pipelines.augmentation.draws import multi_scale_range

    factor = 1.0
    if run.setup.options.data.multi_scale and graphs_add_up:
        sizes = multi_scale_range(run.setup.image_px, run.state.network.spec.grid_px)
        factor = sum((size / sizes[-1]) ** 2 for size in sizes)
    return Facts(
        train_images=len(run.setup.data.train),
        val_images=len(run.setup.data.val),
        val_shapes=len(set(run.val_pipeline.shapes_hw)),
        graphs_add_up=graphs_add_up,
        sizes=factor,
    )


def _step(run: Any, images: int) -> None:
    """One step as the run will do it, at its largest image size; the pixels and labels do not matter."""
    import numpy as np

    from kernels.runtime import flow
    from pipelines.augmentation.draws import multi_scale_range

    setup, side = run.setup, run.setup.image_px
    if setup.options.data.multi_scale:
        side = multi_scale_range(side, run.state.network.spec.grid_px)[-1]
    shape = (images // 4, 3, 2 * side, 2 * side) if setup.options.data.quad else (images, 3, side, side)
    pixels = setup.placement.empty_batch(shape, flow.uint8)
    labels = flow.tensor(np.full((shape[0], run.label_floor, 5), -1, np.float32), device=setup.device)
    run.step(pixels, labels, run.schedule.at(0, 0))


def main() -> int:
    """Entry point of the process."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    end_with_parent(request["parent"])
    configure_process()
    # What there is to say of the data set is said by the run itself.
    logging.getLogger("graph_train").setLevel(logging.ERROR)
    with Interruptible(), Path(request["result"]).open("w", encoding="utf-8") as file:

        def write(found: Facts | Measured) -> None:
            print(json.dumps(asdict(found)), file=file, flush=True)

        return run_command("graph-train", lambda: _measure(request, write), debug=bool(request["options"]["debug"]))


if __name__ == "__main__":
    sys.exit(main())
