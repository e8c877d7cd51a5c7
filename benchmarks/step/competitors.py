"""The variants of a training step and their comparison at one point."""

import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import Summary, calls_per_turn, ratios, summarise, take_turns
from benchmarks.harness.points import Point
from benchmarks.harness.workers import CHECKOUT_PYTHON, Worker, why_unusable

OURS, TORCH = "benchmarks.step.step_worker", "benchmarks.peers.step_worker"
_OLD_WORKER_MODULE = "benchmarks.step_worker"
"""Module of our worker in older checkouts."""
OTHER = "other"
LOSS_TOLERANCE = 1e-3
"""Maximum relative difference of the first loss of two float32 variants that compute the same step."""
_HALF_TOLERANCE = 0.05
_TURN_SECONDS = 0.5


@dataclass(frozen=True)
class Variant:
    """A worker and its options for executing the step."""

    module: str
    options: Mapping[str, bool]
    half: bool = False
    other_checkout: bool = False

    @property
    def is_torch(self) -> bool:
        """Whether it needs PyTorch's interpreter."""
        return self.module == TORCH


def _own_variant(*, plugin: bool, graph: bool, amp: bool = False, share_memory: bool = True) -> Variant:
    return Variant(OURS, {"plugin": plugin, "graph": graph, "amp": amp, "share_memory": share_memory}, half=amp)


def _torch(*, channels_last: bool = False, compiled: bool = False, amp: bool = False) -> Variant:
    return Variant(TORCH, {"channels_last": channels_last, "compiled": compiled, "amp": amp}, half=amp)


VARIANTS: Mapping[str, Variant] = {
    "plugin-graph": _own_variant(plugin=True, graph=True),
    "plugin-eager": _own_variant(plugin=True, graph=False),
    "plugin-graph-amp": _own_variant(plugin=True, graph=True, amp=True),
    "plugin-graph-separate": _own_variant(plugin=True, graph=True, share_memory=False),
    "stock-graph": _own_variant(plugin=False, graph=True),
    "stock-eager": _own_variant(plugin=False, graph=False),
    **{
        f"{OTHER}-{name}": replace(variant, other_checkout=True)
        for name, variant in (
            ("graph", _own_variant(plugin=True, graph=True)),
            ("eager", _own_variant(plugin=True, graph=False)),
            ("graph-amp", _own_variant(plugin=True, graph=True, amp=True)),
        )
    },
    "pytorch-eager": _torch(),
    "pytorch-channels-last": _torch(channels_last=True),
    "pytorch-compile": _torch(compiled=True),
    "pytorch-compile-channels-last": _torch(channels_last=True, compiled=True),
    "pytorch-amp": _torch(channels_last=True, amp=True),
    "pytorch-compile-amp": _torch(channels_last=True, compiled=True, amp=True),
}
"""Variants by name. In `plugin-graph-separate` each tensor has its own memory, as planned by OneFlow. `pytorch-amp` is
autocast in channels-last; `pytorch-compile...` compiles the network only, as the loss has data-dependent shapes.
`other-...` are the plugin's variants with the code of the `--against` checkout."""


def is_half(name: str) -> bool:
    """Return whether a variant computes in half precision on machines that support it.

    The name may be from an older result.
    """
    return name in VARIANTS and VARIANTS[name].half


@dataclass(frozen=True)
class ComparisonSettings:
    """Device, threads, repeats and interpreters of a comparison."""

    device: str
    threads: int
    repeats: int
    torch_python: Path | None
    matmul_gflops: float | None = None
    """Measured ceiling, to report the fraction of it that a step reaches."""
    against: Path | None = None
    """Another checkout of this project, for the variants `other-...`."""


def find_torch(python: str | None, needed: Sequence[str] = ("torch", "numpy")) -> Path | None:
    """Return the interpreter for a peer: `python` if given, else ours if it has all modules, else None.

    Args:
        python: value of `--torch-python`.
        needed: modules that it must have.
    Raises:
        ValueError: `python` cannot be run or lacks a module.
    """
    if python is None:
        return Path(sys.executable) if all(map(importlib.util.find_spec, needed)) else None
    if reason := why_unusable(python, needed):
        raise ValueError(f"--torch-python {python}: {reason}; install the packages with: {NEEDED_PACKAGES}")
    return Path(python)


NEEDED_PACKAGES = "pip install torch==2.14.1 numpy opencv-python-headless"
NO_TORCH = (
    "PyTorch is skipped: this interpreter has no torch. Create an environment with it (python3.11 -m venv T && "
    f"T/bin/{NEEDED_PACKAGES}) and pass --torch-python T/bin/python."
)


