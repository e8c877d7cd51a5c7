"""The ways to execute one training step that are compared, and the comparison at one point."""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import Summary, calls_per_turn, ratios, summarise, take_turns
from benchmarks.harness.points import Point
from benchmarks.harness.workers import CHECKOUT_PYTHON, Worker

OURS, TORCH = "benchmarks.step.step_worker", "benchmarks.peers.step_worker"
_OURS_BEFORE = "benchmarks.step_worker"
"""Where older checkouts have our worker."""
OTHER = "other"
LOSS_TOLERANCE = 1e-3
"""Largest relative difference of the first loss between two float32 sides; more means they compute different things."""
_HALF_TOLERANCE = 0.05
_TURN_SECONDS = 0.5


@dataclass(frozen=True)
class Variant:
    """One side: which worker, and how it executes the step."""

    module: str
    options: Mapping[str, bool]
    half: bool = False
    other_checkout: bool = False

    @property
    def is_torch(self) -> bool:
        """Whether PyTorch's interpreter is needed."""
        return self.module == TORCH


def _ours(*, plugin: bool, graph: bool, amp: bool = False, share_memory: bool = True) -> Variant:
    return Variant(OURS, {"plugin": plugin, "graph": graph, "amp": amp, "share_memory": share_memory}, half=amp)


def _torch(*, channels_last: bool = False, compiled: bool = False, amp: bool = False) -> Variant:
    return Variant(TORCH, {"channels_last": channels_last, "compiled": compiled, "amp": amp}, half=amp)


VARIANTS: Mapping[str, Variant] = {
    "plugin-graph": _ours(plugin=True, graph=True),
    "plugin-eager": _ours(plugin=True, graph=False),
    "plugin-graph-amp": _ours(plugin=True, graph=True, amp=True),
    "plugin-graph-separate": _ours(plugin=True, graph=True, share_memory=False),
    "stock-graph": _ours(plugin=False, graph=True),
    "stock-eager": _ours(plugin=False, graph=False),
    **{
        f"{OTHER}-{name}": replace(variant, other_checkout=True)
        for name, variant in (
            ("graph", _ours(plugin=True, graph=True)),
            ("eager", _ours(plugin=True, graph=False)),
            ("graph-amp", _ours(plugin=True, graph=True, amp=True)),
        )
    },
    "pytorch-eager": _torch(),
    "pytorch-channels-last": _torch(channels_last=True),
    "pytorch-compile": _torch(compiled=True),
    "pytorch-compile-channels-last": _torch(channels_last=True, compiled=True),
    "pytorch-amp": _torch(channels_last=True, amp=True),
    "pytorch-compile-amp": _torch(channels_last=True, compiled=True, amp=True),
}
"""Name -> side. In `plugin-graph-separate` each tensor has memory of its own, as OneFlow plans it. `pytorch-amp` is
autocast in channels-last; `pytorch-compile...` compiles the network, the loss stays eager, since its shapes depend on
the data. `other-...` are the plugin's variants with the code of the checkout that `--against` names."""


def is_half(name: str) -> bool:
    """Return whether a variant computes in half precision where the machine can.

    Results may name variants that are gone.
    """
    return name in VARIANTS and VARIANTS[name].half


@dataclass(frozen=True)
class Setting:
    """Device, threads and interpreters of a comparison."""

    device: str
    threads: int
    repeats: int
    torch_python: Path | None
    matmul_gflops: float | None = None
    """Measured ceiling, for the share that a step reaches of it."""
    against: Path | None = None
    """Another checkout of this project, for variants named `other-...`."""


def find_torch(asked: str | None, needed: Sequence[str] = ("torch", "numpy")) -> Path | None:
    """Return the interpreter that has what a peer needs: the one asked for, else ours, else none.

    Args:
        asked: `--torch-python`.
        needed: modules that must be importable there.
    Raises:
        ValueError: the one asked for lacks a module.
    """
    if asked is None:
        return Path(sys.executable) if all(map(importlib.util.find_spec, needed)) else None
    try:
        imports = f"import {', '.join(needed)}"
        probe = subprocess.run([asked, "-c", imports], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"--torch-python {asked}: {error.strerror or error}") from None
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["it fails"])[-1]
        raise ValueError(f"--torch-python {asked}: {reason}; install there: {NEEDED_PACKAGES}")
    return Path(asked)


