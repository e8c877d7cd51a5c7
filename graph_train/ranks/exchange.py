"""Collectives for small host values, implemented with OneFlow's global CPU tensors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.runtime import flow

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Exchange:
    """The collectives of this rank. Every rank must make the same calls in the same order."""

    rank: int = 0
    ranks: int = 1

    @property
    def single_rank(self) -> bool:
        """Whether the job has a single rank."""
        return self.ranks == 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0

    def all_gather(self, values: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the n numbers of each rank, (ranks, n); n must be the same on all ranks."""
        local = np.asarray(values, np.int64)[np.newaxis]
        return local if self.single_rank else self._gather(local)

    def all_reduce_max(self, *values: int) -> tuple[int, ...]:
        """Return the maximum of each number over the ranks."""
        return tuple(int(value) for value in self.all_gather(values).max(axis=0))

    def all_gather_arrays(self, local: Array) -> list[Array]:
        """Return the arrays of all ranks, by rank; their first dimensions may differ."""
        if self.single_rank:
            return [local]
        lengths = self.all_gather([len(local)])[:, 0]
        padded = np.zeros((1, max(int(lengths.max()), 1), *local.shape[1:]), local.dtype)
        padded[0, : len(local)] = local
        # Sent as bytes, because OneFlow does not support all data types.
        shape, dtype = padded.shape[1:], local.dtype
        sent = self._gather(np.frombuffer(padded.tobytes(), np.uint8)[np.newaxis])
        return [
            np.frombuffer(sent[rank].tobytes(), dtype).reshape(shape)[: lengths[rank]] for rank in range(self.ranks)
        ]

    def all_gather_texts(self, text: str) -> list[str]:
        """Return the strings of all ranks, by rank."""
        sent = self.all_gather_arrays(np.frombuffer(text.encode(), np.uint8))
        return [part.tobytes().decode() for part in sent]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value after a JSON round trip; the values of other ranks are ignored."""
        if self.single_rank:
            return value
        return json.loads(self.all_gather_texts(json.dumps(value) if self.is_main else "")[0])

    def _gather(self, local: Array) -> Array:
        """Concatenate the arrays (1, …) of all ranks to (ranks, …).

        Raises:
            ValueError: OneFlow did not find this rank on its host.
        """
        place = flow.placement("cpu", ranks=list(range(self.ranks)))
        tensor = flow.tensor(local).to_global(placement=place, sbp=flow.sbp.split(0), check_meta=False)
        gathered = tensor.to_global(placement=place, sbp=flow.sbp.broadcast).to_local().numpy().copy()
        if local.size and not gathered.size:
            raise ValueError(
                f"rank {self.rank}: not found by OneFlow on this host; LOCAL_RANK must count from 0 on each host, "
                "preferably set by a launcher"
            )
        return gathered
