"""On what a network computes and in which data type, and whether that machine can do it at all."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels.framework.activation_type import ActivationType
from kernels.plugin import emulates_cuda, is_loaded, multiplies_bfloat16_faster
from kernels.runtime import flow

LOG = logging.getLogger("graph_train")
OLDEST_GPU, NEWEST_OF_ONEFLOW = 60, 89
"""Compute capabilities (times ten): the first of OneFlow 0.9.0's wheel and of the plugin, and the wheel's last."""
BFLOAT16_GPU = 80
"""The first that multiplies bfloat16."""
IN_16_BITS = "sums, statistics, loss and weights in float32"
_AGREEMENT = 0.1
"""Largest difference of 16-bit maps from float32 ones that is taken for rounding, as a share of the largest value."""


@dataclass(frozen=True)
class ComputeDevice:
    """The device that a run computes on.

    Attributes:
        name: as the log calls it, such as "GPU 0: NVIDIA A100".
        capability: ten times the compute capability of a GPU, 80 for 8.0; None: a CPU.
        plugin: whether the kernel plugin is loaded.
        fast_bfloat16: whether a CPU multiplies bfloat16 faster than float32.
    """

    name: str
    capability: int | None
    plugin: bool
    fast_bfloat16: bool = False

    def check(self) -> None:
        """Refuse a GPU that has no kernels.

        Raises:
            ValueError: too old, or too new for OneFlow's own kernels where the plugin is off.
        """
        if self.capability is None:
            return
        if self.capability < OLDEST_GPU:
            raise ValueError(
                f"{self.name} has compute capability {self._version}, which is too old (6.0 is needed); "
                "use --device cpu"
            )
        if self.newer_than_oneflow and not self.plugin:
            raise ValueError(
                f"{self.name} has compute capability {self._version}, and OneFlow 0.9.0's own kernels end at 8.9: the "
                "kernel plugin is needed; use --kernels require to see why it is not loaded, or --device cpu"
            )

    @property
    def newer_than_oneflow(self) -> bool:
        """Whether it is a GPU that OneFlow has no code for."""
        return (self.capability or 0) > NEWEST_OF_ONEFLOW

    @property
    def _version(self) -> str:
        major, minor = divmod(self.capability or 0, 10)
        return f"{major}.{minor}"

    def refuse_ops(self, ops: Sequence[str]) -> None:
        """Refuse a training whose step has ops that only OneFlow's own kernels compute, on a GPU that they end before.

        Raises:
            ValueError: names the ops.
        """
        if self.newer_than_oneflow and ops:
            raise ValueError(
                f"{self.name} has compute capability {self._version}, and this training needs OneFlow 0.9.0's own "
                f"kernels, which end at 8.9, for {', '.join(ops)}; leave --no-bbox-iou-optim out, or use --device cpu"
            )

    def activation_type(self, amp: bool | None) -> ActivationType:
        """Return the data type for `--amp` (True), `--no-amp` (False) or neither: mixed precision on GPUs only.

        Raises:
            ValueError: `--amp` without the plugin.
        """
        if amp and not self.plugin:
            raise ValueError("--amp: mixed precision needs the kernel plugin, which is not loaded; leave --amp out")
        wanted = self.plugin and (self.capability is not None if amp is None else amp)
        if not wanted:
            return ActivationType.FLOAT32
        if self.capability is None:
            return ActivationType.BFLOAT16 if self.fast_bfloat16 else ActivationType.FLOAT32
        return ActivationType.BFLOAT16 if self.capability >= BFLOAT16_GPU else ActivationType.FLOAT16

    def summary(self, chosen: ActivationType, reason: str) -> str:
        """Return one line that names the device, the activations' type, and whose kernels run."""
        capability = "" if self.capability is None else f" (compute capability {self._version})"
        kind = chosen.name.lower()
        rest = "" if chosen is ActivationType.FLOAT32 else f"; {IN_16_BITS}"
        kernels = "plugin" if self.plugin else f"OneFlow's own ({reason})"
        return f"{self.name}{capability}; activations {kind}{rest}. Kernels: {kernels}"


def compute_device(device: str, *, plugin: bool) -> ComputeDevice:
    """Return the facts about an OneFlow device such as "cpu" or "cuda:1"."""
    if not device.startswith("cuda"):
        return ComputeDevice("CPU", None, plugin, fast_bfloat16=plugin and multiplies_bfloat16_faster())
    number = int(device.partition(":")[2] or 0)
    major, minor = flow.cuda.get_device_capability(number)
    return ComputeDevice(f"GPU {number}: {flow.cuda.get_device_name(number)}", 10 * major + minor, plugin)


def agreeing_type(network: flow.nn.Module, wanted: ActivationType, device: str) -> ActivationType:
    """Return the wanted type if CUDA kernels give nearly the same maps in it as in float32, else float32.

    As YOLOv5's `check_amp`: one pass over one image of noise, before the network moves to its device for good.

    Args:
        network: a `DetectionModel` on the CPU in any mode; its weights and statistics stay as they are.
        wanted: data type of activations.
        device: where the run computes.
    """
    if wanted is ActivationType.FLOAT32 or not (device.startswith("cuda") or emulates_cuda()) or not is_loaded():
        return wanted
    side = 2 * network.spec.grid_px
    noise = np.random.default_rng(0).integers(0, 256, (1, network.spec.channels, side, side), np.uint8)
    training, before = network.training, network.activation_type
    maps = {}
    with flow.no_grad():
        images = flow.tensor(noise).to(device)
        network.eval().to(device)
        for kind in (ActivationType.FLOAT32, wanted):
            maps[kind] = [level.numpy() for level in network.compute_in(kind).raw_maps(images)]
    network.compute_in(before).train(training).to("cpu")
    pairs = list(zip(maps[ActivationType.FLOAT32], maps[wanted], strict=True))
    worst = max(float(np.abs(exact - rounded).max() / max(np.abs(exact).max(), 1e-6)) for exact, rounded in pairs)
    if worst <= _AGREEMENT:
        return wanted
    LOG.warning(
        "AMP check failed: maps in %s are off by %.0f %% of their largest value; the run computes in float32",
        wanted.name.lower(),
        100 * worst,
    )
    return ActivationType.FLOAT32
