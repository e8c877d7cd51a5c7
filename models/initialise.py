"""Weight initialisation with the reference's distributions, from one seeded NumPy generator."""

import math

import numpy as np
import numpy.typing as npt

from kernels.runtime import Tensor, flow
from models.attention import MultiheadAttention
from models.head import Detect
from models.layers import Conv2d, Linear, Module


def initialise(model: Module, seed: int) -> None:
    """Fill every parameter of a network in place; the same seed gives the same values on any machine.

    Weights and biases of convolutions and linear layers: uniform within 1 / sqrt(fan-in), PyTorch's default and the
    reference's. BatchNorm: 1 and 0. A prior is added to the biases of the head.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    with flow.no_grad():
        for _, module in model.named_modules():
            if isinstance(module, (Conv2d, Linear)):
                bound = 1 / math.sqrt(_fan_in(module.weight))
                _fill_uniform(module.weight, bound, generator)
                if module.bias is not None:
                    _fill_uniform(module.bias, bound, generator)
            elif isinstance(module, MultiheadAttention):
                rows, columns = module.in_proj_weight.shape
                # Xavier's uniform: sqrt(6 / (fan in + fan out)).
                _fill_uniform(module.in_proj_weight, math.sqrt(6 / (rows + columns)), generator)
                module.in_proj_bias.zero_()
        for _, module in model.named_modules():
            if isinstance(module, MultiheadAttention):
                module.out_proj.bias.zero_()
            elif isinstance(module, Detect):
                _add_prior(module)


def _fan_in(weight: Tensor) -> int:
    return math.prod(weight.shape[1:])


def _fill_uniform(tensor: Tensor, bound: float, generator: np.random.Generator) -> None:
    values: npt.NDArray[np.float32] = generator.random(tuple(tensor.shape), dtype=np.float32)
    values *= np.float32(2 * bound)
    values -= np.float32(bound)
    tensor.copy_(flow.from_numpy(values))


def _add_prior(head: Detect) -> None:
    """Add the bias prior of 8 objects in an image of 640 px, and of probability 0.6 / classes for each class.

    Source: arXiv:1708.02002, section 3.3, with YOLOv5's constants.
    """
    for convolution, stride in zip(head.m, head.stride, strict=True):
        bias = convolution.bias.numpy().reshape(head.anchors_per_level, -1)
        bias[:, 4] += math.log(8 / (640 / stride) ** 2)
        bias[:, 5:] += math.log(0.6 / (head.num_classes - 0.99999))
        convolution.bias.copy_(flow.from_numpy(bias.reshape(-1)))
