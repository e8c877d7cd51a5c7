"""The kit without a GPU: its message, its cases on the emulated device, struct layouts and time limits."""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.step.competitors import find_torch
from kernels.build.plugin_build import SOURCE_FOLDER, find_compiler
from kernels.host.cuda_devices import compute_capabilities
from tests.gpu import stages
from tests.gpu.base import Launched, decode, encode
from tests.gpu.budget import SECONDS, UNLIMITED, StageBudget, stage_budgets
from tests.gpu.cases import CASES, WITHIN_OTHERS, kernel_names
from tests.gpu.layouts import structure
from tests.gpu.stages import _one_kernel

ROOT = Path(__file__).resolve().parents[2]
_STRUCTURES = {
    "ops/elementwise/elementwise.h": ("AddArgs", "CastArgs", "FillArgs"),
    "ops/bias/bias.h": ("AddBiasArgs", "AddBiasGradArgs"),
    "ops/pixels/pixels.h": ("PixelArgs",),
    "ops/weight_packing/weight_packing.h": ("PackedWeight", "PackArgs"),
    "ops/batch_norm/batch_norm.h": ("NormArgs",),
    "ops/pooling/pooling.h": ("PoolArgs", "PoolShape", "UpsampleArgs"),
    "ops/augmented_views/augmented_views.h": ("ViewArgs", "ViewRows", "JoinArgs"),
    "ops/activation_function/activation_function.h": ("ActivateArgs",),
    "ops/rearrange/rearrange.h": ("DepthArgs", "PadArgs"),
    "ops/attention/attention.h": ("AttentionArgs", "AttentionShape"),
    "ops/concat/concat.h": ("ConcatArgs", "ConcatPiece"),
    "ops/begin_step/begin_step.h": ("FlatPiece", "FlattenArgs", "BeginStepArgs"),
    "ops/bbox_iou/launch.h": ("BoxIouArgs",),
    "ops/detections/launch.h": ("DecodeArgs", "DecodedLevel", "SuppressArgs", "SuppressionSettings"),
    "ops/detection_loss/launch.h": ("LossArgs", "LossLevel"),
    "ops/detection_loss/rebalance.h": ("RebalanceArgs",),
    "ops/update/launch.h": ("UpdateArgs", "Piece"),
}


def _kit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.gpu", *(str(word) for word in arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(bool(compute_capabilities()), reason="there is a GPU")
def test_reports_missing_gpu() -> None:
    ran = _kit()
    assert ran.returncode == 2
    assert ran.stderr == "no GPU here, or no NVIDIA driver: nothing was run\n"


@pytest.mark.timeout(1200)
def test_cases_pass_on_emulated_device(tmp_path: Path) -> None:
    ran = _kit("--emulated", "--json", tmp_path / "table.json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = {line["name"]: line["result"] for line in json.loads((tmp_path / "table.json").read_text())["lines"]}
    assert results == dict.fromkeys(CASES, "PASS")


def test_every_kernel_has_case() -> None:
    assert CASES.keys() | WITHIN_OTHERS == kernel_names()


def test_kernel_without_case_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "EmulatedGpu", _NoDevice)
    monkeypatch.setattr(stages, "kernel_names", lambda: {"new_kernel"})
    (line,) = stages.kernels_alone(UNLIMITED, emulated=True)
    assert (line.name, line.result) == ("new_kernel", "FAIL")


@pytest.mark.parametrize("header", _STRUCTURES)
def test_struct_layouts_match_compiler(header: str, tmp_path: Path) -> None:
    source = tmp_path / "layout.cpp"
    checks = [f'#include "{header}"', "using namespace graph_train;"]
    for name in _STRUCTURES[header]:
        ours = structure(header, name)
        checks.append(f"static_assert(sizeof({name}) == {ctypes.sizeof(ours)});")
        for field in ours._fields_:
            checks.append(f"static_assert(offsetof({name}, {field[0]}) == {getattr(ours, field[0]).offset});")
    source.write_text("\n".join(checks) + "\n")
    command = [str(find_compiler()), "-std=c++17", "-fsyntax-only", f"-I{SOURCE_FOLDER}", str(source)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


class _NoDevice:
    name = "none"

    def microseconds(self, start: object) -> float:
        return 1.0


@pytest.mark.parametrize(("got", "result"), [(1.0, "PASS"), (1.1, "PASS"), (1.2, "FAIL"), (np.nan, "FAIL")])
def test_error_above_bound_fails(got: float, result: str) -> None:
    launched = Launched(((np.array([got]), np.array([1.0])),), 0.15, 0, lambda: None, 8)
    assert _one_kernel(_NoDevice(), "one", lambda _: launched).result == result  # type: ignore[arg-type]


def test_exception_fails_and_is_reported() -> None:
    def fail(_: object) -> Launched:
        raise RuntimeError("cuLaunchKernel: invalid value (1)")

    line = _one_kernel(_NoDevice(), "one", fail)  # type: ignore[arg-type]
    assert (line.result, line.note) == ("FAIL", "RuntimeError: cuLaunchKernel: invalid value (1)")


@pytest.mark.parametrize(
    ("test", "result"), [("assert True", "PASS"), ("assert False", "FAIL"), ("__import__('pytest').skip()", "FAIL")]
)
def test_all_skipped_is_skip(tmp_path: Path, test: str, result: str) -> None:
    (tmp_path / "test_one.py").write_text(f"def test_one() -> None:\n    {test}\n")
    command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={tmp_path}", "-c", "/dev/null", str(tmp_path)]
    assert stages._command(UNLIMITED, "one", command).result == result


def test_bfloat16_rounds_to_nearest() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.0], np.float32)  # the middle ones lie halfway
    assert decode(encode(values, "bf16")).tolist() == [1.0, 1.0, 1.015625, -3.0]


