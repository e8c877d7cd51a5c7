"""The kit without a GPU: its message, its cases on the emulated device, struct layouts and time limits."""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.step.competitors import find_torch
from graph_train.settings import train_options, val_options
from kernels.build import cuda_build
from kernels.build.plugin_build import SOURCE_FOLDER, find_compiler
from kernels.host.cuda_devices import compute_capabilities
from tests.gpu import kernel_stage, stages
from tests.gpu.__main__ import Table
from tests.gpu.base import Launched, Line, decode, encode
from tests.gpu.budget import SECONDS, UNLIMITED, StageBudget, stage_budgets
from tests.gpu.cases import CASES, LARGE_CASES, WITHIN_OTHERS, kernel_names
from tests.gpu.commands import run_command
from tests.gpu.kernel_run import run_case
from tests.gpu.layouts import structure

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


_MANY_BLOCKS = """
import sys
from kernels.plugin import load_plugin, plugin_library
load_plugin("emulated-cuda")
plugin_library().graph_train_emulated_multiprocessors(24)
from tests.gpu.cases import CASES
from tests.gpu.devices import EmulatedGpu
from tests.gpu.kernel_run import run_case
lines = [run_case(EmulatedGpu(), name, CASES[name]) for name in sys.argv[1:]]
failed = [line for line in lines if line.result != "PASS"]
assert not failed, failed
"""


def test_cooperative_cases_pass_with_many_blocks() -> None:
    """Emulated launches have two blocks, but a GPU runs up to some hundred, more than there are pieces of work."""
    names = ("batch_norm_f32", "batch_norm_grad_f16", "channel_variance_bf16", "detection_loss", "update_parameters")
    command = [sys.executable, "-c", _MANY_BLOCKS, *names]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_every_kernel_has_case() -> None:
    assert CASES.keys() | WITHIN_OTHERS == kernel_names()


def test_kernel_without_case_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_stage, "kernel_names", lambda: {"new_kernel"})
    (line,) = kernel_stage.without_case()
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

    def free_all(self) -> None:
        pass


@pytest.mark.parametrize(("got", "result"), [(1.0, "PASS"), (1.1, "PASS"), (1.2, "FAIL"), (np.nan, "FAIL")])
def test_error_above_bound_fails(got: float, result: str) -> None:
    launched = Launched(((np.array([got]), np.array([1.0])),), 0.15, 0, lambda: None, 8)
    assert run_case(_NoDevice(), "one", lambda _: launched).result == result  # type: ignore[arg-type]


def test_exception_fails_and_is_reported() -> None:
    def fail(_: object) -> Launched:
        raise RuntimeError("cuLaunchKernel: invalid value (1)")

    line = run_case(_NoDevice(), "one", fail)  # type: ignore[arg-type]
    assert (line.result, line.note) == ("FAIL", "RuntimeError: cuLaunchKernel: invalid value (1)")


@pytest.mark.parametrize(
    ("test", "result"), [("assert True", "PASS"), ("assert False", "FAIL"), ("__import__('pytest').skip()", "FAIL")]
)
def test_all_skipped_is_skip(tmp_path: Path, test: str, result: str) -> None:
    (tmp_path / "test_one.py").write_text(f"def test_one() -> None:\n    {test}\n")
    command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={tmp_path}", "-c", "/dev/null", str(tmp_path)]
    assert run_command(UNLIMITED, "one", command).result == result


def test_bfloat16_rounds_to_nearest() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.0], np.float32)  # the middle ones lie halfway
    assert decode(encode(values, "bf16")).tolist() == [1.0, 1.0, 1.015625, -3.0]


def test_training_flags_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: dict[str, list[str]] = {}

    def note(budget: StageBudget, name: str, command: list[str]) -> Line:
        commands[name] = command
        return Line(budget.stage, name, "PASS", 0, "")

    monkeypatch.setattr(stages, "run_command", note)
    monkeypatch.setattr(stages, "compute_capabilities", lambda: ((9, 0), (9, 0)))
    assert all(line.result == "PASS" for line in stages.training(UNLIMITED))
    given = {
        name: words[words.index("graph_train") + 1 :] for name, words in commands.items() if "graph_train" in words
    }
    assert given.keys() == {"float32", "AMP", "20 epochs", "every block", "two ranks"}
    for flags in given.values():
        assert train_options.build_parser().parse_args(flags).data == "shapes"
    for name in ("validation", "validation --augment"):
        words = commands[name]
        parsed = val_options.build_parser().parse_args(words[words.index("graph_train.cli.val") + 1 :])
        assert [path.parts[-3:] for path in map(Path, parsed.weights)] == [("20 epochs", "weights", "best.safetensors")]


