"""One training step in PyTorch: forward, loss, backward, clip, Nesterov SGD in three groups, moving average."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.loss import DetectionLoss

BIASES, DECAYED_WEIGHTS, NORM_WEIGHTS = 0, 1, 2


def parameter_groups(network: nn.Module) -> list[list[nn.Parameter]]:
    """Return biases, weights with decay, weights of normalisation layers: YOLOv5's three groups."""
    groups: list[list[nn.Parameter]] = [[], [], []]
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                groups[BIASES].append(parameter)
            else:
                groups[NORM_WEIGHTS if isinstance(module, nn.BatchNorm2d) else DECAYED_WEIGHTS].append(parameter)
    return groups


class Average:
    """Moving average of all floating values of a network; multi-tensor ops, which is PyTorch's fastest form."""

    def __init__(self, network: nn.Module, decay: float, tau: float) -> None:
        self._decay, self._tau, self._updates = decay, tau, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._mine = [value for value in self.network.state_dict().values() if value.is_floating_point()]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the network; the decay ramps up with the count of updates."""
        self._updates += 1
        decay = self._decay * (1 - math.exp(-self._updates / self._tau))
        theirs = [value.detach() for value in network.state_dict().values() if value.is_floating_point()]
        torch._foreach_lerp_(self._mine, theirs, 1 - decay)


class TrainStep:
    """The step, in one of PyTorch's ways to execute it.

    Args:
        network, criterion: on their device.
        settings: `benchmarks.harness.points.update_settings`.
        channels_last: memory layout of weights and images.
        compiled: network through `torch.compile`; the loss has shapes that depend on the data and stays eager.
        amp: autocast; bfloat16 on a CPU, float16 with a loss scale on a GPU.
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
        """Take uint8 (B, 3, H, W) and labels (n, 6) on the device; return total loss and parts, read back.

        Without `update` the gradient is only added to those of the steps before.
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
        """Set the learning rate of each parameter group and the momentum for the steps that follow."""
        for group, rate in zip(self._optimizer.param_groups, learning_rates, strict=True):
            group["lr"], group["momentum"] = rate, momentum

    def drop_gradients(self) -> None:
        """Forgets gradients that wait for an update, as YOLOv5 does at the start of each epoch."""
        self._optimizer.zero_grad(set_to_none=True)

    def _update(self) -> None:
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self.average.update(self.network)
