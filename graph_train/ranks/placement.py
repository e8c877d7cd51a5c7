"""Placement of tensors: local tensors with one rank, or OneFlow's global tensors with several.

Global weights and settings are replicated (`broadcast`), and batches are sharded by image (`split(0)`). The training
step is the same code for both cases.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kernels.framework.global_rows import local_shard
from kernels.ops.flatten.function import flatten_tensors
from kernels.runtime import Tensor, flow
from pipelines.shard import Shard

Module = TypeVar("Module", bound=flow.nn.Module)


@dataclass(frozen=True)
class Placement:
    """Placement of tensors on one device per rank.

    Attributes:
        device: device of this process, such as "cpu" or "cuda:1".
        rank, ranks: rank of this process and number of ranks.
    """

    device: str
    rank: int = 0
    ranks: int = 1

    @property
    def distributed(self) -> bool:
        """Whether tensors are global."""
        return self.ranks > 1

    @property
    def single_cpu(self) -> bool:
        """Whether there is one rank only, on a CPU."""
        return not self.distributed and self.device.startswith("cpu")

    def replicate_module(self, module: Module) -> Module:
        """Move a module's parameters and buffers to the device, with rank 0's values on all ranks."""
        return module.to_global(**self._replicated) if self.distributed else module.to(self.device)

    def replicate(self, value: npt.NDArray[Any] | Tensor) -> Tensor:
        """Return a copy on the device, with rank 0's values on all ranks."""
        tensor = flow.tensor(value) if isinstance(value, np.ndarray) else value
        return tensor.to(self.device).to_global(**self._replicated) if self.distributed else tensor.to(self.device)

    def shard_batch(self, rows: npt.NDArray[Any] | Tensor, total: int) -> Tensor:
        """Combine the rows of all ranks into a batch of `total` images, without copying host memory if possible.

        The rows are those of `pipelines.shard.Shard.rows`: ranks may differ by one row, and a batch with fewer images
        than ranks is replicated.
        """
        tensor = flow.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
        tensor = tensor.to(self.device)
        if not self.distributed:
            return tensor
        if total < self.ranks:
            return tensor.to_global(**self._replicated)
        # OneFlow must compare shapes between ranks only if their numbers of rows differ.
        return tensor.to_global(placement=self._all_ranks, sbp=flow.sbp.split(0), check_meta=total % self.ranks > 0)

    def empty_batch(self, shape: Sequence[int], dtype: Any) -> Tensor:
        """Return zeros with the placement of a batch of this shape."""
        # Created on the host: OneFlow's fill kernel does not support GPUs newer than 8.9.
        zeros = flow.zeros(tuple(shape), dtype=dtype)
        return self.shard_batch(zeros[Shard(self.rank, self.ranks).rows(shape[0])], shape[0])

    def broadcast_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every rank with those of rank 0."""
        if self.distributed:
            with flow.no_grad():
                for tensor in tensors:
                    local_shard(tensor).copy_(self.replicate(local_shard(tensor)).to_local())

    def all_reduce_mean(self, local: Tensor) -> Tensor:
        """Return the mean of a local tensor over the ranks; the division is done on the host."""
        if not self.distributed:
            return local
        summed = self.as_partial_sum(local).to_global(**self._replicated).to_local().numpy()
        return flow.tensor(summed / np.float32(self.ranks)).to(self.device)

    def to_numpy(self, tensor: Tensor) -> npt.NDArray[Any]:
        """Return a tensor as an array, gathered from all ranks."""
        return tensor.to_global(**self._replicated).to_local().numpy() if tensor.is_global else tensor.numpy()

    def local_rows(self, tensor: Tensor) -> npt.NDArray[Any]:
        """Return this rank's rows of a batch tensor as an array."""
        return local_shard(tensor).numpy()

    def all_reduce_gradients(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Sum gradients over the ranks, as one flat tensor (n,); with one rank, return them unchanged."""
        return [self.all_reduce_sum(self.partial_gradient_sum(gradients))] if self.distributed else list(gradients)

    def partial_gradient_sum(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the flattened gradients (n,) as a partial sum, without communication."""
        flat = flatten_tensors(gradients)
        # A gradient that is already replicated is kept on rank 0 and zero on the others.
        return flat.to_global(placement=self._all_ranks, sbp=flow.sbp.partial_sum)

    def as_partial_sum(self, local: Tensor) -> Tensor:
        """Return the local tensors (n,) of all ranks as one partial sum, without communication."""
        return local.to_global(placement=self._all_ranks, sbp=flow.sbp.partial_sum)

    def all_reduce_sum(self, partial_sums: Tensor) -> Tensor:
        """Return the replicated sum (n,) of a partial sum; the only transfer of an update."""
        return partial_sums.to_global(**self._replicated)

    @property
    def _all_ranks(self) -> Any:
        return flow.placement(self.device.split(":", maxsplit=1)[0], ranks=list(range(self.ranks)))

    @property
    def _replicated(self) -> dict[str, Any]:
        return {"placement": self._all_ranks, "sbp": flow.sbp.broadcast}
