"""How a batch is divided among the processes of one training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The part of every batch that this process handles."""

    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"shard: rank {self.rank} of {self.ranks}; ranks count from 0")

    def rows(self, count: int) -> slice:
        """Return this rank's rows of a batch: ranks differ by one row at most, the first ones have more.

        OneFlow's `split(0)` cuts in the same way. Of fewer rows than ranks every rank has all, so that none is idle
        where all must take part.
        """
        if count < self.ranks:
            return slice(0, count)
        share, more = divmod(count, self.ranks)
        first = self.rank * share + min(self.rank, more)
        return slice(first, first + share + (self.rank < more))

    def counts_here(self, count: int) -> bool:
        """Return whether no other rank has this rank's rows of a batch of so many."""
        return count >= self.ranks or self.rank == 0

    def max_rows(self, count: int) -> int:
        """Return the most rows that any rank has of a batch of up to so many rows."""
        return max(-(-count // self.ranks), min(count, self.ranks - 1))
