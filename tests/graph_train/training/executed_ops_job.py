"""A training with the ops used on CUDA that records the executed kernels: `... FILE FLAGS`, FLAGS as JSON."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graph_train.evolution import generation
from graph_train.launch.train import train
from graph_train.training import assembly
from kernels.framework.op_trace import executed_ops, reset_executed_ops, trace_ops
from kernels.plugin import load_plugin
from kernels.runtime import flow
from pipelines.pixels import image_cache


class Trace:
    """The (op, kernel owner) pairs of a command, except those that create modules and zeros on the host."""

    def __init__(self) -> None:
        self.pairs: set[tuple[str, str]] = set()
        self._paused = False

    def collect(self) -> None:
        """Add what was executed since the last call."""
        self.pairs |= {(op.kind, op.owner) for op in executed_ops()}
        reset_executed_ops()

    def on_host(self, create: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function without a trace: what it creates is moved to the device later."""

        def created(*given: Any, **settings: Any) -> Any:
            assert "device" not in settings
            if self._paused:
                return create(*given, **settings)
            self.collect()
            self._paused = True
            value = create(*given, **settings)
            reset_executed_ops()
            self._paused = False
            return value

        return created


def _train_here(command: Sequence[str]) -> int:
    """Train a generation of an evolution in this process, which is traced, instead of its own."""
    generation._train(json.loads(Path(command[-1]).read_text()))
    return 0


def main(out: Path, flags: dict[str, Any]) -> None:
    """Train and write the pairs."""
    load_plugin("emulated-cuda")
    trace_ops()
    trace = Trace()
    for place, name in ((assembly, "DetectionModel"), (assembly, "DetectionLoss"), (flow, "zeros")):
        setattr(place, name, trace.on_host(getattr(place, name)))
    generation._run = _train_here
    image_cache.user_cache_folder = lambda: out.parent / "cache"
    train(**flags)
    trace.collect()
    out.write_text(json.dumps(sorted(trace.pairs)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