def test_measures_our_ops() -> None:
    times, problem = stages._times(UNLIMITED, "ours", sys.executable, "cpu", "tiny")
    assert problem is None
    assert times.keys() == {"convolution", "BatchNorm and SiLU", "SGD update"}
    assert all(duration > 0 for duration in times.values())


def test_measures_pytorch() -> None:
    interpreter = find_torch(os.environ.get("GRAPH_TRAIN_TORCH_PYTHON"))
    if interpreter is None:
        pytest.skip("no PyTorch here; GRAPH_TRAIN_TORCH_PYTHON may name an interpreter that has it")
    times, problem = stages._times(UNLIMITED, "pytorch", str(interpreter), "cpu", "tiny")
    assert problem is None
    assert times.keys() == {"convolution", "BatchNorm and SiLU", "SGD update"}


def test_reports_times_next_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"ours": {"convolution": 12.0, "SGD update": 3.0}, "pytorch": {"convolution": 15.0}}
    monkeypatch.setattr(stages, "_times", lambda _, side, __: (times[side], None))
    monkeypatch.setattr(stages, "find_torch", lambda _: Path("python"))
    first, second = stages.speed(UNLIMITED)
    assert (first.name, first.note) == ("convolution", "12.0 us; PyTorch 15.0 us")
    assert "no PyTorch" in second.note


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_stages_fit_in_ten_minutes() -> None:
    clock = Clock()
    budgets = stage_budgets(clock)
    assert [budget.stage for budget in budgets] == list(SECONDS) == ["kernels", "pictures", "training", "speed"]
    assert [budget.left() for budget in budgets] == [150, 300, 540, 600]
    clock.now += 40  # time unused by the first stage is available to the others
    assert [budget.left() for budget in budgets] == [110, 260, 500, 560]


def test_kernels_without_time_left_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def case(_: object) -> Launched:
        clock.now += 6
        return Launched(((np.zeros(1), np.zeros(1)),), 0, 0, lambda: None, 8)

    monkeypatch.setattr(stages, "EmulatedGpu", _NoDevice)
    monkeypatch.setattr(stages, "kernel_names", lambda: set("abc"))
    monkeypatch.setattr(stages, "CASES", dict.fromkeys("abc", case))
    lines = list(stages.kernels_alone(StageBudget("kernels", clock.now + 10, clock), emulated=True))
    assert [line.result for line in lines] == ["PASS", "PASS", "FAIL"]
    assert lines[2].note == "the time of the stage 'kernels' is used up"


def test_command_times_out_with_its_stage(tmp_path: Path) -> None:
    clock = Clock()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    late = stages._command(StageBudget("training", clock.now + 0.3, clock), "one", sleep)
    assert (late.result, late.note) == ("FAIL", "no end after 0 s; the time of the stage 'training' is used up")
    touch = [sys.executable, "-c", f"open({str(tmp_path / 'started')!r}, 'w')"]
    never = stages._command(StageBudget("training", clock.now, clock), "two", touch)
    assert (never.result, never.note) == ("FAIL", "the time of the stage 'training' is used up")
    assert not (tmp_path / "started").exists()


def test_speed_is_skipped_without_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_times", lambda *_: ({"convolution": 12.0}, None))
    monkeypatch.setattr(stages, "find_torch", lambda _: None)
    clock = Clock()
    budget = stage_budgets(clock)[-1]
    clock.now += 600 - 45
    assert [line.result for line in stages.speed(budget)] == ["PASS"]
    clock.now += 5
    (line,) = stages.speed(budget)
    assert (line.name, line.result, line.note) == ("ours", "SKIP", "40 s are left, 45 are needed")


HANGS = """
import time
from tests.gpu import __main__ as kit
table = kit._Table(None)
table.add_all([kit.Line("kernels", "add", "PASS", 1.0, "")])
kit.end_when_overdue(table, 0.2)
time.sleep(60)
"""


def test_hanging_kernel_ends_kit_with_table() -> None:
    ran = subprocess.run([sys.executable, "-c", HANGS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    first, last, count = ran.stdout.splitlines()
    assert first.startswith("PASS  kernels") and last.endswith("no end after 0 s")
    assert count == "2 lines, 1 failed"
