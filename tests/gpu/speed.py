"""Times of the same work by our ops and by PyTorch: `python -m tests.gpu.speed ours|pytorch DEVICE [tiny]`.

Prints the mean microseconds of each case as JSON. PyTorch's side runs in an interpreter without OneFlow.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Work = Callable[[], object]
_REPEATS = 50
_SIZES = {"whole": (16, 80, 128, 7_200_000), "tiny": (1, 8, 16, 1000)}
"""Batch size, side of the maps, channels, and parameters (those of yolov5s)."""


def ours(device: str, size: str) -> tuple[dict[str, Work], Work]:
    """Return the cases with our ops, and a function that synchronises."""
    from kernels.framework.activation_type import ActivationType
    from kernels.ops.batch_norm.function import batch_norm
    from kernels.ops.convolution.function import ConvolutionGeometry, convolution
    from kernels.ops.update.function import UpdateSettings, UpdateState, update_parameters
    from kernels.plugin import load_plugin
    from kernels.runtime import Tensor, flow

    load_plugin("require", device)
    batch, side, channels, parameters = _SIZES[size]
    kind = ActivationType.FLOAT32 if device == "cpu" else ActivationType.FLOAT16
    generator = np.random.default_rng(0)

    def numbers(*shape: int) -> Tensor:
        return flow.tensor(generator.standard_normal(shape, np.float32)).to(device)

    packed = kind is not ActivationType.FLOAT32
    x = numbers(batch, side, side, channels).to(kind.dtype)
    weight = numbers(*((channels, 3, 3, channels) if packed else (channels, channels, 3, 3))).to(kind.dtype)
    of_channels = [numbers(channels) for _ in range(4)]
    flats = [numbers(parameters) for _ in range(5)]
    state = UpdateState([flats[0]], (1,), average=flats[1], gradient_sum=flats[2], first_moment=flats[3])
    settings = UpdateSettings(
        learning_rates=(0.01,) * 3, weight_decays=(5e-4,) * 3, momentum=0.9, ema_decay=0.99, update=True
    )
    on_device = flow.tensor(settings.vector()).to(device)
    geometry = ConvolutionGeometry(padding=(1, 1))
    normal: dict[str, Any] = {"eps": 1e-3, "momentum": 0.03, "training": True, "silu": True}
    works: dict[str, Work] = {
        "convolution": lambda: convolution(x, weight, geometry, packed=packed),
        "BatchNorm and SiLU": lambda: batch_norm(x, *of_channels, **normal),
        "SGD update": lambda: update_parameters("sgd", state, [flats[4]], on_device),
    }
    return works, flow._oneflow_internal.eager.Sync if device == "cpu" else flow.cuda.synchronize


def pytorch(device: str, size: str) -> tuple[dict[str, Work], Work]:
    """Return the same cases in PyTorch: channels last, fused optimizer, with clipping and EMA."""
    import torch

    batch, side, channels, parameters = _SIZES[size]
    dtype = torch.float32 if device == "cpu" else torch.float16
    x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    convolution = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
    convolution = convolution.to(memory_format=torch.channels_last)
    normal, silu = torch.nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03, device=device), torch.nn.SiLU()
    weights, average = (
        torch.nn.Parameter(torch.randn(parameters, device=device)),
        torch.randn(parameters, device=device),
    )
    weights.grad = torch.randn(parameters, device=device)
    optimizer = torch.optim.SGD([weights], 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_([weights], 10.0)
        optimizer.step()
        average.lerp_(weights.detach(), 0.01)

    works: dict[str, Work] = {
        "convolution": torch.no_grad()(lambda: convolution(x)),
        "BatchNorm and SiLU": torch.no_grad()(lambda: silu(normal(x))),
        "SGD update": update,
    }
    return works, (lambda: None) if device == "cpu" else torch.cuda.synchronize


def microseconds(work: Work, wait: Work) -> float:
    """Return the mean time, after a warm-up run."""
    for repeats in (1, _REPEATS):
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        wait()
    return (time.perf_counter() - start) / _REPEATS * 1e6


def main(side: str, device: str, size: str = "whole") -> None:
    """Time all cases of a side and print them."""
    works, wait = {"ours": ours, "pytorch": pytorch}[side](device, size)
    print(json.dumps({name: microseconds(work, wait) for name, work in works.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