NEEDED_PACKAGES = "pip install torch==2.13.0 numpy opencv-python-headless"
NO_TORCH = (
    "PyTorch rows are left out: this interpreter has no torch. Make one that has (python3.11 -m venv T && "
    f"T/bin/{NEEDED_PACKAGES}) and name it with --torch-python T/bin/python."
)


def other_checkout(asked: str | None) -> Path | None:
    """Check the checkout that `--against` names.

    Raises:
        ValueError: it has no benchmarks or no environment.
    """
    if asked is None:
        return None
    for needed in (_path_of(worker_module(Path(asked))), CHECKOUT_PYTHON):
        if not (Path(asked) / needed).exists():
            raise ValueError(f"--against {asked}: {needed} is missing; name a checkout of graph-train after `uv sync`")
    return Path(asked).resolve()


def worker_module(checkout: Path) -> str:
    """Return the module of a checkout's own step worker, also of one from before `benchmarks` had packages."""
    return _OURS_BEFORE if (checkout / _path_of(_OURS_BEFORE)).exists() else OURS


def _path_of(module: str) -> Path:
    return Path(*module.split(".")).with_suffix(".py")


def available(
    variants: Sequence[str], torch_python: Path | None, against: Path | None = None
) -> tuple[list[str], list[str]]:
    """Return the variants that can run, and a note on those that cannot; those of another checkout only with one.

    Raises:
        ValueError: an unknown name, or none is left.
    """
    variants = [name for name in variants if against or name not in VARIANTS or not VARIANTS[name].other_checkout]
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise ValueError(f"--variants {unknown[0]}: choose from {', '.join(VARIANTS)}")
    kept = [name for name in variants if torch_python is not None or not VARIANTS[name].is_torch]
    if not kept:
        raise ValueError(NO_TORCH)
    return kept, [NO_TORCH] if len(kept) < len(variants) else []


@dataclass(frozen=True)
class Comparison:
    """The measurements at one point."""

    rows: list[dict[str, Any]]
    milliseconds: Mapping[str, Sequence[float]]
    """Per variant ms per step in each turn."""
    notes: list[str]

    def speedup(self, variant: str, against: str) -> Summary:
        """Return how many times faster the first is, turn by turn."""
        return ratios(self.milliseconds[against], self.milliseconds[variant])


