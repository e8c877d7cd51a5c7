"""Keeps what belongs to images on the rank that has the images, in tensors that are spread over ranks.

OneFlow chooses for every op whether its inputs stay split or are gathered, and would gather small ones. These functions
say where they must stay split; on ordinary tensors they do nothing.
"""

from collections.abc import Sequence

from kernels.runtime import Tensor, flow


def here(x: Tensor) -> Tensor:
    """This rank's part of a tensor as an ordinary one, sharing its memory; of a `broadcast` tensor all of it."""
    return x.to_local() if x.is_global else x


def kept_by_images(x: Tensor) -> Tensor:
    """A tensor (B, …) stays split by images, and so does its gradient."""
    if not x.is_global or x.shape[0] < x.placement.ranks.size:  # fewer images than ranks: all have all of them
        return x
    return x.to_global(placement=x.placement, sbp=flow.sbp.split(0), grad_sbp=flow.sbp.split(0))


def whole(x: Tensor) -> Tensor:
    """A sum over images, complete on every rank, and so is its gradient; one transfer each way."""
    if not x.is_global:
        return x
    return x.to_global(placement=x.placement, sbp=flow.sbp.broadcast, grad_sbp=flow.sbp.broadcast)


def expanded(constant: Tensor, *shape: int) -> Tensor:
    """A constant (1, …) of the same values for each image, expanded to (B, …): each rank makes its own images' part."""
    return kept_by_images(constant.expand(*shape))


def stacked(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """`flow.stack` of tensors (B, …). For split tensors OneFlow 0.9 has a wrong rule for the gradient of that op."""
    if not tensors[0].is_global:
        return flow.stack(tensors, dim=dim)
    return flow.cat([tensor.unsqueeze(dim) for tensor in tensors], dim=dim)
