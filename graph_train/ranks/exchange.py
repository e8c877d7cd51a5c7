"""Small messages between the ranks of a job, as OneFlow's global tensors on the hosts; alone, nothing is sent."""

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
    """This rank among the others. Every call must be made by all ranks, in the same order."""

    rank: int = 0
    ranks: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is nobody else."""
        return self.ranks == 1

    @property
    def main(self) -> bool:
        """The one rank that writes and talks."""
        return self.rank == 0

    def rows(self, values: Sequence[int]) -> npt.NDArray[np.int64]:
        """(ranks, n): the numbers that each rank gives, as many on all."""
        own = np.asarray(values, np.int64)[np.newaxis]
        return own if self.alone else self._joined(own)

    def most(self, *values: int) -> tuple[int, ...]:
        """The largest of each number over the ranks."""
        return tuple(int(value) for value in self.rows(values).max(axis=0))

    def arrays(self, own: Array) -> list[Array]:
        """The array of every rank, by rank; the first dimension may differ."""
        if self.alone:
            return [own]
        lengths = self.rows([len(own)])[:, 0]
        padded = np.zeros((1, max(int(lengths.max()), 1), *own.shape[1:]), own.dtype)
        padded[0, : len(own)] = own
        # Bytes, since not all types can be sent.
        shape, dtype = padded.shape[1:], own.dtype
        sent = self._joined(np.frombuffer(padded.tobytes(), np.uint8)[np.newaxis])
        return [
            np.frombuffer(sent[rank].tobytes(), dtype).reshape(shape)[: lengths[rank]] for rank in range(self.ranks)
        ]

    def texts(self, own: str) -> list[str]:
        """The text of every rank, by rank."""
        sent = self.arrays(np.frombuffer(own.encode(), np.uint8))
        return [part.tobytes().decode() for part in sent]

    def share(self, value: Any) -> Any:
        """Rank 0's value, as JSON keeps it; what the others give is ignored."""
        if self.alone:
            return value
        return json.loads(self.texts(json.dumps(value) if self.main else "")[0])

    def _joined(self, own: Array) -> Array:
        """(1, …) of each rank to (ranks, …).

        Raises:
            ValueError: OneFlow does not count this rank among those of its host.
        """
        place = flow.placement("cpu", ranks=list(range(self.ranks)))
        tensor = flow.tensor(own).to_global(placement=place, sbp=flow.sbp.split(0), check_meta=False)
        joined = tensor.to_global(placement=place, sbp=flow.sbp.broadcast).to_local().numpy().copy()
        if own.size and not joined.size:
            raise ValueError(
                f"rank {self.rank}: OneFlow does not find it here; LOCAL_RANK must count the ranks of each host "
                "from 0. Set it so, or let a launcher do it"
            )
        return joined