def compare(point: Point, variants: Sequence[str], setting: Setting) -> Comparison:
    """Measure all variants in turn at one point.

    Raises:
        ValueError: the variants do not compute the same loss, or one cannot run this network.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="graph-bench-"))
        with Worker("description", OURS, threads=setting.threads) as worker:
            size = worker.call("describe", folder=folder, **asdict(point))
        workers = {name: stack.enter_context(_start(name, setting, folder)) for name in variants}
        prepared: dict[str, dict[str, Any]] = {}
        for name, worker in workers.items():
            prepared[name] = worker.call(
                "prepare", folder=folder, device=setting.device, threads=setting.threads, **VARIANTS[name].options
            )
        _check_losses(point, prepared)
        runners = {name: _Turns(worker) for name, worker in workers.items()}
        seconds = take_turns(runners, repeats=setting.repeats, warmup=1, label=str(point))
        ends = {name: {**worker.call("memory"), **runners[name].processor_ms()} for name, worker in workers.items()}
    milliseconds = {name: [value * 1000 for value in values] for name, values in seconds.items()}
    rows = []
    for name in variants:
        known = {**asdict(point), "device": setting.device, **ends[name]}
        rate = _rate(name, milliseconds[name], size, setting)
        rows.append(known | _row(name, milliseconds[name], prepared[name]) | rate)
    notes = [f"{name}: {note}" for name in variants for note in prepared[name].get("notes", [])]
    return Comparison(rows, milliseconds, notes)


def _start(name: str, setting: Setting, folder: str) -> Worker:
    variant = VARIANTS[name]
    # A cache of compiled code from an earlier run would hide what compiling costs.
    environment = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"} if variant.is_torch else {}
    python = setting.torch_python if variant.is_torch else None
    checkout = setting.against if variant.other_checkout else None
    module = worker_module(checkout) if checkout else variant.module
    return Worker(name, module, threads=setting.threads, python=python, checkout=checkout, environment=environment)


class _Turns:
    """A turn is a call: seconds per step. The first one finds out how many steps fill a turn."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._per_turn = self._steps = 0
        self._before = worker.call("processor_ms")

    def __call__(self) -> float:
        if not self._per_turn:
            self._per_turn = calls_per_turn(self._do(1), wanted_seconds=_TURN_SECONDS, most=50)
        return self._do(self._per_turn) / self._per_turn

    def _do(self, count: int) -> float:
        self._steps += count
        return float(self._worker.call("steps", count=count))

    def processor_ms(self) -> dict[str, float]:
        """Return the processor time per step: of the thread that runs Python, and of all threads."""
        now = self._worker.call("processor_ms")
        return {f"{name}_ms": (now[name] - self._before[name]) / self._steps for name in self._before}


def peer_versions(prepared: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the columns of a row with the versions that a peer's `prepare` told.

    A package that the peer does not have is None, and so is all of our side.
    """
    return {name: prepared.get("versions", {}).get(name) for name in ("pytorch", "opencv", "python")}


def _check_losses(point: Point, prepared: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the same weights and batch give the same loss on every side."""
    reference_name = min(prepared, key=lambda name: VARIANTS[name].half)
    reference = prepared[reference_name]["loss"]
    for name, result in prepared.items():
        tolerance = _HALF_TOLERANCE if VARIANTS[name].half else LOSS_TOLERANCE
        if not abs(result["loss"] - reference) <= tolerance * abs(reference):
            raise ValueError(
                f"{point}: the first loss is {result['loss']:.6g} with {name} and {reference:.6g} with "
                f"{reference_name}: they do not compute the same step, so their speeds cannot be compared"
            )


def _row(name: str, milliseconds: Sequence[float], prepared: Mapping[str, Any]) -> dict[str, Any]:
    summary = summarise(milliseconds)
    compile_s = prepared.get("compile_s")
    if VARIANTS[name].options.get("compiled"):
        compile_s = max(prepared["first_step_s"] - summary.median / 1000, 0.0)
    return {
        "variant": name,
        "ms_per_step": summary.median,
        **{key: value for key, value in summary.as_dict().items() if key != "median"},
        "compile_s": compile_s,
        "first_step_s": prepared["first_step_s"],
        "parameters": prepared["parameters"],
        "loss_first_step": prepared["loss"],
        **peer_versions(prepared),
    }


def _rate(name: str, milliseconds: Sequence[float], size: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    seconds = summarise(milliseconds).median / 1000
    gflops = size["step_gflop"] / seconds
    # The ceiling is that of float32: a side that computes in half precision may well pass it.
    ceiling = None if is_half(name) else setting.matmul_gflops
    return {
        "images_per_second": size["images"] / seconds,
        "gflops_per_second": gflops,
        "share_of_matmul": gflops / ceiling if ceiling else None,
    }


def steps_until_paid(row: Mapping[str, Any], eager: Mapping[str, Any]) -> int | None:
    """Return the steps after which a compiled side has made up for its slow first step; None if it never does."""
    gained = eager["ms_per_step"] - row["ms_per_step"]
    if gained <= 0:
        return None
    lost = row["first_step_s"] * 1000 - row["ms_per_step"] - max(eager["first_step_s"] * 1000 - eager["ms_per_step"], 0)
    return max(1, round(max(lost, 0) / gained))