def test_measures_our_ops() -> None:
    times, problem = stages._times(UNLIMITED, "ours", sys.executable, "cpu", "tiny")
    assert problem is None
    assert times.keys() == {"convolution", "BatchNorm and SiLU", "SGD update"}
    assert all(duration > 0 for duration in times.values())


@pytest.mark.slow
def test_whole_steps_are_timed() -> None:
    lines = stages.step_times(UNLIMITED, None, ["plugin-graph", "plugin-graph-amp"], device="cpu", point="yolov5n:1:64")
    found = {line.name: (line.result, line.note) for line in lines}
    assert found.keys() == {"plugin-graph yolov5n:1:64", "plugin-graph-amp yolov5n:1:64"}
    assert all(result == "PASS" and note.endswith(" images/s") for result, note in found.values())


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
    monkeypatch.setattr("benchmarks.step.competitors.find_torch", lambda _: Path("python"))
    monkeypatch.setattr(stages, "step_times", lambda *_: iter(()))
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


_PROCESS = """
import json, os, sys, time
print(json.dumps({"gpu": "a GPU", "driver": "12.4"}), flush=True)
for name in sys.argv[1:]:
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        print("illegal instruction", file=sys.stderr, flush=True)
        os._exit(7)
    result = "FAIL" if name == "breaks" else "PASS"
    print(json.dumps({"stage": "kernels", "name": name, "result": result, "seconds": 0.1, "note": ""}), flush=True)
    if name == "breaks":
        os.close(1)
        time.sleep(0.2)  # as a process with a GPU's context: closed before it has ended
        os._exit(3)
"""


