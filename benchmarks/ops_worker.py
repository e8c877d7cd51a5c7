"""Worker of `graph-bench ops`: compiles one training step and reads the ops out of it."""

import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import step_worker
from benchmarks.channel import serve
from benchmarks.points import Point, write_point

_BATCH, _IMAGE_PX = 1, 64


def compiled_ops(model: str, device: str, plugin: bool) -> dict[str, int]:
    """Op -> how often it stands in the compiled step; OneFlow's own kinds end in `_conf`."""
    with tempfile.TemporaryDirectory(prefix="graph-bench-") as folder:
        write_point(Path(folder), Point(model, _BATCH, _IMAGE_PX))
        step_worker.prepare(folder, device, 1, plugin=plugin, graph=True, amp=False)
    counts: Counter[str] = Counter()
    for op in step_worker.compiled_graph().net.op:
        kind = op.WhichOneof("op_type")
        counts[op.user_conf.op_type_name if kind == "user_conf" else kind] += 1
    return dict(counts)


if __name__ == "__main__":
    serve({"compiled_ops": compiled_ops})
