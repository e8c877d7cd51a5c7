"""Measurement of the memory of training steps, in a separate process because OneFlow does not free compiled graphs.

    python -m graph_train.training.batch_memory REQUEST

REQUEST is a JSON file with `options` (flags), `hyp` (hyper-parameters), `batches` (increasing batch sizes), `parent` (a
process id; this process ends with it) and `result`, the file to write: a JSON line with the `RunFacts`, then one for
each `PhaseMemory`. If the process runs out of memory, the lines written before remain.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_train.host.interrupts import Interruptible, end_with_parent
from graph_train.host.run_command import run_command
from kernels.host.process_settings import configure_process

if TYPE_CHECKING:
    from graph_train.training.assembly import TrainingRun

SAFE_FRACTION = 0.9
"""A batch size is not tried if it would need more than this fraction of the free memory."""


@dataclass(frozen=True)
class RunFacts:
    """Facts about the run that determine its memory besides the batch size."""

    train_images: int
    val_images: int
    val_shapes: int
    """Number of distinct shapes of validation batches."""
    graphs_have_own_memory: bool
    """Whether each compiled graph has its own memory."""
    sizes: float
    """Memory of the graphs of all `--multi-scale` sizes, relative to that of the largest; 1 without the flag."""


@dataclass(frozen=True)
class PhaseMemory:
    """Memory used by one phase, in bytes: host memory on a CPU, else GPU memory."""

    phase: str
    """`data` (preparing one batch), `step`, `validation`, or `start` for everything else."""
    images: int
    used: int


def _measure(request: Mapping[str, Any], write: Callable[[RunFacts | PhaseMemory], None]) -> None:
    """Assemble the run, prepare a batch, take a step of each batch size, validate; report the memory of each phase."""
    import numpy as np

    from graph_train.host.devices import select_device
    from graph_train.settings.hyperparameters import Hyperparameters
    from graph_train.settings.train_options import options_from_flags
    from graph_train.training.assembly import assemble

    batches: list[int] = request["batches"]
    options = options_from_flags(**{**request["options"], "batch_size": batches[-1]})
    memory = _Memory(select_device(options.engine.device), compiled=options.engine.graph)
    run = assemble(options, Hyperparameters(**request["hyp"]), fit_anchors=False)
    write(_facts(run, graphs_have_own_memory=memory.graphs_have_own_memory))
    write(PhaseMemory("start", 0, memory.used()))
    before = memory.used()
    next(iter(run.train_pipeline.epoch(0)))
    write(PhaseMemory("data", batches[-1], memory.used() - before))
    measure_steps(memory, batches, lambda images: _step(run, images), write)
    before, side = memory.used(), run.setup.image_px
    run.inference.compile_at_once()  # a training compiles this shape when it is frequent
    run.inference(np.zeros((batches[-1], 3, side, side), np.uint8), np.zeros((0, 6), np.float32))
    write(PhaseMemory("validation", batches[-1], memory.used() - before))


def measure_steps(
    memory: "_Memory", batches: list[int], step: Callable[[int], None], write: Callable[[PhaseMemory], None]
) -> None:
    """Take a step with each batch size, smallest first, and report its memory; stop before a size that may not fit.

    Compiled graphs keep their memory, so the memory of earlier sizes is subtracted. Eager steps reuse memory, so all of
    it is counted.
    """
    before, used = memory.used(), 0
    for number, images in enumerate(batches):
        if number and used * images / batches[number - 1] > SAFE_FRACTION * memory.free():
            break
        before = memory.used() if memory.graphs_have_own_memory else before
        step(images)
        used = memory.used() - before
        write(PhaseMemory("step", images, used))


class _Memory:
    """The memory that limits the batch size: the host's or the GPU's."""

    def __init__(self, device: str, *, compiled: bool) -> None:
        self._on_cpu = device == "cpu"
        self._number = 0 if self._on_cpu else int(device.partition(":")[2])
        self.graphs_have_own_memory = compiled
        self._used_by_others = 0 if self._on_cpu else self._on_gpu()

    def used(self) -> int:
        """Return the bytes used by this process."""
        from graph_train.host.memory import peak_bytes, resident_bytes

        if not self._on_cpu:
            return self._on_gpu() - self._used_by_others
        # Eager steps free and reallocate memory, so the peak is what counts.
        return resident_bytes() if self.graphs_have_own_memory else peak_bytes()

    def _on_gpu(self) -> int:
        from graph_train.host.memory import device_memory

        memory = device_memory(self._number)
        return memory.total - memory.free

    def free(self) -> int:
        """Return the free bytes."""
        from graph_train.host.memory import device_memory
        from kernels.host.free_memory import free_memory

        return free_memory() if self._on_cpu else device_memory(self._number).free


def _facts(run: "TrainingRun", *, graphs_have_own_memory: bool) -> RunFacts:
    from pipelines.augmentation.random_samples import multi_scale_range

    factor = 1.0
    if run.setup.options.data.multi_scale and graphs_have_own_memory:
        sizes = multi_scale_range(run.setup.image_px, run.state.network.spec.grid_px)
        factor = sum((size / sizes[-1]) ** 2 for size in sizes)
    return RunFacts(
        train_images=len(run.setup.data.train),
        val_images=len(run.setup.data.val),
        val_shapes=len(set(run.val_pipeline.shapes_hw)),
        graphs_have_own_memory=graphs_have_own_memory,
        sizes=factor,
    )


def _step(run: "TrainingRun", images: int) -> None:
    """Take one step as the run does, at its largest image size; the contents of images and labels do not matter."""
    import numpy as np

    from kernels.runtime import flow
    from pipelines.augmentation.random_samples import multi_scale_range

    setup, side = run.setup, run.setup.image_px
    if setup.options.data.multi_scale:
        side = multi_scale_range(side, run.state.network.spec.grid_px)[-1]
    shape = (images // 4, 3, 2 * side, 2 * side) if setup.options.data.quad else (images, 3, side, side)
    pixels = setup.placement.empty_batch(shape, flow.uint8)
    labels = flow.tensor(np.full((shape[0], run.label_floor, 5), -1, np.float32), device=setup.device)
    run.step(pixels, labels, run.schedule.at(0, 0))


def main() -> int:
    """Run the process."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    end_with_parent(request["parent"])
    configure_process()
    # The run itself logs the messages about the data set.
    logging.getLogger("graph_train").setLevel(logging.ERROR)

    def command() -> None:
        with Interruptible(), Path(request["result"]).open("w", encoding="utf-8") as file:

            def write(result: RunFacts | PhaseMemory) -> None:
                print(json.dumps(asdict(result)), file=file, flush=True)

            _measure(request, write)

    return run_command("graph-train", command, debug=bool(request["options"]["debug"]), process_ends=True)


if __name__ == "__main__":
    sys.exit(main())
