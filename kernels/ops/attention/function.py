"""Self-attention over the pixels of (B, H, W, C) activations, with one op each for forward and backward.

Activations are float32, bfloat16 or (on CUDA) float16, and so are their gradients; scores, weights and sums are
float32. Reference: `models.attention.MultiheadAttention` on (tokens, B, C) tensors.
"""

from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.runtime import Tensor, flow


def attention(x: Tensor, heads: int) -> Tensor:
    """Apply multi-head scaled dot-product self-attention over the pixels of each image.

    Args:
        x: (B, H, W, 3 C): projected query, key and value of each pixel, each with the channels of all heads.
        heads: a divisor of C.
    Returns:
        (B, H, W, C) in the type of x.
    Source: arXiv:1706.03762, eq. 1.
    """
    return _autograd_function(heads).apply(x)


@cache
def _autograd_function(heads: int) -> Any:
    forward_op = dispatch.op_of("graph_train_attention", "x", outputs=2)
    backward_op = dispatch.op_of("graph_train_attention_grad", "dy", "x", "map")

    class Attention(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            y, weights = dispatch.call_many(forward_op, (x,), integers=(heads,))
            context.save_for_backward(x, weights)
            return y

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return dispatch.call(backward_op, (gradient, *context.saved_tensors), integers=(heads,))

    return Attention
