"""One training step in PyTorch: forward, loss, backward, clip, Nesterov SGD with three parameter groups, EMA."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.loss import DetectionLoss

BIASES, DECAYED_WEIGHTS, NORM_WEIGHTS = 0, 1, 2


def parameter_groups(network: nn.Module) -> list[list[nn.Parameter]]:
    """Return YOLOv5's three groups: biases, weights with decay, weights of normalisation layers."""
    groups: list[list[nn.Parameter]] = [[], [], []]
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                groups[BIASES].append(parameter)
            else:
                groups[NORM_WEIGHTS if isinstance(module, nn.BatchNorm2d) else DECAYED_WEIGHTS].append(parameter)
    return groups


class Average:
    """EMA of all floating-point values of a network, by multi-tensor ops, PyTorch's fastest way."""

    def __init__(self, network: nn.Module, decay: float, tau: float) -> None:
        self._decay, self._tau, self._updates = decay, tau, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._averages = [value for value in self.network.state_dict().values() if value.is_floating_point()]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average; the decay ramps up with the number of updates."""
        self._updates += 1
        decay = self._decay * (1 - math.exp(-self._updates / self._tau))
        theirs = [value.detach() for value in network.state_dict().values() if value.is_floating_point()]
        torch._foreach_lerp_(self._averages, theirs, 1 - decay)


class TrainStep:
    """The training step, executed in one of PyTorch's modes.

    Args:
        network, criterion: network and loss, on their device.
        settings: settings of `benchmarks.harness.points.update_settings`.
        channels_last: memory layout of weights and images.
        compiled: use `torch.compile` for the network; the loss has data-dependent shapes and stays eager.
        amp: use autocast, bfloat16 on a CPU and float16 with loss scaling on a GPU.
    """

    def __init__(
        self,
        network: nn.Module,
        criterion: DetectionLoss,
        settings: Mapping[str, Any],
        *,
        channels_last: bool,
        compiled: bool,
        amp: bool,
    ) -> None:
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self._format).train()
        self._call: Any = torch.compile(self.network) if compiled else self.network
        self._criterion = criterion
        self.average = Average(self.network, settings["ema_decay"], settings["ema_tau"])
        self._parameters = list(self.network.parameters())
        self._device = self._parameters[0].device
        self._amp, self._max_norm = amp, settings["max_norm"]
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=amp and self._device.type == "cuda")
        groups = zip(parameter_groups(self.network), settings["learning_rates"], settings["weight_decays"], strict=True)
        self._optimizer = torch.optim.SGD(
            [{"params": params, "lr": rate, "weight_decay": decay} for params, rate, decay in groups],
            momentum=settings["momentum"],
            nesterov=True,
            fused=True,
        )

    def __call__(self, images: Tensor, labels: Tensor, *, update: bool = True) -> tuple[float, list[float]]:
        """Train on images (B, 3, H, W) uint8 and labels (n, 6) on the device; return total loss and parts as floats.

        Without `update` the gradient is only accumulated.
        """
        pixels = images.to(torch.float32, memory_format=self._format) / 255
        kind = self._device.type
        dtype = torch.float16 if kind == "cuda" else torch.bfloat16
        with torch.autocast(kind, dtype=dtype, enabled=self._amp):
            maps = self._call(pixels)
        total, parts = self._criterion([raw.float() for raw in maps], labels)
        self._scaler.scale(total).backward()
        if update:
            self._update()
        return float(total), parts.tolist()

    def set_rates(self, learning_rates: Sequence[float], momentum: float) -> None:
        """Set the momentum and the learning rate of each parameter group for the following steps."""
        for group, rate in zip(self._optimizer.param_groups, learning_rates, strict=True):
            group["lr"], group["momentum"] = rate, momentum

    def drop_gradients(self) -> None:
        """Discard accumulated gradients, as YOLOv5 does at the start of each epoch."""
        self._optimizer.zero_grad(set_to_none=True)

    def _update(self) -> None:
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self.average.update(self.network)
