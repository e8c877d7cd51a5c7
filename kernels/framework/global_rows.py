"""Sharding hints that keep per-image data on the rank of the image.

OneFlow decides for every op whether its inputs stay sharded or are gathered, and would gather small ones. These
functions enforce sharding; local tensors are returned unchanged.
"""

from collections.abc import Sequence

from kernels.runtime import Tensor, flow


def local_shard(x: Tensor) -> Tensor:
    """Return this rank's shard of a tensor (all of a replicated one) as a local tensor that shares its memory."""
    return x.to_local() if x.is_global else x


def sharded_by_batch(x: Tensor) -> Tensor:
    """Keep a tensor (B, …) and its gradient sharded by image."""
    if not x.is_global or x.shape[0] < x.placement.ranks.size:  # fewer images than ranks: replicated
        return x
    return x.to_global(placement=x.placement, sbp=flow.sbp.split(0), grad_sbp=flow.sbp.split(0))


def replicated(x: Tensor) -> Tensor:
    """All-reduce a sum over images, and its gradient."""
    if not x.is_global:
        return x
    return x.to_global(placement=x.placement, sbp=flow.sbp.broadcast, grad_sbp=flow.sbp.broadcast)


def expand_sharded(constant: Tensor, *shape: int) -> Tensor:
    """Expand a constant (1, …) to (B, …), sharded by image; each rank creates only its own shard."""
    return sharded_by_batch(constant.expand(*shape))


def stack_sharded(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Stack tensors (B, …) like `flow.stack`, whose gradient OneFlow 0.9 shards wrongly for split tensors."""
    if not tensors[0].is_global:
        return flow.stack(tensors, dim=dim)
    return flow.cat([tensor.unsqueeze(dim) for tensor in tensors], dim=dim)