def other_checkout(folder: str | None) -> Path | None:
    """Check and return the checkout of `--against`.

    Raises:
        ValueError: it lacks the benchmarks or a working environment.
    """
    if folder is None:
        return None
    for needed in (_path_of(worker_module(Path(folder))), CHECKOUT_PYTHON):
        if not (Path(folder) / needed).exists():
            raise ValueError(
                f"--against {folder}: {needed} not found; must be a checkout of graph-train after `uv sync`"
            )
    if reason := why_unusable(Path(folder).absolute() / CHECKOUT_PYTHON, ("numpy",)):
        raise ValueError(f"--against {folder}: {CHECKOUT_PYTHON}: {reason}; run `uv sync` there")
    return Path(folder).resolve()


def worker_module(checkout: Path) -> str:
    """Return the module of a checkout's step worker, which older checkouts have elsewhere."""
    return _OLD_WORKER_MODULE if (checkout / _path_of(_OLD_WORKER_MODULE)).exists() else OURS


def _path_of(module: str) -> Path:
    return Path(*module.split(".")).with_suffix(".py")


def available(
    variants: Sequence[str], torch_python: Path | None, against: Path | None = None
) -> tuple[list[str], list[str]]:
    """Return the variants that can run and a note on missing PyTorch; `other-...` need the checkout `against`.

    Raises:
        ValueError: an unknown name, or no variant can run.
    """
    variants = [name for name in variants if against or name not in VARIANTS or not VARIANTS[name].other_checkout]
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise ValueError(f"--variants {unknown[0]}: must be one of {', '.join(VARIANTS)}")
    kept = [name for name in variants if torch_python is not None or not VARIANTS[name].is_torch]
    if not kept:
        raise ValueError(NO_TORCH)
    return kept, [NO_TORCH] if len(kept) < len(variants) else []


@dataclass(frozen=True)
class Comparison:
    """The measurements at one point."""

    rows: list[dict[str, Any]]
    milliseconds: Mapping[str, Sequence[float]]
    """Milliseconds per step of each variant in each turn."""
    notes: list[str]

    def speedup(self, variant: str, against: str) -> Summary:
        """Return how many times faster `variant` is, from the ratios within each turn."""
        return ratios(self.milliseconds[against], self.milliseconds[variant])


def compare(point: Point, variants: Sequence[str], setting: ComparisonSettings) -> Comparison:
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


def _start(name: str, setting: ComparisonSettings, folder: str) -> Worker:
    variant = VARIANTS[name]
    # Cached code from an earlier run would hide the compile time.
    environment = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"} if variant.is_torch else {}
    python = setting.torch_python if variant.is_torch else None
    checkout = setting.against if variant.other_checkout else None
    module = worker_module(checkout) if checkout else variant.module
    return Worker(name, module, threads=setting.threads, python=python, checkout=checkout, environment=environment)


class _Turns:
    """Callable that measures the seconds per step in one turn; the first call chooses the steps per turn."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._per_turn = self._steps = 0
        self._before = worker.call("processor_ms")

    def __call__(self) -> float:
        if not self._per_turn:
            self._per_turn = calls_per_turn(self._run_steps(1), wanted_seconds=_TURN_SECONDS, limit=50)
        return self._run_steps(self._per_turn) / self._per_turn

    def _run_steps(self, count: int) -> float:
        self._steps += count
        return float(self._worker.call("steps", count=count))

    def processor_ms(self) -> dict[str, float]:
        """Return the processor time per step of the Python thread and of all threads."""
        now = self._worker.call("processor_ms")
        return {f"{name}_ms": (now[name] - self._before[name]) / self._steps for name in self._before}


def peer_versions(prepared: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the version columns of a row from the result of a peer's `prepare`.

    They are None for packages that the peer lacks and for our own variants.
    """
    return {name: prepared.get("versions", {}).get(name) for name in ("pytorch", "opencv", "python")}


def _check_losses(point: Point, prepared: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the same weights and batch give the same loss with every variant."""
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


def _rate(
    name: str, milliseconds: Sequence[float], size: Mapping[str, Any], setting: ComparisonSettings
) -> dict[str, Any]:
    seconds = summarise(milliseconds).median / 1000
    gflops = size["step_gflop"] / seconds
    # The ceiling is for float32; half precision may exceed it.
    ceiling = None if is_half(name) else setting.matmul_gflops
    return {
        "images_per_second": size["images"] / seconds,
        "gflops_per_second": gflops,
        "share_of_matmul": gflops / ceiling if ceiling else None,
    }


def break_even_steps(row: Mapping[str, Any], eager: Mapping[str, Any]) -> int | None:
    """Return the number of steps after which a compiled variant's slow first step has paid off; None if never."""
    gained = eager["ms_per_step"] - row["ms_per_step"]
    if gained <= 0:
        return None
    lost = row["first_step_s"] * 1000 - row["ms_per_step"] - max(eager["first_step_s"] * 1000 - eager["ms_per_step"], 0)
    return max(1, round(max(lost, 0) / gained))