def test_failing_kernel_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test a kernel that breaks the context, one that ends its process, and one that never returns."""
    monkeypatch.setattr(kernel_stage, "CASE_SECONDS", 5.0)
    names = ["a", "breaks", "b", "dies", "c", "hangs", "d"]
    lines = list(kernel_stage.run_in_processes(UNLIMITED, [sys.executable, "-c", _PROCESS], names))
    assert [line.name for line in lines if line.name == "GPU"] == ["GPU"] * 4
    found = {line.name: (line.result, line.note) for line in lines if line.name != "GPU"}
    assert list(found) == names
    assert {name for name, (result, _) in found.items() if result == "PASS"} == set("abcd")
    assert found["dies"][1] == "the process ended with exit code 7: illegal instruction"
    assert found["hangs"][1].startswith("did not finish within 5 s")


def test_unusable_gpu_is_tried_once() -> None:
    fails = [sys.executable, "-c", "raise RuntimeError('cuInit: no device (100)')"]
    lines = list(kernel_stage.run_in_processes(UNLIMITED, fails, ["a", "b"]))
    assert [(line.name, line.result) for line in lines] == [("GPU", "FAIL"), ("a", "FAIL"), ("b", "FAIL")]
    assert lines[0].note.endswith("RuntimeError: cuInit: no device (100)")
    assert lines[1].note == "not run"


def test_kernels_without_time_left_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    budget = StageBudget("kernels", clock.now, clock)
    (line,) = kernel_stage.run_in_processes(budget, [sys.executable, "-c", _PROCESS], ["a"])
    assert (line.name, line.result, line.note) == ("a", "FAIL", "no time is left for the stage 'kernels'")


def test_large_cases_name_existing_kernels() -> None:
    assert {name.split()[0] for name in LARGE_CASES} <= kernel_names()
    assert all(name.endswith("(training)") for name in LARGE_CASES)


def test_command_times_out_with_its_stage(tmp_path: Path) -> None:
    clock = Clock()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    late = run_command(StageBudget("training", clock.now + 0.3, clock), "one", sleep)
    assert (late.result, late.note) == ("FAIL", "did not finish within 0 s; no time is left for the stage 'training'")
    touch = [sys.executable, "-c", f"open({str(tmp_path / 'started')!r}, 'w')"]
    never = run_command(StageBudget("training", clock.now, clock), "two", touch)
    assert (never.result, never.note) == ("FAIL", "no time is left for the stage 'training'")
    assert not (tmp_path / "started").exists()


def test_command_out_of_time_ends_with_its_children(tmp_path: Path) -> None:
    """A rank that is left over would keep its GPU."""
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    run_command(StageBudget("training", time.monotonic() + 3), "one", [sys.executable, "-c", parent])
    pid = int((tmp_path / "pid").read_text())
    ended = time.monotonic() + 10
    while time.monotonic() < ended and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_stderr_of_command_is_not_its_result() -> None:
    words = "import sys; print('{}'); print('compiling the kernels', file=sys.stderr)"
    assert run_command(UNLIMITED, "ours", [sys.executable, "-c", words]).note == "{}"


def test_complete_failure_output_is_kept() -> None:
    words = "import sys; [print('line', n) for n in range(100)]; sys.exit('reason')"
    line = run_command(UNLIMITED, "ours", [sys.executable, "-c", words])
    assert (line.result, line.note) == ("FAIL", "line 98 | line 99 | reason")
    assert line.output.startswith("line 0\nline 1\n")


def test_speed_is_skipped_without_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_times", lambda *_: ({"convolution": 12.0}, None))
    monkeypatch.setattr("benchmarks.step.competitors.find_torch", lambda _: None)
    monkeypatch.setattr(stages, "step_times", lambda *_: iter(()))
    clock = Clock()
    budget = stage_budgets(clock)[-1]
    clock.now += 600 - 45
    assert [line.result for line in stages.speed(budget)] == ["PASS"]
    clock.now += 5
    (line,) = stages.speed(budget)
    assert (line.name, line.result, line.note) == ("ours", "SKIP", "40 s are left, 45 are needed")


def test_failing_stage_does_not_end_kit(tmp_path: Path) -> None:
    def stage(budget: StageBudget) -> Iterator[Line]:
        yield Line(budget.stage, "one", "PASS", 1.0, "")
        raise ValueError("not as expected")

    table = Table(tmp_path / "table.json")
    table.add_stage(stage, UNLIMITED)
    assert table.finish() == 1
    first, second = json.loads((tmp_path / "table.json").read_text())["lines"]
    assert (first["result"], second["result"], second["note"]) == ("PASS", "FAIL", "ValueError: not as expected")


HANGS = """
import sys, time
from pathlib import Path
from tests.gpu import __main__ as kit
table = kit.Table(Path(sys.argv[1]))
table.add_all([kit.Line("kernels", "add", "PASS", 1.0, "")])
kit.end_when_overdue(table, float(sys.argv[2]))
time.sleep(60)
"""


def test_hanging_kernel_ends_kit_with_table(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGS, str(tmp_path / "table.json"), "0.2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    first, last, count = ran.stdout.splitlines()
    assert first.startswith("PASS  kernels") and last.endswith("did not finish within 0 s")
    assert count == "2 lines, 1 failed"


def test_killed_kit_leaves_its_table(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    kit = subprocess.Popen([sys.executable, "-c", HANGS, str(file), "60"], cwd=ROOT, stdout=subprocess.PIPE)
    assert kit.stdout is not None and kit.stdout.readline().startswith(b"PASS")
    ended = time.monotonic() + 30
    while not file.exists() and time.monotonic() < ended:
        time.sleep(0.02)
    kit.kill()
    kit.wait()
    assert [line["name"] for line in json.loads(file.read_text())["lines"]] == ["add"]


@pytest.mark.slow
def test_archive_can_be_compiled_for_other_machine(tmp_path: Path) -> None:
    ran = _kit("--compile", "sm_90", "--archive", tmp_path / "sm_90.zip")
    assert ran.returncode == 0, ran.stderr
    images = b"".join(cuda_build.read_archive(tmp_path / "sm_90.zip"))
    assert all(name.encode() in images for name in kernel_names())
