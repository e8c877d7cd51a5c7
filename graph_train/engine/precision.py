"""The compute device and the activation data type of a run, and whether the hardware supports them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.framework.activation_type import ActivationType
from kernels.host.cuda_devices import MAX_CUDNN_8_CAPABILITY, driver_problem
from kernels.host.extras import install_command
from kernels.plugin import PluginMode, emulates_cuda, is_loaded, load_plugin, missing_for, multiplies_bfloat16_faster
from kernels.runtime import flow, has_newer_nccl, newer_cudnn

Array = npt.NDArray[Any]
LOG = logging.getLogger("graph_train")
MIN_CAPABILITY, MAX_ONEFLOW_CAPABILITY = 60, 89
"""Compute capabilities times ten: the lowest one supported, and the highest one that OneFlow 0.9.0 has kernels for."""
MIN_BFLOAT16_CAPABILITY = 80
"""The lowest compute capability, times ten, with bfloat16 matrix multiplication."""
MIXED_PRECISION_NOTE = "sums, statistics, loss and weights in float32"
_MAX_RELATIVE_ERROR = 0.1
"""Largest accepted difference between 16-bit and float32 feature maps, relative to the largest value."""


@dataclass(frozen=True)
class ComputeDevice:
    """The device that a run computes on.

    Attributes:
        name: name in log messages, such as "GPU 0: NVIDIA A100".
        capability: ten times the GPU's compute capability (80 for 8.0); None for a CPU.
        plugin: whether the kernel plugin is loaded.
        fast_bfloat16: whether the CPU multiplies bfloat16 faster than float32.
        reason: why the plugin is not loaded; empty if it is.
    """

    name: str
    capability: int | None
    plugin: bool
    fast_bfloat16: bool = False
    reason: str = ""

    def check(self) -> None:
        """Reject a GPU that the available kernels do not support.

        Raises:
            ValueError: the GPU is too old, too new for cuDNN, or too new for OneFlow's own kernels while the plugin is
                not loaded.
        """
        if self.capability is None:
            return
        if self.capability < MIN_CAPABILITY:
            raise ValueError(
                f"{self.name}: compute capability {self.version} is not supported (6.0 or newer is required); "
                "use --device cpu"
            )
        if self.capability > MAX_CUDNN_8_CAPABILITY and newer_cudnn() is None:
            raise ValueError(
                f"{self.name}: compute capability {self.version} needs cuDNN 9 for convolutions, because OneFlow's "
                f"cuDNN 8.9 supports up to 9.0; install it: {install_command('blackwell')}; or use --device cpu"
            )
        if self.newer_than_oneflow and not self.plugin:
            raise ValueError(
                f"{self.name}: compute capability {self.version} needs the kernel plugin, because OneFlow 0.9.0 "
                f"supports up to 8.9, but it is not loaded ({self.reason}); make it available, or use --device cpu"
            )

    @property
    def newer_than_oneflow(self) -> bool:
        """Whether the device is a GPU newer than those OneFlow has kernels for."""
        return (self.capability or 0) > MAX_ONEFLOW_CAPABILITY

    @property
    def version(self) -> str:
        """The compute capability, such as "8.0"; "0.0" for a CPU."""
        major, minor = divmod(self.capability or 0, 10)
        return f"{major}.{minor}"

    def reject_ops(self, ops: Sequence[str]) -> None:
        """Reject a training that needs OneFlow's own kernels on a GPU that these do not support.

        Args:
            ops: names of the step's ops that the plugin does not implement.
        Raises:
            ValueError: there are such ops.
        """
        if self.newer_than_oneflow and ops:
            raise ValueError(
                f"{self.name}: compute capability {self.version} is newer than OneFlow 0.9.0's own kernels (up to "
                f"8.9), which this training needs for {', '.join(ops)}; remove --no-bbox-iou-optim, or use --device cpu"
            )

    def activation_type(self, amp: bool | None) -> ActivationType:
        """Return the data type of activations. By default (`amp` None), mixed precision is used on GPUs only.

        Raises:
            ValueError: `amp` is set, but the plugin is not loaded.
        """
        if amp and not self.plugin:
            raise ValueError("--amp: mixed precision needs the kernel plugin, which is not loaded; remove --amp")
        mixed = self.plugin and (self.capability is not None if amp is None else amp)
        if not mixed:
            return ActivationType.FLOAT32
        if self.capability is None:
            return ActivationType.BFLOAT16 if self.fast_bfloat16 else ActivationType.FLOAT32
        return ActivationType.BFLOAT16 if self.capability >= MIN_BFLOAT16_CAPABILITY else ActivationType.FLOAT16

    def summary(self, chosen: ActivationType) -> str:
        """Return a one-line description of device, activation type and kernels."""
        capability = "" if self.capability is None else f" (compute capability {self.version})"
        kind = chosen.name.lower()
        note = "" if chosen is ActivationType.FLOAT32 else f"; {MIXED_PRECISION_NOTE}"
        kernels = "plugin" if self.plugin else f"OneFlow's own ({self.reason})"
        return f"{self.name}{capability}; activations {kind}{note}. Kernels: {kernels}"


def compute_device(device: str, *, plugin: bool, reason: str = "") -> ComputeDevice:
    """Describe a OneFlow device such as "cpu" or "cuda:1"; `plugin` and `reason` as in `ComputeDevice`."""
    if not device.startswith("cuda"):
        return ComputeDevice("CPU", None, plugin, plugin and multiplies_bfloat16_faster(), reason)
    number = int(device.partition(":")[2] or 0)
    major, minor = flow.cuda.get_device_capability(number)
    name = f"GPU {number}: {flow.cuda.get_device_name(number)}"
    return ComputeDevice(name, 10 * major + minor, plugin, reason=reason)


def check_gpu(device: str, kernels: PluginMode, *, ranks: int = 1) -> None:
    """Reject a GPU that cannot be used, before data are read or anything is compiled; accept a CPU.

    Args:
        device: device, from `select_device`.
        kernels: the mode in which the plugin will be loaded.
        ranks: number of ranks of the job.
    Raises:
        ValueError: see `ComputeDevice.check`; NVIDIA's driver is too old; or OneFlow's NCCL, which several ranks use,
            has no code for the GPU.
    """
    if not device.startswith("cuda"):
        return
    missing = missing_for(kernels)
    machine = compute_device(device, plugin=not missing, reason=missing)
    machine.check()
    if not emulates_cuda() and (problem := driver_problem()):
        raise ValueError(f"{machine.name}: {problem}, or use --device cpu")
    if ranks > 1 and machine.newer_than_oneflow and not has_newer_nccl():
        raise ValueError(
            f"{machine.name}: several processes need a newer NCCL than OneFlow's, which does not support compute "
            f"capability {machine.version}; install it on every host: {install_command('nccl')}"
        )


def load_kernels(kernels: PluginMode, device: str, *, amp: bool | None = False) -> tuple[ComputeDevice, ActivationType]:
    """Load the kernel plugin; return the device and the data type of activations, and log both.

    Args:
        kernels: see `kernels.plugin.load_plugin`.
        device: device, from `select_device`.
        amp: whether to use mixed precision; None: on GPUs only.
    Raises:
        ValueError: the GPU is not supported, or mixed precision is not available.
    """
    check_gpu(device, kernels)
    plugin = load_plugin(kernels, device)
    machine = compute_device(device, plugin=plugin.loaded, reason=plugin.reason)
    machine.check()
    chosen = machine.activation_type(amp)
    LOG.info("%s", machine.summary(chosen))
    return machine, chosen


def checked_activation_type(network: flow.nn.Module, wanted: ActivationType, device: str) -> ActivationType:
    """Return `wanted` if the CUDA kernels give nearly the same feature maps as in float32, else float32.

    Like YOLOv5's `check_amp`: one forward pass over a noise image.

    Args:
        network: a `DetectionModel` on the CPU, in any mode; it is returned to the CPU unchanged.
        wanted: the data type of activations to check.
        device: the device of the run.
    """
    if wanted is ActivationType.FLOAT32 or not (device.startswith("cuda") or emulates_cuda()) or not is_loaded():
        return wanted
    side = 2 * network.spec.coarsest_stride
    noise = np.random.default_rng(0).integers(0, 256, (1, network.spec.channels, side, side), np.uint8)
    training, before = network.training, network.activation_type
    maps = {}
    with flow.no_grad():
        images = flow.tensor(noise).to(device)
        network.eval().to(device)
        for kind in (ActivationType.FLOAT32, wanted):
            maps[kind] = [level.numpy() for level in network.compute_in(kind).raw_maps(images)]
    network.compute_in(before).train(training).to("cpu")
    if reason := _amp_problem(maps[ActivationType.FLOAT32], maps[wanted]):
        LOG.warning("AMP check failed: %s feature maps %s; using float32", wanted.name.lower(), reason)
        return ActivationType.FLOAT32
    return wanted


def _amp_problem(exact: Sequence[Array], rounded: Sequence[Array]) -> str:
    """Return how the maps of a 16-bit type differ from those in float32, or "" if they agree."""
    if not all(np.isfinite(level).all() for level in exact):
        return "cannot be compared, because those in float32 are not finite (check the initial weights)"
    if not all(np.isfinite(level).all() for level in rounded):
        return "are not finite"
    worst = max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6)) for a, b in zip(exact, rounded, strict=True))
    return f"differ by {100 * worst:.0f}% of the largest value" if worst > _MAX_RELATIVE_ERROR else ""
