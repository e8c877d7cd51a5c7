"""Transformer blocks of C3TR; OneFlow 0.9 has no multi-head attention with PyTorch's parameter names."""

from typing import Any

from kernels.ops.attention.function import attention
from kernels.runtime import Tensor, flow
from models import layout
from models.layers import Linear, PackedLayer, fork, join, project, tensor_of

nn: Any = flow.nn


class MultiheadAttention(PackedLayer, nn.Module):
    """Scaled dot-product self-attention with PyTorch's parameter names.

    Source: arXiv:1706.03762, eq. 1; the three input projections are stacked in `in_proj_weight` (3C, C).
    """

    weight_name = "in_proj_weight"

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(flow.Tensor(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(flow.Tensor(3 * channels))
        self.out_proj = Linear(channels, channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map three (tokens, B, C) tensors to (tokens, B, C); with channels last, (B, H, W, C) to (B, H, W, C)."""
        if layout.channels_last():
            together = join([query, key, value])
            weight, bias = tensor_of(self.in_proj_weight), tensor_of(self.in_proj_bias)
            projected = project(together, weight, self.weight_index, bias, groups=3)
            return self.out_proj(attention(projected, self.heads))
        tokens, batch, channels = query.shape
        weights = flow.chunk(self.in_proj_weight, 3, dim=0)
        biases = flow.chunk(self.in_proj_bias, 3, dim=0)

        def heads_first(x: Tensor, part: int) -> Tensor:
            projected = nn.functional.linear(x, weights[part], biases[part])
            return projected.reshape(tokens, batch * self.heads, channels // self.heads).permute(1, 0, 2)

        q, k, v = heads_first(query, 0), heads_first(key, 1), heads_first(value, 2)
        scores = flow.matmul(q, k.permute(0, 2, 1)) * (channels // self.heads) ** -0.5
        mixed = flow.matmul(flow.softmax(scores, dim=-1), v)
        joined = mixed.permute(1, 0, 2).reshape(tokens, batch, channels)
        return nn.functional.linear(joined, self.out_proj.weight, self.out_proj.bias)


class TransformerLayer(nn.Module):
    """Self-attention and two linear layers, both residual; without layer norm, as in the reference."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.q = Linear(channels, channels, bias=False)
        self.k = Linear(channels, channels, bias=False)
        self.v = Linear(channels, channels, bias=False)
        self.ma = MultiheadAttention(channels, heads)
        self.fc1 = Linear(channels, channels, bias=False)
        self.fc2 = Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (tokens, B, C), or (B, H, W, C) with channels last, to the same shape."""
        query, key, value, x = fork(x, [1, 1, 1, 1])
        x = self.ma(self.q(query), self.k(key), self.v(value)) + x
        return self.fc2(self.fc1(x)) + x


class TransformerBlock(nn.Module):
    """Transformer layers over the cells of a feature map; `linear` is the learned position embedding."""

    def __init__(self, channels: int, layers: int, heads: int = 4) -> None:
        super().__init__()
        self.linear = Linear(channels, channels)
        self.tr = nn.Sequential(*(TransformerLayer(channels, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape; cells are tokens."""
        if layout.channels_last():
            return self.tr(x + self.linear(x))
        batch, channels, height, width = x.shape
        tokens = x.reshape(batch, channels, height * width).permute(2, 0, 1)
        tokens = self.tr(tokens + self.linear(tokens))
        return tokens.permute(1, 2, 0).reshape(batch, channels, height, width)
