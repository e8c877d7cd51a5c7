"""Op tracing: off by default, complete when enabled."""

import json
from typing import Any

from kernels.framework.op_trace import executed_ops
from kernels.plugin import load_plugin
from kernels.runtime import flow
from tests.python_process import run_python

_TRACED = """
import dataclasses, json, time
from kernels.framework.op_trace import executed_ops, reset_executed_ops, trace_ops
from kernels.plugin import load_plugin
from kernels.runtime import flow

load_plugin("require")
trace_ops()
values = flow.ones(64)
reset_executed_ops()
before = time.perf_counter_ns()
for _ in range(3):
    flow.nn.functional.silu(values).sin()
found = executed_ops()
after = time.perf_counter_ns()
reset_executed_ops()
left = len(executed_ops())
print(json.dumps({"ops": [dataclasses.asdict(op) for op in found], "before": before, "after": after, "left": left}))
"""


def _traced() -> dict[str, Any]:
    done = run_python("-c", _TRACED)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_records_calls_and_times() -> None:
    traced = _traced()
    assert {(op["kind"], op["owner"], op["calls"]) for op in traced["ops"]} == {
        ("silu", "plugin", 3),
        ("sin", "OneFlow", 3),
    }
    for op in traced["ops"]:
        assert traced["before"] <= op["first_start"] < op["last_end"] <= traced["after"]
        assert 0 < op["nanoseconds"] <= op["last_end"] - op["first_start"]
    assert traced["left"] == 0


def test_nothing_is_recorded_by_default() -> None:
    load_plugin("require")
    flow.nn.functional.silu(flow.ones(64)).numpy()
    assert executed_ops() == []
