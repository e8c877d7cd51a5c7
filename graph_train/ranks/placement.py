"""Where tensors live: on the one device of this process, or spread over all ranks as OneFlow's global tensors.

Weights and settings are whole on every rank (`broadcast`), batches are split by images (`split(0)`); the code of the
step is the same for both.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.framework.global_rows import here
from kernels.ops.flatten.function import flatten_tensors
from kernels.runtime import Tensor, flow


@dataclass(frozen=True)
class Placement:
    """One device per rank.

    Attributes:
        device: of this process, such as "cpu" or "cuda:1".
        rank, ranks: of this process, of how many; one rank has ordinary tensors.
    """

    device: str
    rank: int = 0
    ranks: int = 1

    @property
    def distributed(self) -> bool:
        """Whether tensors are global."""
        return self.ranks > 1

    def module(self, module: Any) -> Any:
        """The module with its parameters and buffers here; all ranks get the values of rank 0."""
        return module.to_global(**self._whole) if self.distributed else module.to(self.device)

    def whole(self, value: npt.NDArray[Any] | Tensor) -> Tensor:
        """A copy that every rank has; all ranks get the values of rank 0."""
        tensor = flow.tensor(value) if isinstance(value, np.ndarray) else value
        return tensor.to(self.device).to_global(**self._whole) if self.distributed else tensor.to(self.device)

    def images(self, rows: npt.NDArray[Any] | Tensor, total: int) -> Tensor:
        """A batch of `total` images out of the rows that each rank has, in the order of the ranks.

        Shares host memory where it can. The rows are those of `pipelines.shard.Shard.rows`: ranks may differ by one
        row, and of fewer images than ranks every rank has all.
        """
        tensor = flow.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
        tensor = tensor.to(self.device)
        if not self.distributed:
            return tensor
        if total < self.ranks:
            return tensor.to_global(**self._whole)
        # Unless it must ask, as ranks have different numbers of rows, OneFlow need not compare shapes.
        return tensor.to_global(placement=self._all, sbp=flow.sbp.split(0), check_meta=total % self.ranks > 0)

    def empty_batch(self, shape: Sequence[int], dtype: Any) -> Tensor:
        """Zeros that are spread like a batch of this shape."""
        if not self.distributed:
            return flow.zeros(tuple(shape), dtype=dtype, device=self.device)
        sbp = flow.sbp.split(0) if shape[0] >= self.ranks else flow.sbp.broadcast
        return flow.zeros(tuple(shape), dtype=dtype, placement=self._all, sbp=sbp)

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Gives every rank the values of rank 0, in place."""
        if self.distributed:
            with flow.no_grad():
                for tensor in tensors:
                    here(tensor).copy_(self.whole(here(tensor)).to_local())

    def mean(self, own: Tensor) -> Tensor:
        """The mean over the ranks of an ordinary tensor that each of them has."""
        if not self.distributed:
            return own
        return self.from_summands(own).to_global(**self._whole).to_local() / float(self.ranks)

    def host(self, tensor: Tensor) -> npt.NDArray[Any]:
        """The values of a tensor on the host, those of all ranks together."""
        return tensor.to_global(**self._whole).to_local().numpy() if tensor.is_global else tensor.numpy()

    def own_rows(self, tensor: Tensor) -> npt.NDArray[Any]:
        """The rows of a batch tensor that this rank has."""
        return here(tensor).numpy()

    def summed(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients summed over the ranks: one (n,) of them all, in one transfer; alone the gradients as they are."""
        return [self.sum(self.summands(gradients))] if self.distributed else list(gradients)

    def summands(self, gradients: Sequence[Tensor]) -> Tensor:
        """(n,): gradients, one after the other, of which each rank holds its summand; nothing is sent."""
        flat = flatten_tensors(gradients)
        # Also a gradient which every rank already knows counts once: it is rank 0's, and zeros on the others.
        return flat.to_global(placement=self._all, sbp=flow.sbp.partial_sum)

    def from_summands(self, own: Tensor) -> Tensor:
        """The same made of an ordinary tensor (n,) that each rank has."""
        return own.to_global(placement=self._all, sbp=flow.sbp.partial_sum)

    def sum(self, summands: Tensor) -> Tensor:
        """(n,): what `summands` add up to, whole on every rank: the one transfer of an update."""
        return summands.to_global(**self._whole)

    @property
    def _all(self) -> Any:
        return flow.placement(self.device.split(":", maxsplit=1)[0], ranks=list(range(self.ranks)))

    @property
    def _whole(self) -> dict[str, Any]:
        return {"placement": self._all, "sbp": flow.sbp.broadcast}
